"""Files: written so that a reader sees the old bytes or the new ones, and read without trusting their size or place."""

import os
import secrets
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from slimcodec.errors import SlimError

#: most bytes of a JSON file that is read: a tokenizer's is the longest, with some ten million
JSON_BYTES = 1 << 26


def atomic_write(path: str | os.PathLike[str], data: bytes, *, durable: bool = False) -> None:
    """Write ``data`` to ``path``: the file appears whole or not at all.

    The bytes go to a temporary name in the same folder, which then takes the place of ``path``; on any
    failure, an interrupt included, the temporary file is removed and ``path`` is as it was. A symbolic link
    is written through. ``durable``: return only when the system says that the file, under its name, would
    outlast a power failure. Raises ``OSError`` as ``open`` does; the folder must exist.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a pipe (/dev/null, /dev/stdout) is written, not replaced; a folder is refused by open().
        with open(path, "wb") as device:
            device.write(data)
        return
    target = Path(os.path.realpath(path))
    # A name of its own length: adding to the target's name could pass the file system's limit.
    temporary = target.with_name(f".slim-{secrets.token_hex(8)}.tmp")
    try:
        # open() and not tempfile: the file gets the permissions that the user's umask asks for.
        with open(temporary, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":  # elsewhere a folder can't be opened, and keeps its names by itself
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a file; ``SlimError`` for one of more than ``limit`` bytes, a pipe or a device, ``OSError`` as ``open``."""
    # looked at before it is opened: opening a pipe waits for its writer
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise SlimError(f"{os.fspath(path)}: not a regular file")
    if found.st_size <= limit:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
        if len(data) <= limit:
            return data
    raise SlimError(f"{os.fspath(path)}: over {limit} bytes, more than such a file needs")


def load_json(path: str | os.PathLike[str], limit: int = JSON_BYTES) -> Any:
    """What a JSON file of at most ``limit`` bytes says; ``ValueError`` if it is none, else as ``read_bounded``."""
    import json  # reading a .slim file needs none, and starts faster so

    try:
        return json.loads(read_bounded(path, limit).decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of a name in a folder; ``SlimError`` where the name, or a symbolic link, leads out of it.

    In a snapshot of the Hugging Face hub's cache, where every file is a link, links to the repository's blobs are inside.
    """
    windows = PureWindowsPath(name)
    parts = (*PurePosixPath(name).parts, *windows.parts)
    if not parts or windows.anchor or name.startswith("/") or ".." in parts:
        raise SlimError(f"{name!r} is no path inside {os.fspath(folder)}; give a relative one without '..'")
    path, home = Path(folder, name), Path(os.path.realpath(folder))
    snapshot = hub_snapshot(home)
    homes = [home] if snapshot is None else [home, snapshot.parent.parent / "blobs"]
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(allowed) for allowed in homes):
        raise SlimError(f"{path}: a link that leads out of {os.fspath(folder)}; put the file itself there")
    return path


def hub_snapshot(folder: Path) -> Path | None:
    """The snapshot of the Hugging Face hub's cache that a folder is or lies in, None for any other folder."""
    return next((path for path in (folder, *folder.parents) if path.parent.name == "snapshots"), None)
