"""The same work on many files: in one process or several, reported, summed up, no file ever half written.

- A bad input is reported and the rest goes on.
- An existing result is never replaced without ``--overwrite``. In a batch its input is skipped with a
  message, which is no failure, so that the same command takes up an interrupted batch; for a single input,
  whose result was the whole wish, it is one.
- Exit status: 0 all fine, 1 some failed, 2 usage, 130 interrupted.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import typer

from slimcodec.cli.messages import FAILED, INTERRUPTED, complain, printable, say, stop
from slimcodec.cli.paths import Job, find_inputs, plan
from slimcodec.cli.removal import FileState, remove_source
from slimcodec.cli.streams import stream_job, write_stdout
from slimcodec.container import SlimInfo
from slimcodec.errors import describe
from slimcodec.files import atomic_write
from slimcodec.processes import end_with_parent


@dataclass(frozen=True)
class Output:
    """What a job made: ``data`` to write, ``info`` of the .slim file that was read or made, bytes read.

    ``spent``: the state of a source that is to be removed once ``data`` is safe on disk, None to keep it.
    """

    data: bytes
    info: SlimInfo
    bytes_in: int
    spent: FileState | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its output or why there is none, what to warn of, and the seconds it took."""

    output: Output | None
    error: str = ""
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Steps:
    """What is done for jobs: each is read, all that were read are worked on together, and each result becomes an output.

    What ``read`` or ``output`` raises is that job's failure; ``work`` gives an exception in the place of a result.
    """

    read: Callable[[Job], Any]
    work: Callable[[list[Any]], Iterable[Any]]
    output: Callable[[Job, Any, Any], Output]


class Work(Protocol):
    """A command's work, picklable: ``prepare`` loads the codec and returns what does the jobs."""

    def prepare(self) -> Steps:
        """Load what all jobs need; runs once in each process."""


class CannotStartError(Exception):
    """``Work.prepare`` failed, and so would every job."""


@dataclass
class Tally:
    """What came of a batch so far."""

    rows: list[dict[str, object]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    bytes_in: int = 0
    bytes_out: int = 0
    bpp: float = 0.0

    def fail(self, source: object, reason: str) -> None:
        """Report a failure at once and remember it."""
        complain(reason, source)
        self.failed.append((str(source), reason))

    def leave(self, job: Job, single: bool) -> None:
        """Report that a job's result exists and stays: a failure if it is the ``single`` one, else skipped."""
        reason = f"{job.target} exists; --overwrite replaces it"
        if single:
            self.fail(job.source, reason)
            return
        complain(f"skipped: {reason}", job.source)
        self.skipped.append(str(job.source))

    def add(self, job: Job, output: Output, seconds: float, deleted: bool) -> None:
        """Count a file that was written, and whether its source was deleted."""
        info = output.info
        self.bytes_in += output.bytes_in
        self.bytes_out += len(output.data)
        self.bpp += info.bpp
        self.rows.append(
            {
                "source": str(job.source),
                "target": str(job.target),
                "width": info.width,
                "height": info.height,
                "bytes_in": output.bytes_in,
                "bytes_out": len(output.data),
                "bpp": info.bpp,
                "quality": info.quality,
                "caption": info.caption,
                "source_deleted": deleted,
                "seconds": round(seconds, 4),
            }
        )

    def print(self, seconds: float, as_json: bool) -> None:
        """Print the summary to stdout: a line, or a JSON object."""
        count = len(self.rows)
        mean_bpp = self.bpp / count if count else None
        if as_json:
            summary = {
                "files": self.rows,
                "skipped": self.skipped,
                "failed": [{"source": source, "error": error} for source, error in self.failed],
                "bytes_in": self.bytes_in,
                "bytes_out": self.bytes_out,
                "mean_bpp": mean_bpp,
                "seconds": round(seconds, 4),
            }
            say(json.dumps(summary, indent=2))
            return
        line = f"{count} file{'s' * (count != 1)}: {self.bytes_in:,} bytes in, {self.bytes_out:,} bytes out"
        if mean_bpp is not None:
            line += f", mean {mean_bpp:.4f} bpp"
        line += f", {seconds:.1f} s"
        if self.skipped:
            line += f"; {len(self.skipped)} skipped"
        if self.failed:
            line += f"; {len(self.failed)} failed: " + ", ".join(source for source, _ in self.failed)
        say(printable(line))


def run_batch(
    work: Work,
    arguments: Sequence[str],
    out: str | None,
    *,
    reads: Collection[str],
    writes: Sequence[str],
    jobs: int,
    overwrite: bool,
    as_json: bool,
    stdin_limit: int | None = None,
    batch_size: int = 1,
) -> None:
    """Do ``work`` on every input and print the summary; raises ``typer.Exit`` with status 1 if any failed.

    ``reads``: suffixes searched for in folders. ``writes``: suffixes of results, the first is the default.
    ``jobs``: processes, each with one thread; 1 works in this process with all threads. ``stdin_limit``: most
    bytes that standard input, given as ``-``, may hold; None for any number. ``batch_size``: jobs that are
    worked on together.
    """
    start = time.perf_counter()
    tally = Tally()
    stream = stream_job(arguments, out, as_json, stdin_limit)
    if stream is None:
        inputs, problems = find_inputs(arguments, reads)
        plans = plan(inputs, len(arguments) == 1, out, writes[0], writes)
        single = len(arguments) == 1 and bool(inputs) and inputs[0].named
    else:
        plans, problems, single = [stream], [], True
    for argument, problem in problems:
        tally.fail(argument, problem)

    def in_the_way(job: Job) -> bool:
        # not Path.is_file(), which raises for a name that is too long
        if overwrite or job.to_stdout or not os.path.isfile(job.target):
            return False
        tally.leave(job, single)
        return True

    todo = [job for job in plans if not in_the_way(job)]
    done = 0
    try:
        # Closed whatever happens here, so that no process outlives an interrupt.
        with progress(len(todo)) as advance, closing(_outcomes(work, todo, jobs, batch_size)) as outcomes:
            for job, outcome in zip(todo, outcomes, strict=True):
                # looked at again: another process may have made it meanwhile
                if outcome.output is None or not in_the_way(job):
                    _finish(job, outcome, tally)
                done += 1
                advance()
    except CannotStartError as error:
        stop(str(error), FAILED)
    except KeyboardInterrupt:
        again = "" if single else "; the same command goes on from there"
        stop(f"interrupted after {done} of {len(todo)} files{again}", INTERRUPTED)
    if stream is None or not stream.to_stdout:
        tally.print(time.perf_counter() - start, as_json)
    if tally.failed:
        raise typer.Exit(FAILED)


def _finish(job: Job, outcome: Outcome, tally: Tally) -> None:
    """Write the result; only this process writes, so ending the others never leaves a partial file."""
    for warning in outcome.warnings:
        complain(f"warning: {warning}", job.source)
    if outcome.output is None:
        tally.fail(job.source, outcome.error)
        return
    output, deleted = outcome.output, False
    if job.to_stdout:
        try:
            write_stdout(output.data)
        except OSError as error:
            tally.fail(job.source, f"cannot write to standard output: {describe(error)}")
        return
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(job.target, output.data, durable=output.spent is not None)
    except OSError as error:
        tally.fail(job.source, f"cannot write {job.target}: {describe(error)}")
        return
    if output.spent is not None:
        kept = "its warning asks for a look" if outcome.warnings else ""
        kept = kept or remove_source(job, output.data, output.spent)
        if kept:
            tally.fail(job.source, f"{job.target} is written, but the source is kept: {kept}")
        deleted = not kept
    tally.add(job, output, outcome.seconds, deleted)


def _outcomes(work: Work, todo: Sequence[Job], jobs: int, batch_size: int) -> Generator[Outcome, None, None]:
    """Yield the outcome of each job, in order. Raises ``CannotStartError`` where no job can be done."""
    chunks = [todo[start : start + batch_size] for start in range(0, len(todo), batch_size)]
    processes = min(jobs, len(chunks))
    if processes <= 1:
        if todo:
            _start(work)
        for chunk in chunks:
            yield from _do(chunk)
        return
    # Spawned and not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_alone, initargs=(work,)) as pool:
        # Ctrl-C reaches all processes; the others inherit that it is ignored, and this one ends them.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            futures = deque((len(chunk), pool.submit(_do, chunk)) for chunk in chunks)
        finally:
            signal.signal(signal.SIGINT, previous)
        try:
            while futures:
                # Taken out of the queue, so that no more results are held than are waiting to be written.
                count, future = futures.popleft()
                try:
                    outcomes = future.result()
                except BrokenProcessPool:
                    reason = "a worker process died, perhaps out of memory; try fewer --jobs"
                    outcomes = [Outcome(None, reason)] * count
                yield from outcomes
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


_steps: Steps | None = None
_obstacle = ""


def _start(work: Work) -> None:
    """Prepare this process; a failure is kept for the first job, since a pool can't report one from here."""
    global _steps, _obstacle
    try:
        _steps, _obstacle = work.prepare(), ""
    except Exception as error:  # noqa: BLE001  a hub or a device can fail in any way
        _steps, _obstacle = None, describe(error)


def _start_alone(work: Work) -> None:
    end_with_parent()
    import torch

    torch.set_num_threads(1)
    _start(work)


def _do(jobs: Sequence[Job]) -> list[Outcome]:
    if _steps is None:
        raise CannotStartError(_obstacle)
    from slimcodec.batches import attempt
    from slimcodec.images import ImageWarning

    start = time.perf_counter()
    found: list[Any] = []
    texts: list[tuple[str, ...]] = []
    for job in jobs:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ImageWarning)
            found.append(attempt(_steps.read, job))
        texts.append(tuple(str(warning.message) for warning in caught))
    good = [item for item in found if not isinstance(item, Exception)]
    made = attempt(lambda: list(_steps.work(good)))
    results = iter([made] * len(good) if isinstance(made, Exception) else made)
    outputs = [
        item if isinstance(item, Exception) else attempt(_steps.output, job, item, next(results))
        for job, item in zip(jobs, found, strict=True)
    ]
    seconds = (time.perf_counter() - start) / len(jobs)
    return [
        Outcome(None, describe(output, job.source), warned, seconds)
        if isinstance(output, Exception)
        else Outcome(output, "", warned, seconds)
        for job, output, warned in zip(jobs, outputs, texts, strict=True)
    ]


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr if that is a terminal that can; yields the function to call after each file."""
    if total < 2 or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("files", total=total)
        yield lambda: bar.advance(task)
