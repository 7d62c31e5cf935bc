"""The exactness matrix: symbols written in one configuration, read and written in others and by other programs.

    python benchmarks/exactness.py --photos PHOTOS [--count 200] [--side 144] [--jobs 1]

Every photo is encoded once at five qualities, in the reference configuration. Then a fresh process per row of the
matrix reads every file (symbols and decoded values are compared), and makes every file anew from the values that its exact stage
was given (bytes are compared). Rows whose floating point differs encode the photos themselves too, and the reference reads
their files. The prior's networks are run again on batches of several files, and in numpy's int64. A row for a GPU is
measured where there is one.

Writes results/exactness.json and, made from it, docs/exactness.md. Exit status 1 if a file differed anywhere.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from photos import photo_options, photos
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))
sys.path.append(str(ROOT / "tests"))

from exact.cells import CONFIGURATIONS, QUALITIES, REFERENCE, Configuration

BATCHES = (2, 7, 32)
PHOTOS, FILES, OWN = "photos", "files", "own"


# ---- steps, each in a process of its own ------------------------------------------------------------------------


def run_step(step: str, folder: Path, bundle: str | None) -> Any:
    """What a step finds; its name is ``write``, ``own``, ``batches``, ``numpy``, or ``row`` and a number."""
    import torch
    from exact import cells

    files = folder / FILES
    if step.startswith("row"):
        number = int(step.removeprefix("row"))
        configuration = CONFIGURATIONS[number]
        counts = cells.row(configuration, bundle, files)
        if configuration.encodes:
            with cells.configured(configuration):
                codec = cells.load(configuration, bundle)
                cells.write(codec, pictures(folder), QUALITIES, folder / f"{OWN}{number}")
        return counts
    with cells.configured(REFERENCE):
        codec = cells.load(REFERENCE, bundle)
        if step == "write":
            cells.write(codec, pictures(folder), QUALITIES, files)
            capability: str = torch.backends.cpu.get_cpu_capability()
            return {"bundle": codec.bundle.bundle_id, "instructions": capability}
        if step == "own":
            return {path.name: cells.read_differently(codec, path) for path in folder.glob(f"{OWN}*")}
        if step == "batches":
            return cells.batches(codec, files, BATCHES)
        return cells.numpy_reference(codec, files)


def pictures(folder: Path) -> list[Image.Image]:
    """The photos as they were saved for all steps."""
    return [Image.open(path) for path in sorted((folder / PHOTOS).iterdir())]


def call(step: str, folder: Path, bundle: str | None, environment: dict[str, str]) -> Any:
    """``run_step`` in a fresh process."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    command += ["--bundle", bundle] if bundle else []
    started = time.perf_counter()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment}
    )
    print(f"{step}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_row(number: int, folder: Path, bundle: str | None) -> dict[str, Any]:
    """A row of the matrix: files that differ, or None where the device is not at hand."""
    import torch

    configuration = CONFIGURATIONS[number]
    measured: dict[str, Any] = {"configuration": configuration.name, **_axes(configuration)}
    if configuration.device == "cuda" and not torch.cuda.is_available():
        return measured | {"read": None, "written": None}
    return measured | call(f"row{number}", folder, bundle, dict(configuration.environment))


def _axes(configuration: Configuration) -> dict[str, Any]:
    return {
        "device": configuration.device,
        "runtime": configuration.runtime,
        "threads": configuration.threads,
        "networks": configuration.dtype,
        "autocast": configuration.autocast,
        "layout": configuration.layout,
        "onednn": configuration.onednn,
        "deterministic": configuration.deterministic,
        "environment": dict(configuration.environment),
    }


# ---- the report --------------------------------------------------------------------------------------------------


def mismatches(report: dict[str, Any]) -> int:
    """All mismatches of a report."""
    counts = [row[key] or 0 for row in report["rows"] for key in ("read", "written", "own")]
    return sum(counts) + sum(report["batches"].values()) + report["numpy"]


def markdown(report: dict[str, Any]) -> str:
    """The report as the page docs/exactness.md."""
    files, versions = report["files"], report["versions"]
    lines = [
        "# Exactness",
        "",
        "`benchmarks/exactness.py` writes this page from results/exactness.json; do not edit it.",
        "",
        f"{report['photos']} photos of {report['data']}, {report['side']}x{report['side']}, at qualities {', '.join(map(str, report['qualities']))}:",
        f"{files} files of bundle {report['bundle']}. **{mismatches(report)} mismatches in total.** Command:",
        "",
        f"    {report['command']}",
        "",
        "Each row is a fresh process. Its name says how it differs from the reference: one thread, float32, channels-last,",
        "oneDNN on, no flags.",
        "",
        "| column | counts files |",
        "|---|---|",
        "| read | whose symbols or decoded values differ from those written |",
        "| written | whose bytes differ when the file is written again from the same values |",
        "| own | that this row encoded, where floating point may choose other symbols, and the reference reads differently |",
        "",
        "| configuration | runtime | read | written | own |",
        "|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if row["read"] is None:
            lines.append(
                f"| {_described(row)} | {row['runtime']} | not available | not available | not available |"
            )
            continue
        own = "-" if row["own"] is None else f"{row['own']} of {files}"
        lines.append(
            f"| {_described(row)} | {row['runtime']} | {row['read']} of {files} | {row['written']} of {files} | {own} |"
        )
    lines += [
        "",
        "The prior's networks in batches, and in plain integers, compared with torch on one file at a time:",
        "",
        "| where | files that differ |",
        "|---|---|",
        *(f"| torch, batches of {size} files | {n} of {files} |" for size, n in report["batches"].items()),
        f"| numpy int64 and Python integers, without torch (tests/reference_prior.py): read | {report['numpy']} of {files} |",
        "",
        f"Processor: {report['processor']}, instructions up to {report['instructions']}. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". {report['seconds'] / 60:.0f} minutes with `--jobs {report['jobs']}`.",
        "",
    ]
    return "\n".join(lines)


def _described(row: dict[str, Any]) -> str:
    variables = " ".join(f"`{name}={value}`" for name, value in row["environment"].items())
    details = {
        "all at once": "3 threads, bfloat16 networks and autocast, strided, oneDNN off, deterministic",
        "strided": "weights and inputs with gaps in memory",
        "contiguous": "networks not channels-last",
        "bfloat16": "networks",
        "float16": "networks",
    }
    detail = ", ".join(filter(None, (details.get(row["configuration"], ""), variables)))
    return row["configuration"] + (f" ({detail})" if detail else "")


def main() -> None:
    """Runs every step, prints the report, and writes it."""
    parser = photo_options(__doc__, 200, ROOT / "results" / "exactness.json")
    parser.add_argument("--side", type=int, default=144, help="of the photos, in pixels; 144 makes odd grids")
    parser.add_argument("--bundle", help="a bundle's folder or hub id (default: the embedded one)")
    parser.add_argument("--jobs", type=int, default=1, help="rows measured at a time")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "exactness.md")
    parser.add_argument("--step", help="one step, to stdout; needs --folder")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(run_step(given.step, given.folder, given.bundle)))
        return

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(given.jobs) as pool:
        folder = Path(name)
        (folder / PHOTOS).mkdir()
        chosen = photos(given.photos, given.count, given.side)
        for number, picture in enumerate(chosen):
            picture.save(folder / PHOTOS / f"{number:04d}.png")
        about = call("write", folder, given.bundle, {})
        others = {step: pool.submit(call, step, folder, given.bundle, {}) for step in ("numpy", "batches")}
        rows = list(
            pool.map(lambda number: measure_row(number, folder, given.bundle), range(len(CONFIGURATIONS)))
        )
        own = call("own", folder, given.bundle, {})
        for number, row in enumerate(rows):
            row["own"] = own.get(f"{OWN}{number}")
        found = {step: future.result() for step, future in others.items()}
    source = given.photos.name if given.photos else "scikit-image"
    report = {
        "command": f"python benchmarks/exactness.py --photos {source} --count {given.count} "
        f"--side {given.side} --jobs {given.jobs}",
        "data": source,
        "photos": len(chosen),
        "side": given.side,
        "qualities": list(QUALITIES),
        "files": len(chosen) * len(QUALITIES),
        **about,
        "rows": rows,
        **found,
        "processor": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "onnxruntime")},
        "jobs": given.jobs,
        "seconds": round(time.perf_counter() - started, 1),
    }
    report["mismatches"] = mismatches(report)
    given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    given.docs.write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    if report["mismatches"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
