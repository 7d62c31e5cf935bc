"""The scripts of examples/ that draw the pages' figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_figures_of_how_it_works_are_drawn(tmp_path: Path) -> None:
    script = ROOT / "examples" / "how_it_works.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True, timeout=300)
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    drawn = sorted(tmp_path.glob("*.webp"))
    assert drawn and all(f"images/how/{file.name}" in page for file in drawn)
