"""A folder run that is killed and taken up again: a short run of the benchmark that does it 200 times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parent.parent / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes as Linux tells them")
def test_killed_runs_leave_whole_files_and_are_taken_up(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    command = [sys.executable, str(KILLS), "--kills", "4", "--photos", "40", "--seed", "1", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["kills"] == 4 and report["passes"] >= 1
    assert [report[kind] for kind in ("partial", "lost", "orphans", "unfinished")] == [0] * 4
