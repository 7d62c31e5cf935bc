"""Standard input and output as a command's input and output, both written ``-``.

A file whose name is a dash is ``./-``. There is one input then, and nothing but the result on standard output.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from slimcodec.cli.messages import USAGE, stop
from slimcodec.cli.paths import Job, find_inputs

STREAM = "-"


def stream_job(arguments: Sequence[str], out: str | None, as_json: bool, limit: int | None) -> Job | None:
    """Return the one job of a command with ``-`` for its input or OUT, None if it has neither.

    ``limit``: most bytes read from standard input; one more is read, so that too much shows. Ends with
    status 2 where a stream makes no sense: beside other inputs, on a terminal, without a name for a result.
    """
    if STREAM not in (*arguments, out):
        return None
    if len(arguments) > 1:
        stop("- is standard input or output, for which there is one input; leave out the others", USAGE)
    (argument,) = arguments
    to_stdout = out == STREAM
    if to_stdout and as_json:
        stop("-o - gives standard output to the result; leave out --json", USAGE)
    if to_stdout and sys.stdout.isatty():
        stop("the result is no text for a terminal; redirect it, or name a file with -o", USAGE)
    if argument == STREAM:
        return _from_stdin(out, to_stdout, limit)
    inputs, problems = find_inputs(arguments, ())
    if problems or not inputs[0].named:
        stop(f"{argument}: -o - takes one file, not {problems[0][1] if problems else 'a glob'}", USAGE)
    return Job(inputs[0].path, Path(STREAM), to_stdout=True)


def _from_stdin(out: str | None, to_stdout: bool, limit: int | None) -> Job:
    if out is None:
        stop("standard input has no name to make a result's from; give -o FILE, or -o - for output", USAGE)
    if not to_stdout and (out.endswith("/") or os.path.isdir(out)):
        stop(f"{out}: is a folder, but standard input has no name for a file in it; give -o FILE", USAGE)
    if sys.stdin is None or sys.stdin.isatty():
        stop("- reads standard input, which is a terminal; pipe or redirect a file into it", USAGE)
    data = sys.stdin.buffer.read(-1 if limit is None else limit + 1)
    return Job(Path(STREAM), Path(out), data, to_stdout)


def write_stdout(data: bytes) -> None:
    """Write a result to standard output, all of it. Raises ``OSError``, as when its reader has gone."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
