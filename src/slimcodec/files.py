"""Writing files so that a reader sees the old bytes or the new ones, never half of them."""

import os
import secrets
from pathlib import Path


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
