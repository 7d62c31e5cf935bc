"""Folder runs of ``slim encode`` killed at random moments: what is on disk, and whether the next run mends it.

    python benchmarks/kills.py --kills 200 --photos 300 --seed 0 -o results/kills.json

A folder of crops of scikit-image's photos is encoded once undisturbed. Then the same command runs again and again into an empty
folder and gets SIGKILL: a quarter of the times while it starts, after a time drawn evenly up to that of the undisturbed run's
first result; else after its own first result and a time drawn evenly up to ``STRETCH`` of the undisturbed run's work. When a run
comes to its end, the next pass begins with an empty folder, until there were that many kills. Passes take turns: in one process,
removing the sources (``--delete-source``), in two processes (``--jobs 2``), and removing them again.

After every kill, and at the end of every pass:

- partial: files below the output folder that are neither byte for byte those of the undisturbed run nor a hidden temporary file.
- lost: photos that are neither as they were nor, where sources are removed, encoded as in the undisturbed run.
- orphans: processes of the killed run that still lived 60 s later.
- unfinished: passes whose last run failed, or whose files are not all those of the undisturbed run.

Exit status 1 if there is any. ``slim verify`` has checked the files of the undisturbed run, to which all others are equal.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from photos import scikit_photos

from slimcodec import inspect

SLIM = (sys.executable, "-m", "slimcodec.cli")
WAYS: tuple[tuple[str, ...], ...] = ((), ("--delete-source",), ("--jobs", "2"), ("--delete-source",))
STARTING, STRETCH = 0.25, 0.4
SIDES = (16, 64)
ORPHAN_SECONDS = 60


def make_photos(folder: Path, count: int, draw: random.Random) -> None:
    """Writes crops of scikit-image's photos, in folders of fifty, JPEG and PNG by turns."""
    originals = list(scikit_photos())
    for number in range(count):
        photo = draw.choice(originals)
        width, height = draw.randint(*SIDES), draw.randint(*SIDES)
        left, top = draw.randint(0, photo.width - width), draw.randint(0, photo.height - height)
        path = folder / f"{number // 50:02d}" / f"{number:03d}.{('jpg', 'png')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((left, top, left + width, top + height)).save(path)


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder by name, with their bytes."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def living(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended while we looked
            continue
        if int(of) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def encode(photos: Path, out: Path, way: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Starts ``slim encode`` in a process group of its own."""
    command = [*SLIM, "encode", str(photos), "-o", str(out), "--caption", "none", *way]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def results(folder: Path) -> int:
    """Number of .slim files below a folder."""
    return sum(1 for _ in folder.rglob("*.slim"))


def wait_for_results(process: subprocess.Popen[bytes], folder: Path, before: int) -> None:
    """Waits until there are more results than ``before``, or the process has ended."""
    while process.poll() is None and results(folder) <= before:
        time.sleep(0.01)


class Trial:
    """The passes over one folder of photos, and what was found wrong."""

    def __init__(self, folder: Path, count: int, draw: random.Random) -> None:
        self.draw = draw
        self.original, self.photos, self.out = folder / "original", folder / "photos", folder / "out"
        make_photos(self.original, count, draw)
        self.sources = contents(self.original)
        start = time.perf_counter()
        undisturbed = folder / "undisturbed"
        process = encode(self.original, undisturbed, ())
        wait_for_results(process, undisturbed, 0)
        self.starting = time.perf_counter() - start
        if process.wait():
            raise SystemExit("the undisturbed run failed")
        self.working = time.perf_counter() - start - self.starting
        subprocess.run([*SLIM, "verify", str(undisturbed)], check=True, stdout=subprocess.DEVNULL)
        self.expected = contents(undisturbed)
        assert len(self.expected) == count
        self.counts: collections.Counter[str] = collections.Counter()
        self.kills: collections.Counter[str] = collections.Counter()

    def begin(self) -> None:
        """Empties the output and restores the photos."""
        for folder in (self.photos, self.out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.original, self.photos)

    def check(self, removes: bool) -> int:
        """Counts what is wrong on disk; returns the number of results."""
        made = {}
        for name, data in contents(self.out).items():
            if Path(name).name.startswith(".slim-"):
                continue
            made[name] = data
            self.counts["partial"] += data != self.expected.get(name)
        kept = contents(self.photos)
        for name, data in self.sources.items():
            safe = kept.get(name) == data
            if removes and name not in kept:
                result = str(Path(name).with_suffix(".slim"))
                safe = result in made and made[result] == self.expected[result]
            self.counts["lost"] += not safe
        self.counts["lost"] += len(kept.keys() - self.sources.keys())
        return len(made)

    def kill_or_finish(self, way: tuple[str, ...], kill: bool) -> bool:
        """One run, perhaps killed; returns whether it came to its end."""
        removes = "--delete-source" in way
        before = results(self.out)
        process = encode(self.photos, self.out, way)
        delay = None
        if kill and self.draw.random() < STARTING:
            delay = self.draw.uniform(0, self.starting)
        elif kill:
            wait_for_results(process, self.out, before)
            delay = self.draw.uniform(0, STRETCH * self.working)
        try:
            status = process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            status = None
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (left := living(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        for orphan in left:
            self.counts["orphans"] += 1
            os.kill(orphan, signal.SIGKILL)
        done = self.check(removes)
        if status is not None:
            self.counts["unfinished"] += status != 0
            return True
        self.counts["kills"] += 1
        self.kills[" ".join(way) or "one process"] += 1
        self.counts["while working" if done > before else "while starting"] += 1
        temporary = len(list(self.out.rglob(".slim-*.tmp")))
        self.counts["temporary"] = max(self.counts["temporary"], temporary)
        return False


def main() -> None:
    """Kills, checks, prints what was seen, and writes it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), given.photos, random.Random(given.seed))
        print(f"undisturbed: {trial.starting:.1f} s and {trial.working:.1f} s", file=sys.stderr, flush=True)
        while trial.counts["kills"] < given.kills:
            way = WAYS[trial.counts["passes"] % len(WAYS)]
            trial.begin()
            finished = False
            # a run that was killed after it had removed its last source leaves nothing to take up
            while not finished and any(contents(trial.photos)):
                # the last pass is finished without a further kill
                finished = trial.kill_or_finish(way, kill=trial.counts["kills"] < given.kills)
                print(dict(trial.counts), file=sys.stderr, flush=True)
            trial.counts["passes"] += 1
            trial.counts["unfinished"] += trial.check("--delete-source" in way) < given.photos

    counts = trial.counts
    report: dict[str, Any] = {
        "command": f"python benchmarks/kills.py --kills {given.kills} --photos {given.photos} --seed {given.seed}",
        "bundle": inspect(next(iter(trial.expected.values()))).bundle_id,
        "photos": given.photos,
        "kills": counts["kills"],
        "kills_by_way": dict(trial.kills),
        "while_starting": counts["while starting"],
        "while_working": counts["while working"],
        "passes": counts["passes"],
        **{kind: counts[kind] for kind in ("partial", "lost", "orphans", "unfinished")},
        "most_temporary_files": counts["temporary"],
        "undisturbed_seconds": {"starting": round(trial.starting, 1), "working": round(trial.working, 1)},
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if any(report[kind] for kind in ("partial", "lost", "orphans", "unfinished")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
