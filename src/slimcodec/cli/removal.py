"""Removing a source whose result is safe: in doubt it stays.

A result is safe when its bytes were decoded to symbols, lie on the disk, and read back from there the same,
with a checksum that fits. The source must be the file that was encoded: one that was written to meanwhile is
no longer what the result holds.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from slimcodec.cli.paths import Job
from slimcodec.container import read_source, unpack
from slimcodec.errors import describe


@dataclass(frozen=True)
class FileState:
    """What tells a file from another one, or from itself before it was written to."""

    device: int
    number: int
    size: int
    modified_ns: int


def file_state(path: Path) -> FileState:
    """Return the state of a file, links followed; take it before reading. Raises ``OSError``."""
    found = os.stat(path)
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def remove_source(job: Job, data: bytes, state: FileState) -> str:
    """Remove the source of a job whose result ``data`` was written; returns why it is kept, "" if removed.

    ``data``: bytes that were decoded to symbols. ``state``: of the source, before it was read. Of a symbolic
    link the link is removed, since what it points to may have other readers.
    """
    try:
        if not job.target.is_file():
            return f"{job.target} is no regular file"
        if os.path.samefile(job.source, job.target):
            return "it is its own result"
        # equal bytes decode to equal symbols: these are the bytes that were decoded
        if read_source(job.target) != data:
            return f"{job.target} reads back otherwise than it was written"
        unpack(data)  # the checksum once more
        if file_state(job.source) != state:
            return "it was changed while it was encoded"
        job.source.unlink()
    except Exception as error:  # noqa: BLE001  whatever is wrong, the source is the safer copy
        return describe(error, job.source)
    return ""
