"""A fresh environment with the wheel and no torch: what it takes on disk, and processor time of ``slim`` from start to end.

    python benchmarks/install.py [--rounds 15] [--photos DATA] [-o results/install.json]

Builds the wheel and installs it into a new virtual environment, with the versions of constraints.txt. Megabytes are 10^6 bytes of
blocks on the disk, of each package's files and of the bytecode that pip compiles from them. Times are user and system time of
whole processes on one thread, medians of rounds that all commands take in turn, on a 256x256 photo.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from photos import photo_options, photos
from timing import process_seconds

ROOT = Path(__file__).parent.parent
#: run by the new environment's Python: bytes on disk of every distribution, without and with bytecode
SIZES = """
import importlib.metadata, json, os
sizes = {}
for found in importlib.metadata.distributions():
    blocks = {str(file): os.stat(file.locate()).st_blocks * 512 for file in found.files or () if file.locate().is_file()}
    bytecode = sum(size for file, size in blocks.items() if file.endswith(".pyc"))
    sizes[found.name] = [found.version, sum(blocks.values()) - bytecode, bytecode]
print(json.dumps(sizes))
"""
#: what every environment has
OF_PYTHON = ("pip", "setuptools")


def install(folder: Path) -> Path:
    """Builds the wheel, installs it into a new environment and returns that one's folder of programs."""
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    binaries = folder / "venv" / "bin"
    command = [binaries / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(command, check=True)
    return binaries


def packages(binaries: Path) -> dict[str, dict[str, Any]]:
    """Version and megabytes of every package, the largest first."""
    done = subprocess.run([binaries / "python", "-c", SIZES], check=True, capture_output=True, text=True)
    sizes = {name: size for name, size in json.loads(done.stdout).items() if name not in OF_PYTHON}
    ordered = sorted(sizes.items(), key=lambda item: -sum(item[1][1:]))
    return {
        name: {
            "version": version,
            "megabytes": round((files + bytecode) / 1e6, 1),
            "of_that_bytecode": round(bytecode / 1e6, 1),
        }
        for name, (version, files, bytecode) in ordered
    }


def start_up(binaries: Path, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median and least processor seconds of imports and of ``slim`` on a photo, by turns, after a round of warming up."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["OMP_NUM_THREADS"] = "1"
    image, file = folder / "photo.png", folder / "photo.slim"
    encode = [binaries / "slim", "encode", image, "-o", file, "--overwrite"]
    commands: dict[str, list[Any]] = {
        "import numpy": [binaries / "python", "-c", "import numpy"],
        "import slimcodec": [binaries / "python", "-c", "import slimcodec"],
        "slim encode": encode,
        "slim encode --effort 0": [*encode, "--effort", "0"],
        "slim decode": [binaries / "slim", "decode", file, "-o", folder / "out.png", "--overwrite"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            _, seconds = process_seconds(command, environment)
            if number:
                taken[name].append(seconds)
    numpy = statistics.median(taken["import numpy"])
    return {
        name: {
            "median": round(statistics.median(values), 3),
            "least": round(min(values), 3),
            "times_import_numpy": round(statistics.median(values) / numpy, 2),
        }
        for name, values in taken.items()
    }


def main() -> None:
    """Installs, measures, prints the report, and writes it where asked."""
    parser = photo_options(__doc__, 1)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        binaries = install(folder)
        photos(given.photos, 1)[0].save(folder / "photo.png")
        sizes = packages(binaries)
        report = {
            "command": "python benchmarks/install.py " + " ".join(Path(word).name for word in sys.argv[1:]),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "start_up_processor_seconds": start_up(binaries, folder, given.rounds),
            "megabytes": round(sum(size["megabytes"] for size in sizes.values()), 1),
            "of_that_bytecode": round(sum(size["of_that_bytecode"] for size in sizes.values()), 1),
            "packages": sizes,
        }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
