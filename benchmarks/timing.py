"""Clocks of the benchmarks: operations that take turns, and fresh processes with their time and memory."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: ends what a fresh process does; not getrusage, whose peak begins with that of the process that started this one
PEAK = r"""
import re
print(int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def median_milliseconds(
    operations: Mapping[str, Callable[[int], object]],
    count: int,
    rounds: int,
    *,
    warm_up: int = 2,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """The median of each operation on pictures 0 to ``count`` - 1, the operations by turns, after rounds of warming up."""
    taken: dict[str, list[float]] = {name: [] for name in operations}
    for round_number in range(rounds + warm_up):
        for number in range(count):
            for name, operation in operations.items():
                start = clock()
                operation(number)
                if round_number >= warm_up:
                    taken[name].append(clock() - start)
    return {name: statistics.median(values) * 1000 for name, values in taken.items()}


def process_seconds(command: Sequence[Any], environment: dict[str, str] | None = None) -> tuple[float, float]:
    """Wall-clock time, and user and system time, of a fresh process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak_megabytes(script: str, *arguments: str) -> int:
    """Peak resident memory, in MB, of a fresh process that runs a script of Python."""
    command = [sys.executable, "-c", script + PEAK, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
