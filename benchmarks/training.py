"""Throughput, peak memory and share of time spent on data of every training stage, a process each.

    python benchmarks/training.py --config tiny-cpu --set data='photos-*.parquet' --set teachers.models='*.pt' -o results/training.json

The first lines of each log are left out: caches are cold there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from slimcodec.training import STAGES
from slimcodec.training.recipe import load_recipe

#: log lines that count, after as many that do not
LINES = 4
STEPS_A_LINE = 10


def measure(stage: str, config: str, settings: list[str], folder: str) -> dict[str, Any]:
    """Runs a stage for a while; images per second, share of time waiting for data, peak memory in MB."""
    steps = 2 * LINES * STEPS_A_LINE
    options = [
        *settings,
        f"out={folder}",
        f"{stage}.optimisation.steps={steps}",
        f"reports.log_every={STEPS_A_LINE}",
        "reports.sample_every=0",
        "reports.checkpoint_every=100000",
    ]
    if stage in ("autoencoder", "compressor"):
        # with the classifiers' features from the first step on: the dearer part of the stage
        options.append(f"{stage}.features.start=0.0")
    command = [sys.executable, "-m", "slimcodec.cli", "train", stage, "-c", config]
    with subprocess.Popen(
        command + [part for option in options for part in ("--set", option)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{stage}: {errors[-2000:]}")
    lines = [json.loads(line) for line in (Path(folder) / f"{stage}.jsonl").read_text().splitlines()][LINES:]
    recipe = getattr(load_recipe(config, settings), stage).optimisation
    return {
        "stage": stage,
        "batch": recipe.batch,
        "crop": recipe.crop,
        "images_per_second": round(sum(line["images_per_second"] for line in lines) / len(lines), 1),
        "data_percent": round(100 * sum(line["data_share"] for line in lines) / len(lines), 1),
        "peak_megabytes": round(used.ru_maxrss / 1024),
    }


def main() -> None:
    """Measures all stages and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="tiny-cpu")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument(
        "--targets", type=Path, help="targets.pt of an earlier run on the same photos, to save its time"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.targets:
            shutil.copy(arguments.targets, Path(folder) / "targets.pt")
        for stage in STAGES:
            rows.append(measure(stage, arguments.config, arguments.settings, folder))
            print(rows[-1], flush=True)
    result = {
        "config": arguments.config,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "processor": platform.processor() or platform.machine(),
        "stages": rows,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
