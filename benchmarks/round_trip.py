"""How much of classifiers' accuracy the autoencoder alone keeps, and uniform quantisation of its latents.

    python benchmarks/round_trip.py DATASET --classifier FILE_OR_ID [--uniform 1,2,3] [--limit 1000] [-o OUT.json]

Top-1 of decoded pictures, whole and as a share of that of the originals, with 95 % bootstrap intervals over photos. Without a
caption's help, the compressor comes near to the autoencoder alone at best. ``--uniform``: latents are rounded to multiples of a step,
without transform or context. Their bits are those of an ideal static entropy coder: the entropy of each channel over all photos.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import slimcodec
from slimcodec.data.classifiers import Classifier, load_classifier
from slimcodec.data.sources import open_labelled
from slimcodec.evaluation.bench import PROTOCOLS, prepare
from slimcodec.evaluation.measures import psnr
from slimcodec.evaluation.results import ENDS, interval, means, resamples
from slimcodec.processes import track


def main() -> None:
    """Measures every photo, prints the report, and writes it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="as in slim bench")
    parser.add_argument("--classifier", action="append", required=True, help="as in slim bench; repeatable")
    parser.add_argument("--uniform", default="", help="steps of uniform quantisation, separated by commas")
    parser.add_argument("--base", help="folder with the bundle's pretrained parts")
    parser.add_argument("--protocol", default="icm-256", choices=sorted(PROTOCOLS))
    parser.add_argument("--limit", type=int, help="photos (default: all)")
    parser.add_argument("--bundle", help="a bundle's folder or hub id (default: the embedded one)")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()

    torch.set_num_threads(1)
    codec = slimcodec.load(given.bundle, runtime="torch", base=given.base)
    samples = open_labelled(given.dataset, limit=given.limit)
    judges = [load_classifier(source, given.protocol) for source in given.classifier]
    steps = [0.0, *(float(step) for step in given.uniform.split(",") if step)]
    hits: dict[float, list[list[float]]] = {step: [] for step in steps}
    qualities: dict[float, list[float]] = {step: [] for step in steps}
    symbols: dict[float, list[NDArray[np.int16]]] = {step: [] for step in steps[1:]}
    originals, pixels = [], 0
    for sample in track(samples, "photos"):
        photo = prepare(sample, given.protocol)
        height, width = photo.pixels.shape[:2]
        pixels += height * width
        originals.append(right(judges, photo.pixels, photo.class_index))
        latents = np.asarray(codec.latents(photo.pixels))
        for step in steps:
            coarse = latents
            if step:
                symbols[step].append((latents / step).round().astype(np.int16).reshape(len(latents), -1))
                coarse = (latents / step).round() * np.float32(step)
            decoded = np.asarray(codec.picture(coarse, (width, height)))
            hits[step].append(right(judges, decoded, photo.class_index))
            qualities[step].append(psnr(photo.pixels, decoded))
    draws = resamples(len(originals))
    original = np.array(originals)

    def measured(step: float) -> dict[str, Any]:
        found: dict[str, Any] = {"psnr": round(float(np.mean(qualities[step])), 2)}
        for number, judge in enumerate(judges):
            before, after = original[:, number], np.array(hits[step])[:, number]
            share = 100 * means(after, draws) / means(before, draws)
            found[judge.name] = {
                "top1_percent": rounded(interval(after)),
                "kept_percent": rounded((100 * after.mean() / before.mean(), *np.percentile(share, ENDS))),
            }
        return found

    report = {
        "command": f"python benchmarks/round_trip.py {Path(given.dataset).name} --limit {len(original)} --uniform {given.uniform}",
        "dataset": {"name": samples.name, "sha256": samples.fingerprint, "photos": len(original)},
        "protocol": given.protocol,
        "classifiers": {judge.name: judge.sha256 for judge in judges},
        "bundle": codec.bundle.bundle_id,
        "top1_uncompressed_percent": {
            j.name: rounded(interval(original[:, n])) for n, j in enumerate(judges)
        },
        "round_trip": measured(0.0),
        "uniform": [
            {"step": step, "bpp": round(static_bits(symbols[step]) / pixels, 4), **measured(step)}
            for step in steps[1:]
        ],
    }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")


def right(judges: Sequence[Classifier], pixels: NDArray[np.uint8], wanted: int) -> list[float]:
    """100 for every judge whose answer to a picture is right, 0 for the others."""
    return [100.0 * (judge.judge(pixels, wanted)[1] == 0) for judge in judges]


def static_bits(symbols: Sequence[NDArray[np.int16]]) -> float:
    """Bits of symbols, of each photo [channels, positions], with the frequencies of each channel known."""
    total = 0.0
    for channel in np.concatenate(symbols, axis=1):
        _, counts = np.unique(channel, return_counts=True)
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total


def rounded(values: Sequence[float] | None) -> list[float]:
    return [round(float(value), 2) for value in values or ()]


if __name__ == "__main__":
    main()
