"""Networks small enough to make in a test: an ONNX classifier of colours and an ONNX detector of bright squares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 1000
#: name and shape
Value = tuple[str, Sequence[int | str]]


def colour_classifier(path: Path, side: int | str = 32, classes: int = CLASSES) -> Path:
    """A linear classifier of a picture's mean colours in a 4x4 grid, random weights, the same every time."""
    weights = np.random.default_rng(3).normal(size=(48, classes)).astype(np.float32)
    weights -= weights.mean(0)
    nodes = [
        helper.make_node("AveragePool", ["x"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    entry: Value = ("x", ["b", 3, side, side])
    _save(path, nodes, [entry], [("logits", ["b", classes])], {"weights": weights})
    return path


def square_detector(path: Path) -> Path:
    """One box [8, 8, 24, 24] of class 1, its score the mean brightness inside, and one of class 0 and score 0.9 beside it."""
    nodes = [
        helper.make_node("Slice", ["x", "from", "to", "axes"], ["inside"]),
        helper.make_node("ReduceMean", ["inside"], ["bright"], keepdims=0),
        helper.make_node("Reshape", ["bright", "one"], ["score"]),
        helper.make_node("Concat", ["score", "sure"], ["scores"], axis=0),
        helper.make_node("Identity", ["two_boxes"], ["boxes"]),
        helper.make_node("Identity", ["two_classes"], ["classes"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "from": np.array([8, 8], np.int64),
        "to": np.array([24, 24], np.int64),
        "axes": np.array([2, 3], np.int64),
        "one": np.array([1], np.int64),
        "sure": np.array([0.9], np.float32),
        "two_boxes": np.array([[8, 8, 24, 24], [0, 0, 6, 6]], np.float32),
        "two_classes": np.array([1, 0], np.int64),
    }
    outputs: list[Value] = [("boxes", [2, 4]), ("scores", [2]), ("classes", [2])]
    _save(path, nodes, [("x", [1, 3, 32, 32])], outputs, constants)
    return path


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: Mapping[str, NDArray[Any]],
) -> None:
    kinds = {"classes": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "judge",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
