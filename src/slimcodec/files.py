"""Files: written whole or not at all, read without trusting their size or place; local, or anywhere fsspec reaches."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, cast

from slimcodec.errors import SlimError, needs

#: largest JSON file that is read, in bytes; the longest, a tokenizer's, has some ten million
JSON_BYTES = 1 << 26


def is_url(name: object) -> bool:
    """Whether a name is a URL, ``s3://bucket/key``, and not the path of a local file."""
    return re.match(r"[a-z][a-z0-9+.-]+://", str(name)) is not None


def as_path(name: str | os.PathLike[str]) -> Path:
    """Return the path of a file; of a URL the ``UPath``, which has ``pathlib``'s methods, ``fs`` of fsspec and ``path``.

    fsspec finds credentials and settings as it always does. Raises ``SlimError`` for an empty name, and for a URL that no
    installed library opens.
    """
    if name == "":
        raise SlimError("the name of the file is empty")
    if "\0" in str(name):
        raise SlimError(f"{str(name)!r}: no file has a name with a zero byte")
    if not is_url(name):
        return Path(name)
    with needs("s3", "a URL"):
        from upath import UPath

    try:
        path: Any = UPath(name)
        return Path(path.path) if path.fs.protocol == ("file", "local") else cast(Path, path)
    except (ImportError, ValueError) as error:
        raise SlimError(f"{name}: cannot be opened: {error}") from error


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a folder, or begins the names of remote files; False for a name that cannot be."""
    return as_path(path).is_dir() if is_url(path) else os.path.isdir(path)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a file; False for a name that cannot be."""
    # not Path.is_file(), which raises for a name that is too long
    return as_path(path).is_file() if is_url(path) else os.path.isfile(path)


@contextmanager
def atomic_open(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open ``path`` for writing bytes; the file appears whole when the block ends, or not at all if it raises.

    The bytes go to a temporary file in the same folder, which then takes the place of ``path`` (of a symbolic link, of its
    target). A remote file is put at once or by an upload that is completed at the end, as its file system of fsspec does.
    ``durable``: the file outlasts a power failure. Raises ``OSError`` as ``open``.
    """
    if is_url(path):
        with _remote_open(as_path(path)) as file:
            yield file
        return
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a pipe (/dev/null, /dev/stdout) is written, not replaced; a folder is refused by open().
        with open(path, "wb") as device:
            yield device
        return
    target = Path(os.path.realpath(path))
    # A name of its own length: adding to the target's name could pass the file system's limit.
    temporary = target.with_name(f".slim-{os.urandom(8).hex()}.tmp")
    try:
        # open() and not tempfile: the file gets the permissions that the user's umask asks for.
        with open(temporary, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == os.fspath(temporary):
            error.filename = os.fspath(path)  # nobody knows the other name
        raise
    if durable and os.name == "posix":  # elsewhere a folder can't be opened, and keeps its names by itself
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _remote_open(path: Any) -> Iterator[BinaryIO]:
    from fsspec.asyn import AsyncFileSystem

    # An object store shows a file once its upload is complete; others write under another name until the transaction ends.
    at_once = isinstance(path.fs, AsyncFileSystem)
    with nullcontext() if at_once else path.fs.transaction:
        file = path.fs.open(path.path, "wb")
        try:
            yield file
            file.close()
        except BaseException:
            if at_once:
                file.discard()
                file.closed = True  # or its end would upload it
            raise


def atomic_write(path: str | os.PathLike[str], data: bytes, *, durable: bool = False) -> None:
    """Write ``data`` to ``path`` as ``atomic_open`` does."""
    with atomic_open(path, durable=durable) as file:
        file.write(data)


def bytes_or_name(source: Any, error: type[SlimError], limit: int = -1) -> bytes | str | os.PathLike[str]:
    """Return bytes, or the rest of an open binary file, at most ``limit``; a path or URL as it is; else raise ``error``."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if not hasattr(source, "read"):
        if isinstance(source, str | os.PathLike) or is_url(source):
            return cast("str | os.PathLike[str]", source)
        raise error(f"{type(source).__name__} is no file; pass its bytes, its path, or the open file")
    if getattr(source, "closed", False):
        raise error("the file is closed; pass its path, or read it while it is open")
    data = source.read(limit)
    if isinstance(data, str):
        raise error("the file is open as text; open it with mode 'rb'")
    if not data:
        raise error("nothing is left to read of the open file; if it was read or written before, seek(0)")
    return bytes(data)


def file_sha256(*paths: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, or of several one after the other, in hex. Raises ``OSError``."""
    import hashlib

    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """Return the bytes of a regular file of at most ``limit`` bytes. Raises ``SlimError`` and ``OSError``."""
    # looked at before it is opened: opening a pipe waits for its writer
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise SlimError(f"{os.fspath(path)}: not a regular file")
    if state.st_size <= limit:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
        if len(data) <= limit:
            return data
    raise SlimError(f"{os.fspath(path)}: over {limit} bytes, more than such a file needs")


def load_json(path: str | os.PathLike[str], limit: int = JSON_BYTES) -> Any:
    """Return what a JSON file of at most ``limit`` bytes says. Raises ``ValueError``, and as ``read_bounded``."""
    import json  # reading a .slim file needs none, and starts faster so

    try:
        return json.loads(read_bounded(path, limit).decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def visible_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files below ``folder``, in order, those in linked folders too; names that begin with a dot are left out.

    Such names are other programs' (``.ipynb_checkpoints``, ``._photo.slim`` of macOS). A link to a folder above is not followed.
    """
    found: list[Path] = []

    def search(place: Path, above: frozenset[str]) -> None:
        real = os.path.realpath(place)
        if real not in above:
            for path in sorted(path for path in place.iterdir() if not path.name.startswith(".")):
                if path.is_dir():
                    search(path, above | {real})
                elif path.is_file():
                    found.append(path)

    search(Path(folder), frozenset())
    return sorted(found, key=lambda path: (str(path.parent), path.name))


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Whether a source reads like ``owner/name`` at the Hugging Face hub, and not like a path or a glob."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", os.fspath(source)) is not None


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the path of ``name`` in ``folder``. Raises ``SlimError`` where it, or a link, leads out of it.

    In a snapshot of the Hugging Face hub's cache every file is a link to the repository's blobs; these count as inside.
    """
    windows = PureWindowsPath(name)
    parts = (*PurePosixPath(name).parts, *windows.parts)
    if not parts or windows.anchor or name.startswith("/") or ".." in parts:
        raise SlimError(f"{name!r} is no path inside {os.fspath(folder)}; give a relative one without '..'")
    path, home = Path(folder, name), Path(os.path.realpath(folder))
    snapshot = hub_snapshot(home)
    homes = [home] if snapshot is None else [home, snapshot.parent.parent / "blobs"]
    if not any(Path(os.path.realpath(path)).is_relative_to(allowed) for allowed in homes):
        raise SlimError(f"{path}: a link that leads out of {os.fspath(folder)}; put the file itself there")
    return path


def hub_snapshot(folder: Path) -> Path | None:
    """Return the snapshot of the Hugging Face hub's cache that ``folder`` is or lies in, None for others."""
    return next((path for path in (folder, *folder.parents) if path.parent.name == "snapshots"), None)
