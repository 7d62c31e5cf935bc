"""The pool of worker processes: results in order, failures that stay alone, killed workers, one thread each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import JOBS

from slimcodec.errors import FormatError, SlimError
from slimcodec.processes import SetupError, WorkerDiedError, progress, run_pool


def setup() -> Callable[[int], tuple[int, int, int]]:
    import torch

    def work(item: int) -> tuple[int, int, int]:
        if item == 3:
            raise FormatError("item 3 is bad")
        if item == 4:
            raise OSError(28, "disk full")
        if item == 99:
            time.sleep(0.5)
            os._exit(9)
        return item, os.getpid(), torch.get_num_threads()

    return work


def no_setup() -> Callable[[int], int]:
    raise OSError(2, "no such bundle")


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order_and_a_failure_stays_alone(jobs: int) -> None:
    results = list(run_pool(setup, range(12), jobs))
    good = [result for result in results if not isinstance(result, SlimError)]
    assert [item for item, _, _ in good] == [0, 1, 2, *range(5, 12)]
    assert isinstance(results[3], FormatError) and str(results[4]) == "disk full"
    processes = {process for _, process, _ in good}
    assert (os.getpid() in processes) is (jobs == 1) and len(processes) <= jobs
    if jobs > 1:
        assert {threads for _, _, threads in good} == {1}


def test_a_single_job_may_work_with_one_thread() -> None:
    import torch

    torch.set_num_threads(2)
    try:
        for one_thread, threads in ((True, 1), (False, 2)):
            result = next(run_pool(setup, [0], one_thread=one_thread))
            assert not isinstance(result, SlimError) and result[2] == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("jobs", JOBS)
def test_a_setup_that_fails_is_one_error(jobs: int) -> None:
    with pytest.raises(SetupError, match="no such bundle"):
        list(run_pool(no_setup, range(5), jobs))
    assert list(run_pool(no_setup, [], jobs)) == []


@pytest.mark.slow
def test_a_killed_worker_is_noticed() -> None:
    results = list(run_pool(setup, [0, 99, *range(5, 20)], 2))
    assert len(results) == 17
    assert not isinstance(results[0], SlimError) and isinstance(results[1], WorkerDiedError)


@pytest.mark.slow
def test_items_are_read_a_few_ahead_and_closing_ends_the_workers() -> None:
    read = []

    def items() -> Iterator[int]:
        for item in range(5, 1000):
            read.append(item)
            yield item

    pool = run_pool(setup, items(), 2)
    first = next(pool)
    assert not isinstance(first, SlimError) and len(read) < 10
    pool.close()
    assert len(read) < 20


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_workers_end_with_a_parent_that_was_killed() -> None:
    program = (
        "import os, signal, test_processes as t\n"
        "if __name__ == '__main__':\n"
        "    for result in t.run_pool(t.setup, range(5, 1000), 2):\n"
        "        print(result[1], flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    worker = int(script.stdout)
    deadline = time.monotonic() + 30
    while True:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.1)


def test_progress_without_a_terminal_reports_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    clock = iter((0.0, 10.0, 70.0, 80.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress(10, done=2, report=lines.append) as bar:
        assert not bar.shown
        for _ in range(3):
            bar.advance()
    assert lines == ["4 of 10 done, about 4 minutes left"]
