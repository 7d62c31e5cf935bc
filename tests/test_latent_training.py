"""A classifier trained on latents, pictures and files of other codecs: a short run of the benchmark."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import NAMES, photo

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TRAINING = Path(__file__).parent.parent / "benchmarks" / "latent_training.py"


@pytest.mark.slow
def test_networks_learn_from_latents_pictures_and_other_files(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for name in NAMES[:2]:
        for number in range(5):
            file = io.BytesIO()
            photo(name, 260 + 4 * number, 256).save(file, "JPEG")
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": name})
    rows.append({**rows[0], "label": None})
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "photos.parquet")
    out = tmp_path / "training.json"
    few = ("--classes", "2", "--limit", "4", "--epochs", "2", "--seeds", "1")
    command = [
        sys.executable,
        str(TRAINING),
        "--photos",
        str(tmp_path / "photos.parquet"),
        *few,
        "-o",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert (report["train"], report["test"], len(report["classes"])) == (6, 2, 2)
    ways = report["ways"]
    assert set(ways) == {"jpeg", "avif", "pictures", "latents"}
    assert ways["pictures"]["bytes_per_picture"] == ways["latents"]["bytes_per_picture"]
    # networks of about equal cost
    costs = [ways[way]["million_multiplications"] for way in ("pictures", "latents")]
    assert abs(costs[0] / costs[1] - 1) < 0.1
    assert ways["jpeg"]["behind_jpeg"] == 0
