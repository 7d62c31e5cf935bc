"""Folder runs side by side: a short run of the benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

THROUGHPUT = Path(__file__).parent.parent / "benchmarks" / "throughput.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads memory as Linux tells it")
def test_rates_and_memory_of_every_way_are_measured(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "throughput.json"
    few = ("--count", "40", "--side", "64", "--rounds", "1", "--ways", "processes", "ray", "webp")
    command = [sys.executable, str(THROUGHPUT), *few, "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    ways = report["ways"]
    assert set(ways) == {"processes", "ray", "webp"} and report["ray_over_processes"] > 0
    # the same files
    assert ways["ray"]["bytes_per_picture"] == ways["processes"]["bytes_per_picture"]
    for name, row in ways.items():
        # WebP is done so soon that its memory may be looked at once alone, while Python starts: 7 MB were seen
        least = 0 if name == "webp" else 10
        assert row["pictures_per_second"] > 0 and max(row["megabytes_by_tenth"]) > least
        assert row["starting"] + row["ending"] <= row["seconds"]
