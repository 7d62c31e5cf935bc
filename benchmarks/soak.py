"""One process that encodes and decodes ten thousand times: whether memory or file descriptors grow.

    python benchmarks/soak.py --rounds 10000 --seed 0 -o results/soak.json

Each round encodes a crop of one of scikit-image's photos, 16 to 128 pixels a side, at a quality of 1 to 100, and decodes the
file. Crops come as pictures, arrays, paths and bytes, captions are found, given or left out, files are decoded from bytes and
paths, every fourth with the bundle's default steps; every tenth round also refuses a damaged file and a damaged picture, since
errors leak as well. Rounds are drawn from the seed, so a run can be repeated.

Resident memory and open file descriptors are read between rounds, every 100 rounds. ``growth_percent`` compares the largest
resident memory seen after the first 500 rounds with that at their end; exit status 1 if it is 2 or more, or if file
descriptors differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos import scikit_photos
from PIL import Image

import slimcodec
from slimcodec.codec import Codec
from slimcodec.images import as_file

SETTLED = 500
SAMPLE = 100
ALLOWED_PERCENT = 2.0
SIDES = (16, 128)
#: rounds at the beginning with the largest size: what the process ever needs, it then has needed before growth is measured
LARGEST = 40


def resident_bytes() -> int:
    """Memory of this process that lies in RAM, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """File descriptors of this process, that of the listing left out."""
    return len(os.listdir("/proc/self/fd")) - 1


def crop(photos: list[Image.Image], draw: random.Random, largest: bool) -> Image.Image:
    """A crop of one of the photos, of a size drawn at random or the ``largest``."""
    photo = draw.choice(photos)
    width, height = (SIDES[1] if largest else draw.randint(*SIDES) for _ in range(2))
    left, top = draw.randint(0, photo.width - width), draw.randint(0, photo.height - height)
    return photo.crop((left, top, left + width, top + height))


def once(codec: Codec, picture: Image.Image, folder: Path, draw: random.Random, number: int) -> None:
    """One encode and one decode, and every tenth time two refusals."""
    path = folder / "photo.jpg"
    jpeg = as_file(picture, "JPEG", quality=90)
    path.write_bytes(jpeg)
    given: Any = (picture, np.asarray(picture), path, jpeg)[number % 4]
    caption = draw.choice(("auto", None, "a photo of a thing"))
    data = codec.encode(given, draw.randint(1, 100), caption)
    coded = folder / "photo.slim"
    coded.write_bytes(data)
    decoded = codec.decode(coded if number % 2 else data, steps=None if number % 4 == 0 else 0)
    assert decoded.size == picture.size
    if number % 10 == 0:
        for attempt, bad in (
            (codec.decode, data[:-1] + bytes([data[-1] ^ 1])),
            (codec.encode, jpeg[:40]),
        ):
            try:
                attempt(bad)  # type: ignore[operator]
            except slimcodec.SlimError:
                continue
            raise AssertionError("damaged input was accepted")


def main() -> None:
    """Runs all rounds, prints what was seen, and writes it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10_000, help="encodes, and as many decodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()

    torch.set_num_threads(1)
    codec = slimcodec.load()
    photos = list(scikit_photos())
    draw = random.Random(given.seed)
    samples: list[dict[str, int]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            once(codec, crop(photos, draw, number < LARGEST), Path(folder), draw, number)
            if (number + 1) % SAMPLE == 0:
                seen = {"rounds": number + 1, "resident_bytes": resident_bytes(), "open_files": open_files()}
                samples.append(seen)
                print(seen, file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start

    settled = [sample for sample in samples if sample["rounds"] >= SETTLED]
    base, largest = settled[0]["resident_bytes"], max(sample["resident_bytes"] for sample in settled)
    growth = 100 * (largest / base - 1)
    files = sorted({sample["open_files"] for sample in settled})
    report = {
        "command": f"python benchmarks/soak.py --rounds {given.rounds} --seed {given.seed}",
        "bundle": codec.bundle.bundle_id,
        "encodes": given.rounds,
        "decodes": given.rounds,
        "resident_megabytes": {
            str(sample["rounds"]): round(sample["resident_bytes"] / 2**20, 1)
            for sample in samples
            if sample["rounds"] in (SAMPLE, SETTLED) or sample["rounds"] % 1000 == 0
        },
        "growth_percent": round(growth, 2),
        "growth_percent_allowed": ALLOWED_PERCENT,
        "open_files": files,
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "seconds": round(seconds, 1),
    }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if growth >= ALLOWED_PERCENT or len(files) != 1:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
