"""What tests share: real photos, the command ``slim`` in this process or in one of its own, golden files."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from skimage import data

from slimcodec.cli import main

GOLDEN = Path(__file__).parent / "golden"
#: a bundle of a few kilobytes with every part that slim-tiny has
SMALL = GOLDEN / "small"
#: the command in a process of its own
SLIM = (sys.executable, "-m", "slimcodec.cli")
#: one process, and several, whose start takes seconds
JOBS = (1, pytest.param(2, marks=pytest.mark.slow))
#: options that choose the small bundle
SMALL_OPTIONS = ("--model", str(SMALL), "--dtype", "float32")


class Result(NamedTuple):
    """Exit status, standard output and standard error of a command that ran in this process."""

    status: int
    out: str
    err: str


class ProcessResult(NamedTuple):
    """Exit status, standard output and standard error of a command that ran in a process of its own."""

    status: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        """Standard error, line by line."""
        return self.err.splitlines()


def slim(*arguments: object) -> int:
    """Run the command in this process; returns its exit status."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


def slim_process(
    *arguments: object,
    stdin: bytes = b"",
    folder: Path | None = None,
    env: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> ProcessResult:
    """Run the command in a process of its own and check what holds for every run; ``before`` runs in it first."""
    done = subprocess.run(
        [*SLIM, *map(os.fsencode, map(str, arguments))],
        input=stdin,
        capture_output=True,
        check=False,
        cwd=folder,
        env=env,
        preexec_fn=before,
    )
    err = done.stderr.decode("utf-8", "backslashreplace")
    assert "Traceback" not in err and "Exception ignored" not in err, err
    return ProcessResult(done.returncode, done.stdout, err)


#: scikit-image's photos
NAMES = ("astronaut", "chelsea", "coffee", "rocket")


@lru_cache
def photo(name: str, width: int = 256, height: int = 256) -> Image.Image:
    """A photo squeezed to a size; the same every time."""
    original = Image.fromarray(np.asarray(getattr(data, name)()))
    return original.resize((width, height), Image.Resampling.LANCZOS)


def psnr(a: Any, b: Any) -> float:
    """Peak signal-to-noise ratio of two pictures of one size, or arrays, dB."""
    error = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(10 * np.log10(255**2 / max(float((error**2).mean()), 1e-9)))


def tiff(
    samples: bytes, size: tuple[int, int], bits: int, tags: dict[int, int] | None = None, gap: bytes = b""
) -> bytes:
    """A little-endian grey TIFF file of one strip; ``tags`` add to its own or replace them, ``gap`` follows its header."""
    start = 8 + len(gap)
    own = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: 1, 277: 1, 278: size[1], 279: len(samples)}
    entries = own | (tags or {})
    entries[273] = start + 6 + 12 * (len(entries) + 1)
    table = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return (
        struct.pack("<2sHI", b"II", 42, start)
        + gap
        + struct.pack("<H", len(entries))
        + table
        + bytes(4)
        + samples
    )
