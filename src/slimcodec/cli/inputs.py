"""Which files a command reads and where each result goes.

- An input is a file (of any suffix), a folder (searched recursively for the command's suffixes, hidden files left out, its
  structure mirrored below OUT) or a glob (mirrored from its first folder without a wildcard). Neither a search nor ``**``
  follows links to folders, which may lead back to where they are.
- OUT is a file if the only input is a file and OUT neither is a folder nor ends in a slash; otherwise a folder, made if
  needed. Without OUT a result lies beside its input.
- Two inputs with one output, or an output that is an input, are errors before any work.
- ``-`` is standard input or output; a file of that name is ``./-``. There is one input then, and standard output carries
  nothing but the result.
"""

import glob
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from slimcodec.cli.options import USAGE, stop

STREAM = "-"


class Input(NamedTuple):
    """A file to read, its place below OUT, and whether it was named itself, not found by searching."""

    path: Path
    place: Path
    named: bool = False


class Job(NamedTuple):
    """One file to read and the file to write from it.

    ``data``: the bytes of standard input. ``to_stdout``: write to standard output, not to ``target``.
    """

    source: Path
    target: Path
    data: bytes | None = None
    to_stdout: bool = False


def find_inputs(
    arguments: Sequence[str], suffixes: Collection[str]
) -> tuple[list[Input], list[tuple[str, str]]]:
    """Return the files that ``arguments`` mean, in order, and (argument, reason) where there are none.

    ``suffixes``, in lower case with their dot, choose among the files of a folder.
    """
    inputs: list[Input] = []
    problems: list[tuple[str, str]] = []
    for argument in arguments:
        path = Path(argument)
        # os.path and not Path, whose tests raise for a name that is too long
        if os.path.isdir(argument):
            matches = list(_search(path, Path(), suffixes))
            problem = f"no {', '.join(sorted(suffixes))} file in this folder"
        elif os.path.exists(argument):
            matches, problem = [Input(path, Path(path.name), named=True)], ""
        elif glob.has_magic(argument):
            matches, problem = list(_match(argument, suffixes)), "nothing matches"
        else:
            matches, problem = [], "no such file or folder"
        inputs += matches
        if not matches:
            problems.append((argument, problem))
    return inputs, problems


def _search(folder: Path, place: Path, suffixes: Collection[str]) -> Iterator[Input]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                path = Path(root, name)
                yield Input(path, place / path.relative_to(folder))


def _match(pattern: str, suffixes: Collection[str]) -> Iterator[Input]:
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    for match in sorted(set(_matches(parts))):
        place = match.relative_to(fixed)
        if match.is_dir():
            # Of `**` every folder matches as well as every file; the files then are enough.
            if "**" not in pattern:
                yield from _search(match, place, suffixes)
        elif "**" not in parts[-1] or match.suffix.lower() in suffixes:
            yield Input(match, place)


def _matches(parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield what a pattern matches; ``**`` is a folder and all below it, hidden ones left out."""
    if "**" not in parts:
        yield from map(Path, glob.glob(str(Path(*parts))))
        return
    at = parts.index("**")
    # os.walk and not glob's own recursion, which goes round a link to a folder above 40 times, round two 2^40 times
    for base in glob.glob(str(Path(*parts[:at]))):
        for folder, folders, _ in os.walk(base):
            folders[:] = (name for name in folders if not name.startswith("."))
            yield from _matches((*Path(glob.escape(folder)).parts, *(parts[at + 1 :] or ("*",))))


def plan(
    arguments: Sequence[str],
    out: str | None,
    reads: Collection[str],
    writes: Sequence[str],
    as_json: bool,
    stdin_limit: int | None,
) -> tuple[list[Job], list[tuple[str, str]], bool]:
    """Return a job for each input, (argument, reason) where there is none, and whether a single file was named.

    A file that is given twice is one job. ``reads``: suffixes searched for in folders. ``writes``: suffixes of results, the
    first is the default; no folder for results ends in one. ``stdin_limit``: most bytes read from standard input; one more is
    read, so that too much shows. Ends with status 2 where outputs clash and where a stream makes no sense.
    """
    if STREAM in (*arguments, out):
        return [_stream_job(arguments, out, as_json, stdin_limit)], [], True
    inputs, problems = find_inputs(arguments, reads)
    single = len(arguments) == 1 and bool(inputs) and inputs[0].named
    if out is not None and not os.path.isdir(out):
        if single and not out.endswith(("/", os.sep)):
            return _checked([Job(inputs[0].path, Path(out))]), problems, single
        if os.path.exists(Path(out)) or Path(out).suffix.lower() in writes:
            stop(f"{out}: names a file, but several inputs need a folder; choose one with -o", USAGE)
    targets = [item.path if out is None else Path(out, item.place) for item in inputs]
    jobs = [
        Job(item.path, target.with_suffix(writes[0])) for item, target in zip(inputs, targets, strict=True)
    ]
    return _checked(jobs), problems, single


def _checked(jobs: Sequence[Job]) -> list[Job]:
    by_target: dict[str, Job] = {}
    sources = {os.path.realpath(job.source) for job in jobs}
    for job in jobs:
        target = os.path.normcase(os.path.realpath(job.target))
        if target in sources:
            stop(f"{job.target}: is an input and an output; choose another output with -o", USAGE)
        other = by_target.setdefault(target, job)
        if os.path.realpath(other.source) != os.path.realpath(job.source):
            pair = f"{other.source} and {job.source}"
            stop(f"{pair}: both become {job.target}; choose folders with -o", USAGE)
    return list(by_target.values())


def _stream_job(arguments: Sequence[str], out: str | None, as_json: bool, limit: int | None) -> Job:
    if len(arguments) > 1:
        stop("- takes one input; leave out the others", USAGE)
    (argument,) = arguments
    to_stdout = out == STREAM
    if to_stdout and as_json:
        stop("-o - writes the result to standard output; leave out --json", USAGE)
    if to_stdout and sys.stdout.isatty():
        stop("-o -: standard output is a terminal; redirect it, or name a file with -o", USAGE)
    if argument != STREAM:
        inputs, problems = find_inputs(arguments, ())
        if problems or not inputs[0].named:
            stop(f"{argument}: -o - takes one file, not {problems[0][1] if problems else 'a glob'}", USAGE)
        return Job(inputs[0].path, Path(STREAM), to_stdout=True)
    if out is None:
        stop("-: standard input has no name for a result; give -o FILE, or -o - for standard output", USAGE)
    if not to_stdout and (out.endswith("/") or os.path.isdir(out)):
        stop(f"{out}: is a folder, but standard input has no name for a file in it; give -o FILE", USAGE)
    if sys.stdin is None or sys.stdin.isatty():
        stop("-: standard input is a terminal; pipe or redirect a file into it", USAGE)
    data = sys.stdin.buffer.read(-1 if limit is None else limit + 1)
    return Job(Path(STREAM), Path(out), data, to_stdout)
