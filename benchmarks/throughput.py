"""Pictures a second of folder runs: processes, a Ray cluster on this machine, and Pillow's AVIF and WebP, in one run.

    python benchmarks/throughput.py --photos ../shared/data/photos-000.parquet --count 2000 -o results/throughput.json
    python benchmarks/throughput.py --photos ../shared/data/tiny64-000.parquet --count 20000 --side 64 --rounds 1 \\
        --ways processes ray -o results/long-run.json

The photos are written as JPEG files of ``--side`` squared, 256x256. Then each way encodes them all: ``slim encode --jobs N`` (one process, one
thread each), ``slim encode --engine ray --jobs N``, and ``N`` processes that read each file, encode it with Pillow and write
the result. Ways take turns, ``--rounds`` times, since a machine's load changes; the best rate of each counts. ``starting`` is the
time to the first result and ``ending`` that after the last; ``pictures_per_second`` counts the time between.

``megabytes`` is the peak resident memory of the command and its processes together. ``megabytes_by_tenth`` is the peak within
each tenth of the pictures. ``growth`` is the largest of the last nine above the first, and ``growth_percent`` its share.

A picture's cost is ``--price`` (US dollars a core-hour) over ``pictures_per_second_per_core``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from photos import photo_options, photos
from PIL import Image

from slimcodec import __version__
from slimcodec.images import as_file

SLIM = (sys.executable, "-m", "slimcodec.cli", "encode")
#: Pillow's options, of few bytes; AVIF at its usual speed and, as the others, in one thread
PEERS = {"avif": {"quality": 30, "speed": 6, "max_threads": 1}, "webp": {"quality": 20}}
WAYS = ("processes", "ray", *PEERS)


def pillow(kind: str, source: Path, out: Path, options: dict[str, int]) -> None:
    """Encode one file with Pillow."""
    with Image.open(source) as image:
        data = as_file(image.convert("RGB"), kind, **options)
    (out / f"{source.stem}.{kind}").write_bytes(data)


def run_pillow(kind: str, folder: Path, out: Path, jobs: int) -> None:
    """Encode a folder with Pillow, in processes; the command of a way."""
    out.mkdir()
    files = sorted(folder.iterdir())
    with ProcessPoolExecutor(jobs) as pool:
        for _ in pool.map(partial(pillow, kind, out=out, options=PEERS[kind]), files, chunksize=16):
            pass


def resident(root: int) -> int:
    """Resident bytes of a process and its descendants, shared pages counted in each."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        number = int(stat.parent.name)
        parents[number], sizes[number] = int(fields[1]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")

    def below(number: int) -> bool:
        while number in parents:
            if number == root:
                return True
            number = parents[number]
        return False

    return sum(size for number, size in sizes.items() if below(number))


def measure(command: list[str], out: Path, count: int) -> dict[str, Any]:
    """Run a way into an empty folder; its times, bytes and memory."""
    start = time.perf_counter()
    seen: list[tuple[float, int]] = []
    tenths = [0] * 10
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            done = finished(out)
            if done > (seen[-1][1] if seen else 0):
                seen.append((time.perf_counter() - start, done))
            tenth = min(9, 10 * done // count)
            tenths[tenth] = max(tenths[tenth], resident(process.pid))
            # more often at first: a short run is over before the second look otherwise
            time.sleep(min(0.2, 0.01 + (time.perf_counter() - start) / 10))
    seconds = time.perf_counter() - start
    if not seen or seen[-1][1] < count:
        seen.append((seconds, count))
    # a run so short that all results are seen at once counts as a whole
    (first, begun), (last, _) = seen[0] if len(seen) > 1 else (0.0, 0), seen[-1]
    sizes = [path.stat().st_size for path in out.iterdir()]
    if process.returncode or len(sizes) != count:
        raise SystemExit(f"{' '.join(command)}: status {process.returncode}, {len(sizes)} of {count} files")
    early, growth = tenths[0], max(tenths[1:]) - tenths[0]
    return {
        "seconds": seconds,
        "starting": first,
        "ending": seconds - last,
        "pictures_per_second": (count - begun) / (last - first),
        "bytes_per_picture": sum(sizes) / count,
        "megabytes": max(tenths) / 2**20,
        "growth": growth / 2**20,
        "growth_percent": 100 * growth / early,
        "megabytes_by_tenth": [round(size / 2**20) for size in tenths],
    }


def finished(folder: Path) -> int:
    """Results in a folder, those that are being written left out."""
    try:
        return sum(not name.startswith(".") for name in os.listdir(folder))
    except FileNotFoundError:
        return 0


def main() -> None:
    """Measures every way, prints a table, and writes it as JSON where asked."""
    parser = photo_options(__doc__, 2000)
    parser.add_argument("--jobs", type=int, default=2, help="processes of each way (default: 2)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each way (default: 2)")
    parser.add_argument("--side", type=int, default=256, help="pixels a side (default: 256)")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=WAYS, help="what to measure (default: all)"
    )
    parser.add_argument("--quality", type=int, default=50, help="slim's quality (default: 50)")
    parser.add_argument("--effort", type=int, default=0, help="slim's effort (default: 0, the fastest)")
    parser.add_argument("--price", type=float, default=0.04, help="US dollars a core-hour (default: 0.04)")
    parser.add_argument("--pillow", nargs=3, metavar=("FORMAT", "FOLDER", "OUT"), help="one way, with Pillow")
    given = parser.parse_args()
    if given.pillow:
        kind, folder, out = given.pillow
        run_pillow(kind, Path(folder), Path(out), given.jobs)
        return

    ways: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "photos")
        folder.mkdir()
        found = photos(given.photos, given.count, given.side)
        for number in range(given.count):
            found[number % len(found)].save(folder / f"{number:06}.jpg", quality=92)
        slim = [*SLIM, str(folder), "--quality", str(given.quality), "--effort", str(given.effort)]
        slim += ["--jobs", str(given.jobs), "-o"]
        own = [sys.executable, __file__, "--jobs", str(given.jobs), "--pillow"]
        for turn in range(given.rounds):
            for name in given.ways:
                out = Path(home, f"{name}-{turn}")
                command = [*own, name, str(folder), str(out)] if name in PEERS else [*slim, str(out)]
                command += ["--engine", "ray"] if name == "ray" else []
                ways.setdefault(name, []).append(measure(command, out, given.count))
                print(name, ways[name][-1], file=sys.stderr, flush=True)

    processors = len(os.sched_getaffinity(0))
    best: dict[str, dict[str, Any]] = {}
    for name, runs in ways.items():
        row = max(runs, key=lambda run: run["pictures_per_second"])
        rate = row["pictures_per_second"] / min(given.jobs, processors)
        cost = {"pictures_per_second_per_core": rate, "dollars_per_1000": given.price * 1000 / 3600 / rate}
        best[name] = {
            key: round(value, 6 if value < 1 else 2) if isinstance(value, float) else value
            for key, value in {**row, **cost}.items()
        }
        print(
            f"{name:10} {row['pictures_per_second']:8.1f} pictures/s {row['bytes_per_picture']:8.0f} bytes "
            f"{row['megabytes']:6.0f} MB, {row['growth_percent']:+.1f} % after a tenth"
        )
    source = f" --photos {given.photos.name}" if given.photos else ""
    report: dict[str, Any] = {
        "command": f"python benchmarks/throughput.py{source} --count {given.count} --side {given.side} "
        f"--jobs {given.jobs} --rounds {given.rounds} --ways {' '.join(given.ways)}",
        "slimcodec": __version__,
        "pillow": Image.__version__,
        "machine": platform.machine(),
        "processors": processors,
        "jobs": given.jobs,
        "load": os.getloadavg()[0],
        "photos": given.count,
        "side": given.side,
        "quality": given.quality,
        "effort": given.effort,
        "dollars_per_core_hour": given.price,
        "ways": best,
        "rates_of_the_rounds": {
            name: [round(run["pictures_per_second"], 1) for run in runs] for name, runs in ways.items()
        },
    }
    if {"processes", "ray"} <= best.keys():
        ratio = best["ray"]["pictures_per_second"] / best["processes"]["pictures_per_second"]
        print(f"ray / processes: {ratio:.2f}")
        report["ray_over_processes"] = round(ratio, 3)
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
