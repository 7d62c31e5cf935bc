"""The runtimes beside each other: time, memory, start-up and agreement.

    python benchmarks/runtimes.py [--rounds 15] [--dataset DATASET --classifier FILE_OR_ID --limit 200] [-o results/runtimes.json]

Times are processor time on one thread, in milliseconds, medians over 256x256 photos that all configurations take in turn, beside
Pillow's AVIF encoder (speed 6). Start-up is the processor time of fresh processes, the least of three. With a data set, top-1 of
pictures that each runtime encodes and decodes, and how far pictures of one file differ. Encoders take no effort: its gradients are
those of the preset ``machine``.
"""

from __future__ import annotations

import io
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from photos import photo_options, photos
from PIL import Image
from timing import median_milliseconds, peak_megabytes, process_seconds

#: arguments of ``slimcodec.load`` by name
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "onnx float32": {"runtime": "onnx"},
    "torch float32": {"runtime": "torch", "dtype": "float32"},
    "torch bfloat16": {"runtime": "torch", "dtype": "bfloat16"},
}
DECODING: dict[str, dict[str, Any]] = {
    "decode": {"steps": 0},
    "decode machine": {"steps": 0, "preset": "machine"},
}
#: what a fresh process does
OPERATION = """
import json, sys
import slimcodec
loading, source, options = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
codec = slimcodec.load(**loading)
codec.encode(source, caption=None, effort=0) if options is None else codec.decode(source, **options)
"""


def processor_seconds(*arguments: str) -> float:
    """Processor time of a fresh process of Python, the least of three."""
    return min(process_seconds([sys.executable, *arguments])[1] for _ in range(3))


def start_up(folder: Path) -> dict[str, float]:
    """Processor seconds of imports and of ``slim`` on a 256x256 photo, by runtime."""
    image, file = folder / "photo.png", folder / "photo.slim"
    found = {name: processor_seconds("-c", f"import {name}") for name in ("numpy", "slimcodec")}
    for runtime in ("onnx", "torch"):
        chosen = ["--runtime", runtime, "--overwrite"]
        encode = ["encode", str(image), "-o", str(file), *chosen]
        decode = ["decode", str(file), "-o", str(folder / "out.png"), "--steps", "0", *chosen]
        for words in (encode, decode):
            found[f"slim {words[0]}, {runtime}"] = processor_seconds("-m", "slimcodec.cli", *words)
    return {name: round(value, 3) for name, value in found.items()}


def peaks(folder: Path) -> dict[str, dict[str, int]]:
    """Peak resident megabytes of fresh processes, by configuration and operation, for 256x256 and 4000x3000."""
    found: dict[str, dict[str, int]] = {}
    for name in ("photo", "large"):
        for configuration, loading in CONFIGURATIONS.items():
            for operation, options in {"encode": None, **DECODING}.items():
                source = folder / (f"{name}.png" if options is None else f"{name}.slim")
                peak = peak_megabytes(OPERATION, json.dumps(loading), str(source), json.dumps(options))
                found.setdefault(f"{operation}, {name}", {})[configuration] = peak
    return found


def agreement(dataset: str, classifier_name: str, limit: int) -> dict[str, Any]:
    """Top-1 of both runtimes' own files and pictures, and the difference between their pictures of one file."""
    import slimcodec
    from slimcodec.data.classifiers import load_classifier
    from slimcodec.data.sources import open_labelled
    from slimcodec.evaluation.bench import prepare
    from slimcodec.evaluation.results import interval

    codecs = [slimcodec.load(**CONFIGURATIONS[name]) for name in ("onnx float32", "torch float32")]
    classifier = load_classifier(classifier_name, "icm-256")
    hits: list[list[float]] = []
    largest, other_files = 0, 0
    for sample in open_labelled(dataset, limit=limit):
        photo = prepare(sample, "icm-256")
        files = [codec.encode(photo.pixels, effort=0) for codec in codecs]
        other_files += files[0] != files[1]
        pictures = [np.asarray(codec.decode(data, 0)) for codec, data in zip(codecs, files, strict=True)]
        same = np.asarray(codecs[1].decode(files[0], 0), np.int16)
        largest = max(largest, int(np.abs(pictures[0].astype(np.int16) - same).max()))
        hits.append([100.0 * (classifier.judge(picture, photo.class_index)[1] == 0) for picture in pictures])
    onnx, torch = np.array(hits).T
    return {
        "photos": len(hits),
        "classifier": classifier.name,
        "top1_onnx": round(float(onnx.mean()), 2),
        "top1_torch": round(float(torch.mean()), 2),
        "difference": [round(value, 2) for value in interval(onnx - torch) or ()],
        "files_that_differ": other_files,
        "largest_difference_of_pictures": largest,
    }


def main() -> None:
    """Measures, prints the report, and writes it where asked."""
    parser = photo_options(__doc__, 4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dataset", help="labelled photos, as in slim bench")
    parser.add_argument("--classifier", help="judge, as in slim bench")
    parser.add_argument("--limit", type=int, default=200, help="photos of the data set")
    given = parser.parse_args()

    import torch

    import slimcodec

    torch.set_num_threads(1)
    pictures = photos(given.photos, given.count)
    codecs = {name: slimcodec.load(**loading) for name, loading in CONFIGURATIONS.items()}
    files = [codecs["onnx float32"].encode(picture) for picture in pictures]
    operations: dict[str, Callable[[int], object]] = {
        "avif encode": lambda number: pictures[number].save(io.BytesIO(), "AVIF", speed=6, max_threads=1)
    }
    for name, codec in codecs.items():
        operations[f"encode, {name}"] = lambda number, codec=codec: codec.encode(pictures[number], effort=0)  # type: ignore[misc]
        for kind, options in DECODING.items():
            operations[f"{kind}, {name}"] = lambda number, codec=codec, options=options: codec.decode(  # type: ignore[misc]
                files[number], **options
            )
    medians = median_milliseconds(operations, len(pictures), given.rounds)
    report: dict[str, Any] = {
        "command": "python benchmarks/runtimes.py " + " ".join(Path(word).name for word in sys.argv[1:]),
        "bundle": codecs["onnx float32"].bundle.bundle_id,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "numpy")},
        "processor_milliseconds": {name: round(value, 1) for name, value in medians.items()},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures[0].save(folder / "photo.png")
        pictures[0].resize((4000, 3000), Image.Resampling.BICUBIC).save(
            folder / "large.png", compress_level=1
        )
        for size in ("photo", "large"):
            data = codecs["onnx float32"].encode(folder / f"{size}.png", caption="tabby")
            (folder / f"{size}.slim").write_bytes(data)
        report["start_up_processor_seconds"] = start_up(folder)
        report["peak_megabytes"] = peaks(folder)
    if given.dataset:
        report["agreement"] = agreement(given.dataset, given.classifier, given.limit)
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
