"""What evidence and guidance do to classifiers of other classes: fine-grained ones, which the tagger does not name.

    python benchmarks/other_tasks.py 'PHOTOS/*.parquet' --source flowers17 --source cat-breeds-boxes [-o OUT.json]

A linear classifier of the photos' own labels is fitted to pooled features of EfficientNet-Lite1 on half of each class's uncompressed
photos. It judges the other half: uncompressed, encoded without and with effort, and decoded with the preset ``machine``. The
encoder keeps evidence of the tagger's class, of ImageNet's, which the caption names too ("a photo of a daisy" where the label is pansy). Top-1 in per cent with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import glob
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

import slimcodec
from slimcodec.data.classifiers import Classifier, load_classifier
from slimcodec.encoder import EFFORT
from slimcodec.evaluation.results import interval
from slimcodec.images import load_image
from slimcodec.processes import track

QUALITIES = (28, 45, 62)
#: the encoder's effort, a name, and how the file is decoded
WAYS: tuple[tuple[int, str, dict[str, Any]], ...] = (
    (0, "effort 0", {"steps": 0}),
    (EFFORT, f"effort {EFFORT}", {"steps": 0}),
    (EFFORT, "machine", {"preset": "machine"}),
)
SIDE = 240
#: weight of the squared coefficients in the fit of the linear classifier
RIDGE = 30.0


def features(network: Classifier, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The deepest feature map of a picture [H, W, 3], averaged over positions, with a one."""
    resized = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    picture = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        deepest = network(picture)[-1].mean((2, 3))[0]
    return np.append(deepest.double().numpy(), 1.0)


def fitted(inputs: NDArray[np.float64], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """A linear classifier [features, classes] by least squares to one-hot labels."""
    targets = np.eye(classes)[labels] - 1 / classes
    square = inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1])
    return np.linalg.solve(square, inputs.T @ targets)


def chosen(pattern: str, source: str, most: int) -> dict[str, list[NDArray[np.uint8]]]:
    """Photos of a collection by label, at most so many of each."""
    by_label: dict[str, list[NDArray[np.uint8]]] = defaultdict(list)
    for path in sorted(glob.glob(pattern)):
        table = pq.read_table(path, columns=["image", "label"], filters=[("source", "=", source)])
        for row in table.to_pylist():
            if row["label"] and len(by_label[row["label"]]) < most:
                by_label[row["label"]].append(load_image(row["image"]["bytes"]))
    if not by_label:
        raise SystemExit(f"{pattern}: no labelled photos of {source}")
    return dict(sorted(by_label.items()))


def measure(pattern: str, source: str, most: int) -> dict[str, Any]:
    """The table of a collection."""
    network, codec = load_classifier("efficientnet-lite1"), slimcodec.load()
    by_label = chosen(pattern, source, most)
    known = [(photo, n) for n, group in enumerate(by_label.values()) for photo in group[::2]]
    unseen = [(photo, n) for n, group in enumerate(by_label.values()) for photo in group[1::2]]
    inputs = np.stack([features(network, photo) for photo, _ in track(known, source)])
    probe = fitted(inputs, np.array([label for _, label in known]), len(by_label))
    right: dict[str, list[float]] = defaultdict(list)
    bpp: dict[str, list[float]] = defaultdict(list)

    def judge(name: str, pixels: NDArray[np.uint8], label: int) -> None:
        right[name].append(100.0 * (int((features(network, pixels) @ probe).argmax()) == label))

    for photo, label in track(unseen, source):
        height, width = photo.shape[:2]
        judge("uncompressed", photo, label)
        for quality in QUALITIES:
            for effort, way, options in WAYS:
                data = codec.encode(photo, quality, effort=effort)
                bpp[f"{quality} {way}"].append(8 * len(data) / (height * width))
                judge(f"{quality} {way}", np.asarray(codec.decode(data, **options)), label)
    return {
        "classes": len(by_label),
        "photos": len(unseen),
        "bpp": {name: round(float(np.mean(values)), 4) for name, values in bpp.items()},
        "top1_percent": {
            name: [round(value, 1) for value in interval(np.array(hits)) or ()]
            for name, hits in right.items()
        },
    }


def main() -> None:
    """Measures every collection, prints the report, and writes it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", help="parquet files with the columns image, label and source")
    parser.add_argument("--source", action="append", required=True, help="a collection; repeatable")
    parser.add_argument("--most", type=int, default=40, help="photos of a class")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sources = " ".join(f"--source {source}" for source in given.source)
    report = {
        "command": f"python benchmarks/other_tasks.py PHOTOS {sources} --most {given.most}",
        "bundle": slimcodec.load().bundle.bundle_id,
        "collections": {source: measure(given.photos, source, given.most) for source in given.source},
    }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
