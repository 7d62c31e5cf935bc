"""Which files a command means and where each result goes.

- An input is a file (of any suffix), a folder (searched recursively for the command's suffixes, hidden files
  left out, its structure mirrored below OUT) or a glob (mirrored from its first folder without a wildcard).
  Neither a search nor ``**`` goes through links to folders, which may lead back to where they are.
- OUT is a file if the only input is a file and OUT neither is a folder nor ends in a slash; otherwise a
  folder, made if needed. Without OUT a result lies beside its input.
- Two inputs with one output, or an output that is an input, are errors before any work.
"""

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slimcodec.cli.messages import USAGE, stop


@dataclass(frozen=True)
class Input:
    """A file to read, its place below OUT, and whether it was named itself, not found by searching."""

    path: Path
    place: Path
    named: bool


@dataclass(frozen=True)
class Job:
    """One file to read and the file to write from it.

    ``data``: what was read of it already, as standard input is. ``to_stdout``: write there, not to ``target``.
    """

    source: Path
    target: Path
    data: bytes | None = None
    to_stdout: bool = False

    def read(self) -> bytes:
        """Return the bytes of the source. Raises ``OSError``."""
        return self.source.read_bytes() if self.data is None else self.data


def find_inputs(
    arguments: Sequence[str], suffixes: Collection[str]
) -> tuple[list[Input], list[tuple[str, str]]]:
    """Return the files that ``arguments`` mean, in order, and (argument, reason) where there are none.

    ``suffixes``, in lower case with their dot, choose among the files of a folder.
    """
    found: list[Input] = []
    problems: list[tuple[str, str]] = []
    for argument in arguments:
        path = Path(argument)
        # os.path and not Path, whose tests raise for a name that is too long
        if os.path.isdir(argument):
            inputs = list(_search(path, Path(), suffixes))
            problem = f"no {', '.join(sorted(suffixes))} file in this folder"
        elif os.path.exists(argument) or not glob.has_magic(argument):
            inputs = [Input(path, Path(path.name), named=True)] if os.path.exists(argument) else []
            problem = "no such file or folder"
        else:
            inputs = list(_match(argument, suffixes))
            problem = "nothing matches"
        found += inputs
        if not inputs:
            problems.append((argument, problem))
    return found, problems


def _search(folder: Path, place: Path, suffixes: Collection[str]) -> Iterator[Input]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                path = Path(root, name)
                yield Input(path, place / path.relative_to(folder), named=False)


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
            yield Input(match, place, named=False)


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
    inputs: Sequence[Input], alone: bool, out: str | None, suffix: str, suffixes: Collection[str]
) -> list[Job]:
    """Return a job for each of ``inputs``, a file given twice once; end with status 2 where outputs clash.

    ``alone``: the command got one argument. ``suffix`` is what results get, ``suffixes`` what no folder for
    results has.
    """
    folder = None if out is None else Path(out)
    if out is not None and folder is not None and not os.path.isdir(folder):
        if alone and inputs and inputs[0].named and not out.endswith(("/", os.sep)):
            return _checked([Job(inputs[0].path, folder)])
        if os.path.exists(folder):
            stop(f"{out}: is a file, but several inputs need a folder", USAGE)
        if folder.suffix.lower() in suffixes:
            stop(f"{out}: names one file, but several inputs need a folder", USAGE)
    return _checked(
        [
            Job(item.path, (item.path if folder is None else folder / item.place).with_suffix(suffix))
            for item in inputs
        ]
    )


def _checked(jobs: Sequence[Job]) -> list[Job]:
    by_target: dict[str, Job] = {}
    sources = {os.path.realpath(job.source) for job in jobs}
    for job in jobs:
        target = os.path.normcase(os.path.realpath(job.target))
        if target in sources:
            stop(f"{job.target}: is an input and would be an output too; choose another with -o", USAGE)
        other = by_target.setdefault(target, job)
        if os.path.realpath(other.source) != os.path.realpath(job.source):
            stop(
                f"{other.source} and {job.source} would both become {job.target}; choose folders with -o",
                USAGE,
            )
    return list(by_target.values())
