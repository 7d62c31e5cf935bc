"""The autoencoder's graphs in 8 bits, by ONNX Runtime's quantisation: time, and distance from float32.

    python benchmarks/quantised.py [--photos DATA] [--count 16] [--rounds 9] [-o results/experiments/onnx_int8.json]

Half of the photos calibrate the static kinds, the other half is measured, 256x256, on one thread. ``decode`` is compared as it is:
PSNR of its pictures to those of float32. ``encode`` is compared by the pictures that float32 decodes from its latents.
Times are processor milliseconds, medians of rounds that all kinds take in turn. Needs the package onnx.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from photos import photo_options, photos
from timing import median_milliseconds

from slimcodec.models.bundle import Bundle
from slimcodec.models.graphs import with_weights

#: keyword arguments of ``quantize_static``; integers of activations and weights
STATIC: dict[str, dict[str, Any]] = {
    "static, int8 activations": {"activation_type": QuantType.QInt8},
    "static, uint8 activations": {"activation_type": QuantType.QUInt8},
    "static, convolutions alone": {"activation_type": QuantType.QUInt8, "op_types_to_quantize": ["Conv"]},
    # those of the residual blocks: the linear path and the layers at both ends lose most and save nothing
    "static, 3x3 convolutions alone": {"activation_type": QuantType.QUInt8, "op_types_to_quantize": ["Conv"]},
}


class Inputs(CalibrationDataReader):  # type: ignore[misc]
    """Inputs of a graph, one after the other."""

    def __init__(self, name: str, arrays: list[Any]) -> None:
        self.feeds: Iterator[dict[str, Any]] = iter([{name: array} for array in arrays])

    def get_next(self) -> dict[str, Any] | None:
        """The next input, None at the end."""
        return next(self.feeds, None)


def session(model: str | bytes) -> Any:
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def kinds(bundle: Bundle, network: str, arrays: list[Any], folder: Path) -> dict[str, Any]:
    """Sessions of a network by the kind of its arithmetic."""
    graph = bundle.graph(network)
    (folder / "float.onnx").write_bytes(with_weights(graph, bundle.stored[graph.part]))
    # with weights that are constants: what quantisation looks for
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "plain.onnx")
    onnxruntime.InferenceSession(str(folder / "float.onnx"), options, providers=["CPUExecutionProvider"])
    found = {"float32": session(str(folder / "plain.onnx"))}
    quantize_dynamic(folder / "plain.onnx", folder / "dynamic.onnx", per_channel=True)
    found["dynamic"] = session(str(folder / "dynamic.onnx"))
    model = onnx.load(folder / "plain.onnx")
    sides = {tensor.name: tuple(tensor.dims[2:]) for tensor in model.graph.initializer}
    wide = [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and sides.get(node.input[1]) == (3, 3)
    ]
    for kind, chosen in STATIC.items():
        quantize_static(
            folder / "plain.onnx",
            folder / "static.onnx",
            Inputs(graph.inputs[0], arrays),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=wide if "3x3" in kind else None,
            **chosen,
        )
        found[kind] = session(str(folder / "static.onnx"))
    return found


def decibels(pictures: list[Any], others: list[Any]) -> float:
    """PSNR of pictures to others, from their mean squared error over all."""
    errors = [
        np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
        for a, b in zip(pictures, others, strict=True)
    ]
    return round(float(10 * np.log10(255**2 / np.mean(errors))), 1)


def largest(pictures: list[Any], others: list[Any]) -> int:
    """The largest difference of two values, of 255."""
    return max(int(np.abs(a.astype(np.int16) - b).max()) for a, b in zip(pictures, others, strict=True))


def milliseconds(sessions: dict[str, Any], name: str, arrays: list[Any], rounds: int) -> dict[str, float]:
    """Median processor time of every kind."""
    operations: dict[str, Any] = {
        kind: lambda number, chosen=chosen: chosen.run(None, {name: arrays[number]})
        for kind, chosen in sessions.items()
    }
    medians = median_milliseconds(operations, len(arrays), rounds, warm_up=1)
    return {kind: round(value, 1) for kind, value in medians.items()}


def main() -> None:
    """Quantises, measures, prints the report, and writes it where asked."""
    parser = photo_options(__doc__, 16)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    bundle = Bundle.from_pretrained()
    pixels = [
        np.asarray(photo).transpose(2, 0, 1)[None].copy() for photo in photos(given.photos, given.count)
    ]
    run = {name: bundle.onnx.run for name in ("encode", "decode")}
    latents = [run["encode"]("encode", picture)[0] for picture in pixels]
    half = len(pixels) // 2
    report: dict[str, Any] = {
        "command": "python benchmarks/quantised.py " + " ".join(Path(word).name for word in sys.argv[1:]),
        "bundle": bundle.bundle_id,
        "photos": len(pixels) - half,
        "versions": {name: version(name) for name in ("onnxruntime", "onnx")},
    }
    for network, arrays in (("encode", pixels), ("decode", latents)):
        with tempfile.TemporaryDirectory() as folder:
            sessions = kinds(bundle, network, arrays[:half], Path(folder))
        name = bundle.graph(network).inputs[0]
        times = milliseconds(sessions, name, arrays[half:], given.rounds)
        pictures = {}
        for kind, chosen in sessions.items():
            results = [chosen.run(None, {name: array})[0] for array in arrays[half:]]
            pictures[kind] = (
                results if network == "decode" else [run["decode"]("decode", each)[0] for each in results]
            )
        report[network] = {
            kind: {
                "milliseconds": times[kind],
                "psnr_to_float32": None
                if kind == "float32"
                else decibels(pictures[kind], pictures["float32"]),
                "largest_difference": largest(pictures[kind], pictures["float32"]),
            }
            for kind in sessions
        }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
