"""Work on many items: a pool of worker processes, and a progress bar on the terminal."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from slimcodec.errors import SlimError, describe

T = TypeVar("T")
R = TypeVar("R")
Setup = Callable[[], Callable[[T], R]]
#: what ``run_pool`` does, and a cluster may do: set up workers, yield the result of each item in order
Pool = Callable[[Callable[[], Callable[[Any], Any]], Iterable[Any]], Generator[Any, None, None]]
Report = Callable[[str], None]
#: items that are given to each worker ahead, so that none waits and the items of a long list need not fit in memory
AHEAD = 3
#: the variable by which ONNX Runtime's networks, torch and numpy are told how many threads to take
THREADS = "OMP_NUM_THREADS"
#: seconds between two lines of a progress report without a terminal
REPORT_EVERY = 60


class SetupError(SlimError):
    """No worker could be set up, so no item can be done."""


class WorkerDiedError(SlimError):
    """The process that worked on an item was killed, as the system does when memory runs out."""


def run_pool(
    setup: Setup[T, R], items: Iterable[T], jobs: int = 1, *, one_thread: bool = False
) -> Generator[R | SlimError, None, None]:
    """Yield the result of every item in order; a failed item yields its error and does not stop the rest.

    ``setup`` runs once in each process and returns the function that does an item. Several ``jobs`` are as many processes with
    one thread each; ``setup``, items and results must be picklable then. They end with this process, however it ends, and when
    the generator is closed. A single job is done in this process, with all its threads or with ``one_thread``. ``items`` is
    read a few items ahead.

    Raises ``SetupError`` where ``setup`` fails. The items after a killed worker yield ``WorkerDiedError``.
    """
    remaining = iter(items)
    first = list(islice(remaining, AHEAD * jobs))
    jobs = min(jobs, len(first))
    if jobs <= 1:
        if first:
            with _single_thread() if one_thread else nullcontext():
                set_up(setup)
                yield from map(do_item, chain(first, remaining))
        return
    # a single job, the most frequent, starts faster without them
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    def submit(item: T) -> Future[Any]:
        try:
            return pool.submit(do_item, item)
        except BrokenProcessPool as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    # Spawned and not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_start_worker, initargs=(setup,)) as pool:
        # Ctrl-C reaches all processes; the workers inherit that it is ignored, and this process ends them.
        with _ignored_interrupts():
            waiting = deque(map(submit, first))
        try:
            while waiting:
                # Taken out of the queue, so that no more results are held than are waited for.
                future = waiting.popleft()
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield WorkerDiedError("a worker process died, perhaps out of memory; try fewer --jobs")
                waiting.extend(map(submit, islice(remaining, 1)))
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are set by the main thread alone
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _single_thread() -> Iterator[None]:
    before = os.environ.get(THREADS)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    take_one_thread()
    try:
        yield
    finally:
        os.environ.pop(THREADS)
        if before is not None:
            os.environ[THREADS] = before
        if torch:
            torch.set_num_threads(threads)


def take_one_thread() -> None:
    """One thread for what is loaded already and for what will be."""
    os.environ[THREADS] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


_function: Callable[[Any], Any] | None = None
_setup_error = ""


def set_up(setup: Setup[Any, Any]) -> None:
    """Prepare this process; an error is kept for the first item, since a pool can't report one from here."""
    global _function, _setup_error
    try:
        _function, _setup_error = setup(), ""
    except Exception as error:  # noqa: BLE001  a hub or a device can fail in any way
        _function, _setup_error = None, describe(error)


def _start_worker(setup: Setup[Any, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    take_one_thread()
    set_up(setup)


def _end_with_parent() -> None:
    """End this worker as soon as its parent has ended, however that did.

    A worker waits on a pipe whose other end it holds as well: if its parent was killed, it would wait for ever.
    """
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def do_item(item: Any) -> Any:
    if _function is None:
        raise SetupError(_setup_error)
    try:
        return _function(item)
    except SlimError as error:
        return error
    except Exception as error:  # noqa: BLE001  any library's error; not all of them can be pickled
        return SlimError(describe(error))


class Bar:
    """Progress of ``total`` items of which some are ``done``; ``shown`` says whether a terminal draws it."""

    def __init__(
        self, total: int, done: int, draw: Callable[..., None] | None, report: Report | None
    ) -> None:
        self.shown = draw is not None
        self._total, self._first, self._done = total, done, done
        self._draw, self._report = draw, report
        self._begin = self._last = time.monotonic()

    def advance(self, note: str = "") -> None:
        """Count an item; ``note`` stands beside the bar."""
        self._done += 1
        if self._draw is not None:
            self._draw(completed=self._done, note=note)
        elif self._report is not None and (now := time.monotonic()) - self._last > REPORT_EVERY:
            self._last = now
            left = (now - self._begin) / (self._done - self._first) * (self._total - self._done)
            self._report(f"{self._done} of {self._total} done, about {left / 60:.0f} minutes left")


@contextmanager
def progress(total: int, what: str = "files", done: int = 0, report: Report | None = None) -> Iterator[Bar]:
    """Show a bar on stderr if that is a terminal; yields the ``Bar`` whose ``advance`` counts an item.

    ``done``: items that are done already. ``report``: takes a line a minute where there is no terminal.
    """
    if total < 2 or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield Bar(total, done, None, report)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done, note="")
        yield Bar(total, done, partial(bar.update, task), report)


def track(items: Sequence[T], what: str = "files") -> Iterator[T]:
    """Yield ``items`` while a bar shows the progress."""
    with progress(len(items), what) as bar:
        for item in items:
            yield item
            bar.advance()
