"""Checkpoints on disk: one file, or several of a bounded size."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch

from slimcodec.files import atomic_open, atomic_write

#: what a part of a checkpoint adds to its name: the step, its number, and how many there are
PART = re.compile(r"\.(\d+)-(\d+)-of-(\d+)")


def save_tensors(state: Any, path: Path, step: int = 0, megabytes: int = 0) -> None:
    """``torch.save`` that leaves the old file whole when it is killed.

    ``megabytes``: writes parts of at most so many, ``path`` with ``PART`` behind it; older ones go when the last is written.
    """
    if not megabytes:
        with atomic_open(path) as file:
            torch.save(state, file)
        written = {path}
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content, size = buffer.getbuffer(), megabytes * 1_000_000
        count = -(-len(content) // size)
        places = [path.with_name(f"{path.name}.{step}-{number}-of-{count}") for number in range(count)]
        for number, place in enumerate(places):
            atomic_write(place, bytes(content[number * size : (number + 1) * size]))
        written = set(places)
    for old in {path, *path.parent.glob(f"{path.name}.*")} - written:
        if old == path or PART.fullmatch(old.name.removeprefix(path.name)):
            old.unlink(missing_ok=True)


def load_tensors(path: Path) -> Any:
    """What ``save_tensors`` wrote last, on the processor; None where there is nothing whole."""
    found: dict[tuple[int, int], list[Path]] = {}
    for part in path.parent.glob(f"{path.name}.*"):
        if match := PART.fullmatch(part.name.removeprefix(path.name)):
            step, _, count = map(int, match.groups())
            found.setdefault((step, count), []).append(part)
    whole = [key for key, parts in found.items() if len(parts) == key[1]]
    if whole:
        step, count = max(whole)
        places = (path.with_name(f"{path.name}.{step}-{number}-of-{count}") for number in range(count))
        content = io.BytesIO(b"".join(place.read_bytes() for place in places))
        return torch.load(content, map_location="cpu", weights_only=True)
    # several processes on processors have devices of names ("cpu:0") to which tensors cannot be mapped in reading
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
