"""The gradient of a frozen tagger with respect to its picture, as an ONNX graph that only runs forward.

Back-propagation through a network without its weights' gradients is a network too: convolutions with transposed weights, and masks
where a ReLU6 was saturated. A strided convolution's transpose is a convolution to 2x2 phases and a rearrangement. ONNX Runtime runs
the whole in half the time of automatic differentiation in torch, and needs no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from slimcodec.models.captioner import InvertedResidual, Tagger

#: sides of a view are multiples of the network's stride, so that the padding of every layer is known
STRIDE = 32
OPSET, IR_VERSION = 17, 9
Array = NDArray[np.float32]


class _Graph:
    """Nodes and constants of an ONNX graph; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        #: input of each ReLU6, by its output
        self.inputs: dict[str, str] = {}
        self.zero, self.six = self.constant(np.float32(0)), self.constant(np.float32(6))

    def constant(self, value: Any) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def convolution(
        self, x: str, weight: Array, bias: Array | None = None, *, stride: int = 1, groups: int = 1
    ) -> str:
        """A convolution padded as TensorFlow's "same" for even sides."""
        kernel = weight.shape[2]
        total = kernel - stride if stride > 1 else kernel - 1
        before = total // 2
        return self._convolution(x, weight, bias, stride, groups, before, total - before)

    def transposed(self, x: str, weight: Array, stride: int, groups: int = 1) -> str:
        """The transpose of ``convolution`` with ``weight`` [O, I / groups, k, k]: from its outputs to its inputs.

        At stride 2 the output's four phases are convolutions of their own, of at most 3x3, and are interleaved.
        """
        if stride == 1:
            flipped = weight[:, :, ::-1, ::-1]
            return self.convolution(x, flipped if groups > 1 else flipped.swapaxes(0, 1), groups=groups)
        phases, after = _phases(weight)
        outputs, inputs, _, side, _ = phases.shape
        if groups > 1:
            kernel = phases.reshape(outputs * 4, 1, side, side)
        else:
            kernel = phases.transpose(1, 2, 0, 3, 4).reshape(inputs * 4, outputs, side, side)
        x = self._convolution(x, kernel, None, 1, groups, 1, after)
        return self.node("DepthToSpace", x, blocksize=2, mode="CRD")

    def relu6(self, x: str) -> str:
        activation = self.node("Clip", x, self.zero, self.six)
        self.inputs[activation] = x
        return activation

    def through_relu6(self, gradient: str, activation: str) -> str:
        """The gradient before a ReLU6: zero where the output differs from the input, which is where it was saturated."""
        unsaturated = self.node("Equal", activation, self.inputs[activation])
        return self.node("Where", unsaturated, gradient, self.zero)

    def _convolution(
        self, x: str, weight: Array, bias: Array | None, stride: int, groups: int, before: int, after: int
    ) -> str:
        inputs = [x, self.constant(weight)] + ([] if bias is None else [self.constant(bias)])
        return self.node(
            "Conv",
            *inputs,
            kernel_shape=weight.shape[2:],
            strides=[stride] * 2,
            pads=[before, before, after, after],
            group=groups,
        )


def _phases(weight: Array) -> tuple[Array, int]:
    """The transpose of a "same" convolution of stride 2: kernels [O, I, 4, K, K] of the output's phases, and the padding after them.

    Output position 2m + phase takes input i = m + offset with tap ``kernel = phase + padding - 2 offset``.
    """
    outputs, inputs, kernel = weight.shape[:3]
    padding = (kernel - 2) // 2
    taps = [
        (phase, tap, (phase + padding - tap) // 2)
        for phase in range(2)
        for tap in range(kernel)
        if (phase + padding - tap) % 2 == 0
    ]
    after = max(offset for *_, offset in taps)
    phases = np.zeros((outputs, inputs, 2, 2, 2 + after, 2 + after), np.float32)
    for row, tap_y, dy in taps:
        for column, tap_x, dx in taps:
            phases[:, :, row, column, dy + 1, dx + 1] = weight[:, :, tap_y, tap_x]
    return phases.reshape(outputs, inputs, 4, 2 + after, 2 + after), after


def gradient_graph(tagger: Tagger) -> bytes:
    """An ONNX model: ``view`` [1, 3, H, W] in [-1, 1] and ``target`` [1, tags], one-hot, to ``gradient`` [1, 3, H, W].

    The gradient is that of log p(target), up to a positive factor; H and W are multiples of ``STRIDE``. Equal to automatic
    differentiation to six digits.
    """
    graph = _Graph()
    stem, last = tagger.body[0], tagger.body[-2]
    blocks = [layer for layer in tagger.body if isinstance(layer, InvertedResidual)]
    first = x = graph.relu6(graph.convolution("view", *_parameters(stem), stride=2))
    activations = []
    for block in blocks:
        expanded, deep, y = _block(graph, block, x)
        activations.append((expanded, deep))
        x = graph.node("Add", x, y) if block.residual else y
    top = graph.relu6(graph.convolution(x, *_parameters(last)))
    pooled = graph.node("Flatten", graph.node("GlobalAveragePool", top))
    weight, bias = _parameters(tagger.head)
    scores = graph.constant(weight)
    logits = graph.node("Gemm", pooled, scores, graph.constant(bias), transB=1)

    error = graph.node("Sub", "target", graph.node("Softmax", logits, axis=1))
    # pooling spreads its gradient evenly; the common factor does not matter
    spread = graph.node("Unsqueeze", graph.node("MatMul", error, scores), graph.constant(np.array([2, 3])))
    gradient = graph.transposed(graph.through_relu6(spread, top), _parameters(last)[0], 1)
    for block, (expanded, deep) in zip(reversed(blocks), reversed(activations), strict=True):
        inner = _block_gradient(graph, block, gradient, expanded, deep)
        gradient = graph.node("Add", gradient, inner) if block.residual else inner
    gradient = graph.transposed(graph.through_relu6(gradient, first), _parameters(stem)[0], 2)
    graph.node("Identity", gradient, output="gradient")

    def picture(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "height", "width"])

    target = helper.make_tensor_value_info("target", TensorProto.FLOAT, [1, len(bias)])
    content = helper.make_graph(
        graph.nodes, "gradient", [picture("view"), target], [picture("gradient")], graph.constants
    )
    model = helper.make_model(content, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    serialised: bytes = model.SerializeToString()
    return serialised


def _block(graph: _Graph, block: InvertedResidual, x: str) -> tuple[str, str, str]:
    """Names of the expanded activation, that after the depthwise convolution, and the projection."""
    expansion, depthwise, projection = _convolutions(block)
    if expansion is not None:
        x = graph.relu6(graph.convolution(x, *_parameters(expansion)))
    weight, bias = _parameters(depthwise)
    deep = graph.relu6(graph.convolution(x, weight, bias, stride=depthwise.stride[0], groups=len(weight)))
    return x, deep, graph.convolution(deep, *_parameters(projection))


def _block_gradient(graph: _Graph, block: InvertedResidual, gradient: str, expanded: str, deep: str) -> str:
    expansion, depthwise, projection = _convolutions(block)
    gradient = graph.through_relu6(graph.transposed(gradient, _parameters(projection)[0], 1), deep)
    weight, _ = _parameters(depthwise)
    gradient = graph.transposed(gradient, weight, depthwise.stride[0], groups=len(weight))
    if expansion is None:
        return gradient
    return graph.transposed(graph.through_relu6(gradient, expanded), _parameters(expansion)[0], 1)


def _convolutions(block: InvertedResidual) -> tuple[nn.Conv2d | None, nn.Conv2d, nn.Conv2d]:
    """Expansion (None in a block without one), depthwise convolution and projection."""
    *expansion, depthwise, projection = (layer for layer in block.layers if isinstance(layer, nn.Conv2d))
    return (expansion[0] if expansion else None), depthwise, projection


def _parameters(layer: nn.Module) -> tuple[Array, Array]:
    weight, bias = (layer.get_parameter(name).detach().float().cpu().numpy() for name in ("weight", "bias"))
    return weight, bias
