"""Which files a command reads and where each result goes.

- An input is a file (of any suffix), a folder (searched recursively for the command's suffixes, hidden files left out, its
  structure mirrored below OUT) or a glob (mirrored from its first folder without a wildcard). Neither a search nor ``**``
  follows links to folders, which may lead back to where they are.
- OUT is a file if the only input is a file and OUT neither is a folder nor ends in a slash; otherwise a folder, made if
  needed. Without OUT a result lies beside its input.
- Either may be a URL that fsspec opens, ``s3://bucket/photos``: a file, what begins the names of files, or a glob of it.
- ``{000..009}`` in a name that is no file stands for as many names.
- What a search passes over is counted by suffix: files of other suffixes, links to folders. A folder that cannot be read is
  an error.
- Inputs with one output, and one whose output is an input, are errors; the others are worked on.
- ``-`` is standard input or output; a file of that name is ``./-``. There is one input then, and standard output carries
  nothing but the result.
"""

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from slimcodec.cli.options import USAGE, installed, stop
from slimcodec.errors import describe
from slimcodec.files import as_path, is_file, is_folder, is_url

STREAM = "-"
#: files that hold pictures and become one such file
SHARDS = (".parquet", ".tar")


class PictureSuffixes(Collection[str]):
    """Suffixes of the pictures that Pillow reads, after those given.

    Pillow's plugins take longer to import than a picture to decode: that waits until a search asks.
    """

    def __init__(self, *first: str) -> None:
        self.first = first

    @cached_property
    def _known(self) -> frozenset[str]:
        from slimcodec.images import picture_suffixes

        return picture_suffixes()

    def __contains__(self, suffix: object) -> bool:
        return suffix in self.first or suffix in self._known

    def __iter__(self) -> Iterator[str]:
        yield from self.first
        yield from sorted(self._known)

    def __len__(self) -> int:
        return len(self.first) + len(self._known)


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


class Found(NamedTuple):
    """Files that arguments mean, (argument, reason) where there are none, and what searches passed over, by suffix."""

    inputs: list[Input]
    problems: list[tuple[str, str]]
    passed_over: Counter[str]


def find_inputs(arguments: Sequence[str], suffixes: Collection[str]) -> Found:
    """Return the files that ``arguments`` mean, in order.

    ``suffixes``, in lower case with their dot, choose among the files of a folder. Ends with status 2 for an empty name.
    """
    if "" in arguments:  # a variable of the shell that is not set
        stop("the name of an input is empty", USAGE)
    found = Found([], [], Counter())
    for argument in _expanded(arguments):
        path, before = Path(argument), len(found.inputs)
        # os.path and not Path, whose tests raise for a name that is too long
        if is_url(argument):
            problem = _find_remote(argument, suffixes, found)
        elif os.path.isdir(argument):
            passed_over = _search(path, Path(), suffixes, found)
            kind = "picture" if len(suffixes) > 1 else "".join(suffixes)
            problem = f"no {kind} file in this folder{listed(passed_over, ', but ')}"
        elif os.path.exists(argument):
            found.inputs.append(Input(path, Path(path.name), named=True))
        elif glob.has_magic(argument):
            _match(argument, suffixes, found)
            problem = "nothing matches"
        elif argument == STREAM:
            problem = "standard input is not read here; give a file"
        else:
            problem = "no such file or folder"
        if len(found.inputs) == before:
            found.problems.append((argument, problem))
    return found


def only_shards(arguments: Sequence[str]) -> bool:
    """Whether all that is found are shards; a folder that has pictures too is a folder of pictures."""
    found = find_inputs(arguments, PictureSuffixes(*SHARDS)).inputs
    return bool(found) and all(item.path.suffix.lower() in SHARDS for item in found)


def names_picture(out: str) -> bool:
    """Whether an OUT for .slim files is the name of a picture, and of no folder."""
    suffix = Path(out).suffix.lower()
    if suffix in ("", ".slim") or out.endswith(("/", os.sep)) or is_folder(out):
        return False
    return suffix in PictureSuffixes()


def _expanded(arguments: Sequence[str]) -> Iterator[str]:
    """Yield arguments, for ``{000..009}`` each of the names that it stands for."""
    for argument in arguments:
        if not re.search(r"\{.*(,|\.\.).*\}", argument) or (
            not is_url(argument) and os.path.exists(argument)
        ):
            yield argument
            continue
        with installed("webdataset", f"{argument}: a name with braces"):
            from braceexpand import braceexpand
        yield from braceexpand(argument)


def _find_remote(url: str, suffixes: Collection[str], found: Found) -> str:
    """Add the files that a URL means to ``found``; return the reason where there are none."""
    try:
        path: Any = as_path(url)
        store, name = path.fs, path.path
        if store.isdir(name):
            names, base = store.find(name), name
        elif store.exists(name):
            found.inputs.append(Input(path, Path(path.name), named=True))
            return ""
        elif glob.has_magic(name):
            names, base = store.glob(name), re.split(r"[*?\[]", name)[0].rpartition("/")[0]
        else:
            return "no such file or folder"
    except Exception as error:  # noqa: BLE001  a store's library can fail in any way
        return f"cannot be listed: {describe(error, url).removeprefix('internal error: ')}"
    for each in sorted(names):
        place = PurePosixPath(each).relative_to(base)
        hidden = any(part.startswith(".") for part in place.parts)
        if not hidden and _is_read(place, suffixes, found.passed_over):
            found.inputs.append(Input(as_path(store.unstrip_protocol(each)), Path(place)))
    return "no such file there"


def listed(counts: Counter[str], before: str) -> str:
    """Return ``before`` and counts in words, most frequent first; nothing if there are none."""
    return (before if counts else "") + ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _is_read(file: PurePath, suffixes: Collection[str], passed_over: Counter[str]) -> bool:
    """Whether a file that a search came upon is read; one that is not is counted in ``passed_over``."""
    suffix = file.suffix.lower()
    if suffix not in suffixes:
        passed_over[suffix or "without suffix"] += 1
    return suffix in suffixes


def _search(folder: Path, place: Path, suffixes: Collection[str], found: Found) -> Counter[str]:
    """Add the files of a folder to ``found``; return what was passed over."""
    passed_over: Counter[str] = Counter()

    def unreadable(error: OSError) -> None:
        found.problems.append((str(error.filename), error.strerror or str(error)))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        passed_over["linked folder"] += sum(os.path.islink(os.path.join(root, name)) for name in folders)
        for name in sorted(names):
            path = Path(root, name)
            if os.path.exists(path) and path.is_fifo():  # to open it would wait for its writer
                passed_over["pipe"] += 1
            elif not name.startswith(".") and _is_read(path, suffixes, passed_over):
                found.inputs.append(Input(path, place / path.relative_to(folder)))
    found.passed_over.update(passed_over)
    return +passed_over


def _match(pattern: str, suffixes: Collection[str], found: Found) -> None:
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    for match in sorted(set(_matches(parts))):
        place = match.relative_to(fixed)
        if match.is_dir():
            # Of `**` every folder matches as well as every file; the files then are enough.
            if "**" not in pattern:
                _search(match, place, suffixes, found)
        elif "**" not in parts[-1] or _is_read(match, suffixes, found.passed_over):
            found.inputs.append(Input(match, place))


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
    writes: Collection[str],
    as_json: bool,
    stdin_limit: int | None,
    keep_suffix: bool,
) -> tuple[list[Job], list[tuple[str, str]], bool, Counter[str]]:
    """Return jobs, (input, reason) where there is none, whether a single file was named, and what was passed over, by suffix.

    A file that is given twice is one job. ``reads``: suffixes searched for in folders. ``writes``: suffixes of results, the
    first is the default, and results of what is read keep theirs; no folder for results ends in one. ``stdin_limit``: most
    bytes read from standard input; one more is read, so that too much shows. ``keep_suffix``: a result's suffix follows
    that of its input. Ends with status 2 where the only output is the input and where a stream makes no sense.
    """
    if STREAM in (*arguments, out):
        return [_stream_job(arguments, out, as_json, stdin_limit)], [], True, Counter()
    inputs, problems, passed_over = find_inputs(arguments, reads)
    if out is not None and writes == reads:  # a search finds results of an earlier run too
        home = _identity(as_path(out)).rstrip("/") + "/"
        inputs = [item for item in inputs if not _identity(item.path).startswith(home)]
    single = len(arguments) == len(inputs) == 1 and inputs[0].named
    if single and out is not None and not is_folder(out) and not out.endswith(("/", os.sep)):
        jobs = [Job(inputs[0].path, as_path(out))]
    else:
        if (
            out is not None
            and not is_folder(out)
            and (os.path.exists(Path(out)) or is_file(out) or Path(out).suffix.lower() in writes)
        ):
            stop(f"{out}: names a file, but several inputs need a folder; choose one with -o", USAGE)
        targets = [item.path if out is None else as_path(out) / item.place for item in inputs]
        default = next(iter(writes))
        if keep_suffix:
            targets = [target.with_name(target.name + default) for target in targets]
        elif writes != reads:
            targets = [target.with_suffix(default) for target in targets]
        jobs = [Job(item.path, target) for item, target in zip(inputs, targets, strict=True)]
    jobs, clashes = _without_clashes(jobs)
    if single and clashes:
        stop(": ".join(clashes[0]), USAGE)
    counts = Counter({suffix: count for suffix, count in passed_over.items() if suffix not in writes})
    return jobs, problems + clashes, single, +counts


def _without_clashes(jobs: Sequence[Job]) -> tuple[list[Job], list[tuple[str, str]]]:
    """Return the jobs whose output is theirs alone, and the reasons of the others."""
    by_target: dict[str, dict[str, Job]] = {}
    for job in jobs:
        target = os.path.normcase(_identity(job.target))
        by_target.setdefault(target, {}).setdefault(_identity(job.source), job)
    sources = {source for group in by_target.values() for source in group}
    good, clashes = [], []
    for target, group in by_target.items():
        for job in group.values():
            others = [other.source for other in group.values() if other is not job]
            if target in sources:
                reason = f"{job.target} is an input and an output; choose another output with -o"
            elif others:
                reason = f"{job.target} would also be the result of {', '.join(map(str, others))}; "
                if any(other.parent != job.source.parent for other in others):
                    reason += "choose folders with -o, or "
                reason += "let slim encode --keep-suffix name results by the whole name"
            else:
                good.append(job)
                continue
            clashes.append((str(job.source), reason))
    return good, clashes


def _identity(path: Path) -> str:
    return str(path) if is_url(path) else os.path.realpath(path)


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
        inputs, problems, _ = find_inputs(arguments, ())
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
