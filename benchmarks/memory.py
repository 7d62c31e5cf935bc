"""Peak memory of encode and decode as a function of pixels, each in a fresh process.

    python benchmarks/memory.py [-o results/memory.json]

A process loads the codec, encodes and decodes a small picture so that every part is built, and then does one operation on a
picture of a photo's statistics: scikit-image's astronaut enlarged, with grain. What is reported is the peak of its resident
memory during the operation above what it held before, the picture to encode and the file to decode left out. ``untiled`` is
the same with a tile as large as the picture. ``bytes_per_pixel`` is the slope between the two largest sizes, in which all
arrays are counted that a whole picture needs: pixels, latents and symbols; ``fixed_megabytes`` is the rest, a tile's work.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from photos import photos
from PIL import Image

SIDES = (512, 1024, 2048, 4096)
OPERATIONS = ("encode", "decode", "decode_steps_0", "decode_latent")
UNTILED_SIDES = (512, 1024, 2048)
MEGABYTE = 2**20


def picture(side: int) -> Image.Image:
    """A square picture with a photo's statistics."""
    scaled = photos(None, 1, 512)[0].resize((side, side), Image.Resampling.BICUBIC)
    draw = np.random.default_rng(0)
    pixels = np.asarray(scaled)
    # in bands, so that making the picture takes less memory than what is measured
    bands = (pixels[top : top + 64] for top in range(0, side, 64))
    noisy = [np.clip(band + draw.normal(0, 6, band.shape), 0, 255).astype(np.uint8) for band in bands]
    return Image.fromarray(np.concatenate(noisy))


def status(field: str) -> int:
    """A field of this process's status that is in kB, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(operation: str, side: int, tiled: bool) -> int:
    """Peak bytes of one operation above what the process held before it; call it in a fresh process."""
    import torch

    import slimcodec
    from slimcodec.models.tiles import TILE

    torch.set_num_threads(1)
    codec = slimcodec.load()
    codec = slimcodec.Codec(codec.bundle, TILE if tiled else side)
    small = codec.encode(picture(64))
    codec.decode(small)
    given = np.asarray(picture(side))
    # the file comes from another process, since this one's peak would be that of making it
    data = b"" if operation == "encode" else sys.stdin.buffer.read()
    # the peak so far is forgotten
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    if operation == "encode":
        codec.encode(given)
    elif operation == "decode_latent":
        codec.decode_latent(data)
    else:
        codec.decode(data, steps=0 if operation == "decode_steps_0" else None)
    return status("VmHWM") - before


def main() -> None:
    """Measures, prints a table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument(
        "--one", nargs=3, metavar=("OPERATION", "SIDE", "TILED"), help="one figure, to stdout"
    )
    given = parser.parse_args()
    if given.one:
        operation, side, tiled = given.one
        print(measure(operation, int(side), tiled == "tiled"))
        return

    import torch

    import slimcodec

    codec = slimcodec.load()
    files = {side: codec.encode(picture(side)) for side in SIDES}

    def megabytes(operation: str, side: int, tiled: str) -> float:
        command = [sys.executable, __file__, "--one", operation, str(side), tiled]
        done = subprocess.run(command, input=files[side], check=True, stdout=subprocess.PIPE)
        found = round(int(done.stdout) / MEGABYTE, 1)
        print(operation, side, tiled, found, file=sys.stderr, flush=True)
        return found

    peaks = {name: {side * side: megabytes(name, side, "tiled") for side in SIDES} for name in OPERATIONS}
    untiled = {
        name: {side * side: megabytes(name, side, "untiled") for side in UNTILED_SIDES}
        for name in ("encode", "decode_steps_0")
    }
    slopes, fixed = {}, {}
    for name, peak in peaks.items():
        (smaller, low), (larger, high) = list(peak.items())[-2:]
        slope = (high - low) * MEGABYTE / (larger - smaller)
        slopes[name], fixed[name] = round(slope, 1), round(high - slope * larger / MEGABYTE, 1)
    report = {
        "command": "python benchmarks/memory.py",
        "bundle": codec.bundle.bundle_id,
        "dtype": str(codec.bundle.parts.dtype),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "peak_megabytes_by_pixels": peaks,
        "bytes_per_pixel": slopes,
        "fixed_megabytes": fixed,
        "untiled_peak_megabytes_by_pixels": untiled,
    }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
