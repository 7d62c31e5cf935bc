"""How much of a classifier's accuracy the autoencoder alone keeps: nothing is compressed between its two halves.

    python benchmarks/round_trip.py DATASET --classifier FILE_OR_ID [--protocol icm-256] [--limit 1000] [-o OUT.json]

Top-1 of decoded pictures, whole and as a share of that of the originals, with 95 % bootstrap intervals over photos. Without a
caption's help, the compressor comes near to that at best.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import slimcodec
from slimcodec.data.classifiers import load_classifier
from slimcodec.data.sources import open_labelled
from slimcodec.evaluation.bench import PROTOCOLS, prepare
from slimcodec.evaluation.measures import psnr
from slimcodec.evaluation.results import ENDS, interval, means, resamples


def main() -> None:
    """Measures every photo, prints the report, and writes it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="as in slim bench")
    parser.add_argument("--classifier", required=True, help="as in slim bench")
    parser.add_argument("--protocol", default="icm-256", choices=sorted(PROTOCOLS))
    parser.add_argument("--limit", type=int, help="photos (default: all)")
    parser.add_argument("--bundle", help="a bundle's folder or hub id (default: the embedded one)")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()

    torch.set_num_threads(1)
    codec, protocol = slimcodec.load(given.bundle), given.protocol
    samples, classifier = (
        open_labelled(given.dataset, limit=given.limit),
        load_classifier(given.classifier, given.protocol),
    )
    rows = []
    for sample in samples:
        photo = prepare(sample, protocol)
        height, width = photo.pixels.shape[:2]
        decoded = np.asarray(codec.picture(codec.latents(photo.pixels), (width, height)))
        right = [classifier.judge(pixels, photo.class_index)[1] == 0 for pixels in (photo.pixels, decoded)]
        rows.append((*(100.0 * hit for hit in right), psnr(photo.pixels, decoded)))
    original, kept, quality = np.array(rows, np.float64).T
    draws = resamples(len(rows))
    share = 100 * means(kept, draws) / means(original, draws)
    report = {
        "command": f"python benchmarks/round_trip.py {Path(given.dataset).name} --classifier {Path(given.classifier).name}",
        "dataset": {"name": samples.name, "sha256": samples.fingerprint, "photos": len(rows)},
        "protocol": given.protocol,
        "classifier": {"name": classifier.name, "sha256": classifier.sha256},
        "bundle": codec.bundle.bundle_id,
        "top1_percent": [round(value, 2) for value in interval(kept) or ()],
        "top1_uncompressed_percent": [round(value, 2) for value in interval(original) or ()],
        "kept_percent": [
            round(100 * kept.mean() / original.mean(), 2),
            *(round(float(end), 2) for end in np.percentile(share, ENDS)),
        ],
        "psnr": round(float(quality.mean()), 2),
    }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
