"""Drawn pictures (tests/drawn.py) at all qualities: error, bytes, JPEG and the codec's own linear path at equal bytes.

    python benchmarks/stress.py [-o results/stress.json] [--markdown TABLE.md] [--kind stripes ...]

Every picture is encoded at ``QUALITIES`` without caption or region of interest, and decoded without denoising steps. The linear path is the
principal components alone: the same gains, prior and tables, no branch of any network. A flat picture of the mean colour
is what nobody would call garbage. Exit status 1 where a picture is worse at quality 100 than at 50, falls by more than
``TOLERANCE`` from one quality to a higher one, or is worse than the flat picture by more than that.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import slimcodec
from slimcodec.codec import Codec
from slimcodec.data.photos import Photo
from slimcodec.encoder import largest_that_fits
from slimcodec.errors import SlimError
from slimcodec.evaluation.measures import psnr
from slimcodec.evaluation.peers import load_peer
from slimcodec.images import Pixels
from slimcodec.models.blocks import at_level
from slimcodec.models.config import PATCH

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from drawn import SIDE, drawn

QUALITIES = (1, 10, 25, 40, 50, 60, 75, 90, 100)
#: dB of PSNR by which a picture may fall on the way to a higher quality, or lie below a flat one
TOLERANCE = 2.0
#: dB above which the rounding of a flat picture's one value makes the difference
SEEN = 28.0
#: dB beyond which a picture counts as equal to the original
PERFECT = 40.0
#: dB from which on a picture is no garbage, and from a flat one only differs in shade
FINE = 13.0
COLUMNS = (
    "kind",
    "pictures",
    "bpp at 1, 50, 100",
    "PSNR at 1, 50, 100",
    "largest fall",
    "least above flat",
    "least above linear path",
    "median above JPEG",
    "least above JPEG",
)


def dB(pixels: Pixels, decoded: Pixels) -> float:
    """PSNR, at most ``PERFECT``."""
    value = psnr(pixels, decoded)
    assert value is not None
    return round(min(PERFECT, value), 2)


@torch.no_grad()
def linear_path(codec: Codec, pixels: Pixels, quality: int) -> tuple[int, float]:
    """Bytes of the payload, and PSNR, of a picture without any branch of a network; sides are multiples of 16."""
    space, compressor = codec.bundle.latent_model.autoencoder, codec.bundle.compressor
    level = compressor.level(torch.tensor([quality]))
    gain = at_level(compressor.log_gain, level).exp()[..., None, None]
    x = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    kernel = space.analysis.reshape(-1, 3, PATCH, PATCH)
    values = F.conv2d(x, kernel, -(space.analysis @ space.mean), stride=PATCH) * gain
    values[:, -1] = 0  # the place of the map of steps
    hyper = compressor.hyper_analyse(values, level)
    coded = codec.coder.quantise(values.numpy(), hyper.numpy(), quality)
    patches = F.conv2d(torch.from_numpy(coded.values) / gain, space.synthesis[:, :, None, None], space.mean)
    decoded = F.pixel_shuffle(patches, PATCH)[0].permute(1, 2, 0).add(1).mul(127.5).round().clamp(0, 255)
    return len(codec.coder.write(coded)), dB(pixels, decoded.numpy().astype(np.uint8))


def measure(codec: Codec, name: str, pixels: Pixels) -> dict[str, Any]:
    """Bytes and PSNR of a picture at every quality, with those of JPEG and of the linear path at the same bytes."""
    jpeg, photo = load_peer("jpeg"), Photo(pixels)
    sizes, linear = np.array([linear_path(codec, pixels, quality) for quality in QUALITIES]).T
    flat = np.broadcast_to(pixels.mean((0, 1)).round().astype(np.uint8), pixels.shape)
    points = []
    for quality in QUALITIES:
        data = codec.encode(pixels, quality, caption=None, roi=None)
        decoded = np.asarray(codec.decode(data, steps=0))
        point = {
            "quality": quality,
            "bytes": len(data),
            "psnr": dB(pixels, decoded),
            "jpeg": None,
            "linear": None,
        }
        if len(data) >= sizes[0]:
            # the best that the linear path has for no more bytes
            point["linear"] = float(linear[sizes <= len(data)].max())
        try:
            fitting = largest_that_fits(lambda number: jpeg.encode(photo, number), len(data))[1]
            point["jpeg"] = dB(pixels, jpeg.decode(fitting))
        except SlimError:
            pass  # JPEG has no file as small as that
        points.append(point)
    return {"name": name, "flat": dB(pixels, flat), "points": points}


def falls(row: dict[str, Any]) -> float:
    """Largest fall of a picture's PSNR from one quality to any higher one, dB; what is above ``SEEN`` counts as equal."""
    values = np.array([min(point["psnr"], SEEN) for point in row["points"]])
    return round(float((np.maximum.accumulate(values) - values).max()), 2)


def faults(row: dict[str, Any]) -> list[str]:
    """What must not be, of a picture."""
    at = {point["quality"]: point["psnr"] for point in row["points"]}
    found = []
    if at[100] < min(at[50], SEEN) - 0.1:
        found.append(f"{at[50]} dB at quality 50, {at[100]} at 100")
    if falls(row) > TOLERANCE:
        found.append(f"falls by {falls(row)} dB")
    if min(at.values()) < min(row["flat"], FINE) - TOLERANCE:
        found.append(f"{min(at.values())} dB, a flat picture {row['flat']}")
    return found


def above(rows: list[dict[str, Any]], other: str) -> list[float]:
    """Differences to another codec at equal bytes, dB, wherever it has a file of that size."""
    points = [point for row in rows for point in row["points"]]
    return [point["psnr"] - point[other] for point in points if point[other] is not None]


def line(kind: str, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """A row of the table: medians over the pictures of a kind, and the worst of them."""

    def medians(number: str, scale: float = 1.0, places: int = 1) -> str:
        at = [
            float(
                np.median(
                    [
                        point[number] * scale
                        for row in rows
                        for point in row["points"]
                        if point["quality"] == q
                    ]
                )
            )
            for q in (1, 50, 100)
        ]
        return ", ".join(f"{value:.{places}f}" for value in at)

    jpeg, linear = above(rows, "jpeg"), above(rows, "linear")
    return (
        kind,
        str(len(rows)),
        medians("bytes", 8 / SIDE**2, 2),
        medians("psnr"),
        f"{max(map(falls, rows)):.1f}",
        f"{min(point['psnr'] - row['flat'] for row in rows for point in row['points']):+.1f}",
        f"{min(linear):+.1f}" if linear else "",
        f"{np.median(jpeg):+.1f}" if jpeg else "",
        f"{min(jpeg):+.1f}" if jpeg else "",
    )


def main() -> None:
    """Measures every picture, prints the table, and writes the report where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", nargs="+", help="kinds of pictures (default: all)")
    parser.add_argument("--bundle", help="a bundle's folder or hub id (default: the embedded one)")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, help="the table, as a file")
    given = parser.parse_args()

    torch.set_num_threads(1)
    codec = slimcodec.load(given.bundle, runtime="torch", dtype="float32")
    pictures = {
        name: pixels for name, pixels in drawn().items() if not given.kind or name.split("/")[0] in given.kind
    }
    rows = [measure(codec, name, pixels) for name, pixels in pictures.items()]
    kinds = list(dict.fromkeys(name.split("/")[0] for name in pictures))
    lines = [COLUMNS, tuple("---" for _ in COLUMNS)]
    lines += [line(kind, [row for row in rows if row["name"].startswith(f"{kind}/")]) for kind in kinds]
    lines.append(line("all", rows))
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    print(table)
    wrong = {row["name"]: found for row in rows if (found := faults(row))}
    for name, found in wrong.items():
        print(f"{name}: {'; '.join(found)}")
    report = {
        "command": "python benchmarks/stress.py",
        "bundle": codec.bundle.bundle_id,
        "pictures": len(rows),
        "side": SIDE,
        "faults": wrong,
        "rows": rows,
    }
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(table + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
