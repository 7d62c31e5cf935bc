"""What the encoder's effort keeps: top-1 of pictures decoded without a caption, and the control with a wrong class.

    python benchmarks/evidence.py DATASET --classifier FILE_OR_ID [--efforts 0,1,3,8] [--limit 200] [-o OUT.json]

Files hold no caption and are decoded without steps or guidance. For each effort: bits per pixel of whole files, PSNR, and the share
of photos that each classifier names rightly, with 95 % bootstrap intervals over photos. The control lets the encoder, at its
default effort, look for evidence of a class that the photo does not show: how many photos keep their class, and how many are
taken for the wrong one. Rounding cannot paint a class where the second share stays small.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from round_trip import right

import slimcodec
from slimcodec.codec import Codec
from slimcodec.container import Container, pack
from slimcodec.data.classifiers import load_classifier
from slimcodec.data.photos import Photo
from slimcodec.data.sources import open_labelled
from slimcodec.encoder import EFFORT
from slimcodec.evaluation.bench import PROTOCOLS, prepare
from slimcodec.evaluation.curves import class_names, wrong_class
from slimcodec.evaluation.measures import psnr
from slimcodec.evaluation.results import interval
from slimcodec.processes import track


def coded(codec: Codec, photo: Photo, quality: int, effort: int, tag: int | None) -> bytes:
    """A photo's file without caption; ``tag``: the class that the encoder looks for, None for the one that it sees."""
    if tag is None:
        return codec.encode(photo.pixels, quality, None, effort=effort)
    encoder = codec.encoder
    (latent,) = encoder.latents([photo.pixels])
    evidence = encoder.evidence(photo.pixels, effort)
    assert evidence is not None
    symbols = encoder.quantise(latent, quality, encoder.interest(photo.pixels), replace(evidence, tag=tag))
    height, width = photo.pixels.shape[:2]
    payload = codec.coder.write(symbols)
    return pack(Container(width, height, quality, bytes.fromhex(codec.bundle.bundle_id), b"", payload))


def main() -> None:
    """Measures every photo, prints a table, and writes the report where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="as in slim bench")
    parser.add_argument("--classifier", action="append", required=True, help="as in slim bench; repeatable")
    parser.add_argument("--efforts", default="0,1,3,8")
    parser.add_argument("--qualities", default="14,24,36,50,66")
    parser.add_argument("--protocol", default="icm-256", choices=sorted(PROTOCOLS))
    parser.add_argument("--limit", type=int, help="photos (default: all)")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()

    codec = slimcodec.load(runtime="onnx")
    names = class_names(codec)
    samples = open_labelled(given.dataset, limit=given.limit)
    judges = [load_classifier(source, given.protocol) for source in given.classifier]
    efforts, qualities = (
        [int(word) for word in text.split(",")] for text in (given.efforts, given.qualities)
    )
    ways = [*((effort, False) for effort in efforts), (EFFORT, True)]
    rows: dict[tuple[int, bool, int], list[dict[str, float]]] = {
        (*way, quality): [] for way in ways for quality in qualities
    }
    original = []
    for sample in track(samples, "photos"):
        photo = prepare(sample, given.protocol)
        original.append(right(judges, photo.pixels, photo.class_index))
        drawn = wrong_class(photo.id, photo.class_index, names)
        for (effort, wrong, quality), found in rows.items():
            start = time.process_time()
            data = coded(codec, photo, quality, effort, drawn if wrong else None)
            seconds = time.process_time() - start
            decoded = np.asarray(codec.decode(data, steps=0))
            row = {"bpp": 8 * len(data) / photo.pixels[..., 0].size, "psnr": psnr(photo.pixels, decoded)}
            row["encode_ms"] = 1000 * seconds
            for judge in judges:
                guess, rank = judge.judge(decoded, photo.class_index)
                row[f"{judge.name} right"] = 100.0 * (rank == 0)
                row[f"{judge.name} drawn in"] = 100.0 * (guess == drawn)
            found.append(row)
    report: dict[str, Any] = {
        "slimcodec": slimcodec.__version__,
        "bundle": codec.bundle.bundle_id,
        "dataset": samples.name,
        "photos": len(original),
        "classifiers": {judge.name: judge.sha256 for judge in judges},
        "uncompressed": {
            judge.name: rounded(interval(np.array(original)[:, number]))
            for number, judge in enumerate(judges)
        },
        "points": [
            {"effort": effort, "wrong_class": wrong, "quality": quality}
            | {name: rounded(interval(np.array([row[name] for row in found]))) for name in found[0]}
            for (effort, wrong, quality), found in rows.items()
        ],
    }
    for point in report["points"]:
        print(
            " ".join(
                f"{name} {value[0] if isinstance(value, list) else value}" for name, value in point.items()
            )
        )
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


def rounded(values: tuple[float, float, float]) -> list[float]:
    """A mean and its interval to four digits."""
    return [round(float(value), 4) for value in values]


if __name__ == "__main__":
    main()
