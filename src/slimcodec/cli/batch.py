"""The same work on many files: in one process or several, reported, summed up, no file ever half written.

- A bad input is reported and the rest goes on.
- An existing result is never replaced without ``--overwrite``. In a batch its input is skipped with a message, so that the
  same command resumes an interrupted batch. For a single input it is a failure.
- A source is removed only when its result is safe: its bytes were decoded to symbols, lie on the disk, and read back from
  there the same, with a checksum that fits. A source that changed meanwhile stays, and one that holds what its result does
  not, unless that loss was accepted by name.
- Exit status: 0 all fine, 1 some failed, 2 usage, 130 interrupted.
"""

import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import typer

from slimcodec.cli.inputs import Job, listed, plan
from slimcodec.cli.options import FAILED, INTERRUPTED, complain, printable, say, stop
from slimcodec.container import SlimInfo, read_source, unpack
from slimcodec.errors import ImageWarning, LossWarning, SlimError, describe
from slimcodec.files import atomic_write, is_file, is_url
from slimcodec.processes import Pool, SetupError, progress, run_pool

#: device, inode, size and time of a file: what tells it from another, or from itself before it was written to
FileState = tuple[int, int, int, int]
#: files that are named in a line or as skipped; the others are counted
SHOWN = 10


class Output(NamedTuple):
    """The result of a job: ``data`` to write, bytes read, ``info`` of the .slim file or row of the summary for a shard.

    ``source_state``: the state of a source that is to be removed once ``data`` is safe, None to keep it. ``written``: bytes of a
    result that the worker has written itself. ``kept``: what stays as it was in a shard, and why.
    """

    data: bytes
    info: SlimInfo | dict[str, Any]
    bytes_in: int
    source_state: FileState | None = None
    written: int | None = None
    kept: Sequence[tuple[str, str]] = ()


class Outcome(NamedTuple):
    """How a job ended: its output or what went wrong, what to warn of, and the seconds it took."""

    result: Output | str
    warnings: Sequence[Warning] = ()
    seconds: float = 0.0


class Steps(NamedTuple):
    """The work of a command: read each job, work on all that were read together, make each result an output.

    What ``read`` or ``output`` raises is that job's failure; ``work`` takes and gives an exception in place of a result.
    """

    read: Callable[[Job], Any]
    work: Callable[[list[Any]], Iterable[Any]]
    output: Callable[[Job, Any, Any], Output]


@dataclass
class Tally:
    """What came of a batch so far: sums over the files that were written, and the sources of the others.

    ``rows``: of a JSON summary, one for each file; None where none is asked for, so that a long batch takes no more memory.
    """

    rows: list[dict[str, Any]] | None = None
    count: int = 0
    pictures: int = 0
    pixels: int = 0
    bits: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def fail(self, source: object, reason: str) -> None:
        """Report a failure at once and remember it."""
        complain(reason, source)
        self.failed.append({"source": str(source), "error": reason})

    def add(self, row: dict[str, Any]) -> None:
        """Count a file that was written."""
        if "pictures" in row:  # a shard
            pictures, pixels, bits = row["pictures"], row["pixels"], 8 * row["bytes_out"]
        else:
            pictures, pixels = 1, row["width"] * row["height"]
            bits = row["bpp"] * pixels
        self.count += 1
        self.pictures += pictures
        self.pixels += pixels
        self.bits += bits
        self.bytes_in += row["bytes_in"]
        self.bytes_out += row["bytes_out"]
        if self.rows is not None:
            self.rows.append(row)

    def print(self, seconds: float) -> None:
        """Print the summary to stdout: a line, or a JSON object where rows were kept."""
        count, pictures = self.count, self.pictures
        if self.rows is not None:
            bpp = sum(row["bpp"] * row.get("pictures", 1) for row in self.rows)
            summary = {
                "files": self.rows,
                "skipped": self.skipped,
                "failed": self.failed,
                "passed_over": self.passed_over,
                "bytes_in": self.bytes_in,
                "bytes_out": self.bytes_out,
                "mean_bpp": bpp / pictures if pictures else None,
                "seconds": round(seconds, 4),
            }
            say(json.dumps(summary, indent=2))
            return
        line = f"{count} file{'s' * (count != 1)}"
        line += ": " if pictures == count else f" of {pictures:,} pictures: "
        line += f"{self.bytes_in:,} bytes in, {self.bytes_out:,} bytes out"
        # a shard without pictures has no bits per pixel
        line += f", {self.bits / self.pixels:.4f} bpp" if self.pixels else ""
        line += f", {seconds:.1f} s"
        if self.skipped:
            line += f"; {len(self.skipped)} skipped"
        if self.failed:
            line += f"; {len(self.failed)} failed: " + ", ".join(row["source"] for row in self.failed[:SHOWN])
            line += f" and {more} more" if (more := len(self.failed) - SHOWN) > 0 else ""
        say(printable(line + listed(self.passed_over, "; passed over: ")))


def run_batch(
    load: Callable[[], Steps],
    arguments: Sequence[str],
    out: str | None,
    *,
    reads: Collection[str],
    writes: Collection[str],
    jobs: int,
    overwrite: bool,
    as_json: bool,
    stdin_limit: int | None = None,
    batch_size: int = 1,
    keep_suffix: bool = False,
    accepted: Collection[str] = (),
    pool: Pool | None = None,
) -> None:
    """Work on every input and print the summary; raises ``typer.Exit`` with status 1 if any failed.

    ``load``: picklable; runs once in each process and loads what all jobs need. ``jobs``: processes, see ``run_pool``.
    ``batch_size``: jobs worked on together. ``accepted``: kinds of losses that need no warning. ``pool``: takes the place of
    ``run_pool``. The other arguments are those of ``plan``.
    """
    start = time.perf_counter()
    planned, problems, single, passed_over = plan(
        arguments, out, reads, writes, as_json, stdin_limit, keep_suffix
    )
    tally = Tally([] if as_json else None, passed_over=passed_over)
    for argument, problem in problems:
        tally.fail(argument, problem)

    def in_the_way(job: Job) -> bool:
        if overwrite or job.to_stdout or not is_file(job.target):
            return False
        reason = f"{job.target} exists; --overwrite replaces it"
        if single:
            tally.fail(job.source, reason)
        else:
            tally.skipped.append(str(job.source))
            if len(tally.skipped) <= SHOWN:
                complain(f"skipped: {reason}", job.source)
        return True

    todo = [job for job in planned if not in_the_way(job)]
    if (more := len(tally.skipped) - SHOWN) > 0:
        complain(f"skipped: {more} more, whose results exist too")
    chunks = [todo[first : first + batch_size] for first in range(0, len(todo), batch_size)]
    done = 0
    work = partial(run_pool, jobs=jobs) if pool is None else pool
    try:
        # Closed whatever happens here, so that no process outlives an interrupt.
        with progress(len(todo)) as bar, closing(work(partial(_load, load), chunks)) as results:
            for chunk, outcomes in zip(chunks, results, strict=True):
                if isinstance(outcomes, SlimError):
                    outcomes = [Outcome(str(outcomes))] * len(chunk)
                for job, outcome in zip(chunk, outcomes, strict=True):
                    # looked at again: another process may have made it meanwhile
                    result = outcome.result
                    if isinstance(result, str) or result.written is not None or not in_the_way(job):
                        _finish(job, outcome, tally, accepted)
                    done += 1
                    bar.advance()
    except SetupError as error:
        stop(str(error), FAILED)
    except KeyboardInterrupt:
        again = "" if single else "; the same command goes on from there"
        stop(f"interrupted after {done} of {len(todo)} files{again}", INTERRUPTED)
    if not any(job.to_stdout for job in planned):
        tally.print(time.perf_counter() - start)
    if tally.failed:
        raise typer.Exit(FAILED)


def _load(load: Callable[[], Steps]) -> Callable[[Sequence[Job]], list[Outcome]]:
    return partial(_outcomes, load())


def _outcomes(steps: Steps, jobs: Sequence[Job]) -> list[Outcome]:
    from slimcodec.batches import attempt

    start = time.perf_counter()
    inputs: list[Any] = []
    warned: list[list[Warning]] = []
    for job in jobs:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ImageWarning)
            inputs.append(attempt(steps.read, job))
        warned.append([warning.message for warning in caught if isinstance(warning.message, Warning)])
    worked = attempt(lambda: list(steps.work(inputs)))
    results = [worked] * len(jobs) if isinstance(worked, Exception) else worked
    outputs = [attempt(_output, steps, *each) for each in zip(jobs, inputs, results, strict=True)]
    seconds = (time.perf_counter() - start) / len(jobs)
    return [
        Outcome(describe(output, job.source) if isinstance(output, Exception) else output, found, seconds)
        for job, output, found in zip(jobs, outputs, warned, strict=True)
    ]


def _output(steps: Steps, job: Job, item: Any, result: Any) -> Output:
    """Make an output, and put a remote one where it belongs: many workers do that sooner than one process."""
    output = steps.output(job, item, result)
    if output.written is not None or job.to_stdout or not is_url(job.target):
        return output
    atomic_write(job.target, output.data)
    return output._replace(data=b"", written=len(output.data))


def _finish(job: Job, outcome: Outcome, tally: Tally, accepted: Collection[str]) -> None:
    """Write the result; only this process writes local files, so ending the others never leaves a partial file."""
    output = outcome.result
    losses = [warning for warning in outcome.warnings if isinstance(warning, LossWarning)]
    losses = [loss for loss in losses if loss.kind not in accepted]
    others = [warning for warning in outcome.warnings if not isinstance(warning, LossWarning)]
    removes = isinstance(output, Output) and output.source_state is not None
    # with losses, the line that says why a source is kept names them
    for warning in others if removes else [*others, *losses]:
        complain(f"warning: {warning}", job.source)
    if isinstance(output, str):
        tally.fail(job.source, output)
        return
    try:
        if job.to_stdout:
            sys.stdout.buffer.write(output.data)
            sys.stdout.buffer.flush()
            return
        if output.written is None:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(job.target, output.data, durable=output.source_state is not None)
    except OSError as error:
        place = "to standard output" if job.to_stdout else job.target
        tally.fail(job.source, f"cannot write {place}: {describe(error)}")
        return
    deleted = False
    if output.source_state is not None:
        kept = ", ".join(map(str, [*others, *losses]))
        if losses and not others:
            names = ",".join(dict.fromkeys(loss.kind for loss in losses))
            kept += f"; --overwrite --lose {names} accepts that"
        kept = kept or remove_source(job, output.data, output.source_state)
        if kept:
            tally.fail(job.source, f"{job.target} is written, but the source is kept: {kept}")
        deleted = not kept
    info = output.info
    if isinstance(info, SlimInfo):
        info = {key: getattr(info, key) for key in ("width", "height", "bpp", "quality", "caption")}
    tally.add(
        {
            "source": str(job.source),
            "target": str(job.target),
            **info,
            "bytes_in": output.bytes_in,
            "bytes_out": len(output.data) if output.written is None else output.written,
            "source_deleted": deleted,
            "seconds": round(outcome.seconds, 4),
        }
    )
    for place, reason in output.kept:
        tally.fail(f"{job.source}: {place}", f"kept as it is: {reason}")


def file_state(path: Path) -> FileState:
    """Return the state of a file, links followed; take it before reading. Raises ``OSError``."""
    state = os.stat(path)
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def remove_source(job: Job, data: bytes, state: FileState) -> str:
    """Remove the source of a job whose result ``data`` was written; return why it is kept, "" if removed.

    ``data``: bytes that were decoded to symbols. ``state``: of the source, before it was read. A symbolic link is removed
    itself, not its target, which may have other readers.
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
