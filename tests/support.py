"""What tests share: the command ``slim``, run in this process or in one of its own, and where golden files lie."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

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
