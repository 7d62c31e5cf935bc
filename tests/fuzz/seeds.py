"""Inputs that fuzzing begins with: the corpus in the tree, and sound inputs of every kind."""

from __future__ import annotations

import random
from pathlib import Path

import reference_coder
from fuzz.harnesses import TABLES, indices_of, plain_tables
from fuzz.mutator import CORPUS, golden_files

from slimcodec.container import unpack


def corpus(harness: str) -> list[Path]:
    """Files in the tree for a harness: those of its own folder, for whole files the ``.slim`` files."""
    own = sorted(path for path in (CORPUS / harness).glob("*") if path.is_file())
    return own + (sorted(CORPUS.glob("*.slim")) if harness in ("container", "picture") else [])


def seeds(harness: str) -> list[bytes]:
    """The corpus of a harness, and inputs made of golden files and of random symbols."""
    found = [path.read_bytes() for path in corpus(harness)]
    files = golden_files()
    if harness in ("container", "picture"):
        return found + files
    if harness == "behind_checksum":
        return found + [data[:-4] for data in files]
    if harness == "caption":
        return found + [section for data in files if (section := unpack(data).caption)]
    return found + [_payload(number) for number in range(24)]


def _payload(number: int) -> bytes:
    """A sound input of the harness ``entropy``: symbols near 0, some of them beyond their table."""
    rng = random.Random(number)
    heads = [(rng.randrange(65), rng.randrange(256)) for _ in range(number % 3 + 1)]
    calls = []
    for count, seed in heads:
        indices = indices_of(count, seed)
        far = [rng.randrange(-32767, 32768) if rng.random() < 0.05 else None for _ in indices]
        near = [rng.randrange(-1, 2) * rng.randrange(int(TABLES.radii[i]) + 1) for i in indices]
        calls.append(([n if f is None else f for f, n in zip(far, near, strict=True)], indices))
    payload = reference_coder.encode(plain_tables(), calls)
    return bytes([len(heads) - 1, *(byte for head in heads for byte in head)]) + payload
