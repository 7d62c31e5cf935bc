"""The gradient of a frozen tagger with respect to its picture, as a network that only runs forward.

Back-propagation through a network without its weights' gradients is a network too: convolutions with transposed weights, and masks
where a ReLU6 was saturated. A strided convolution's transpose is a convolution to 2x2 phases and a rearrangement. ONNX Runtime runs
the whole in half the time of automatic differentiation in torch, and needs no torch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.models.captioner import InvertedResidual, Tagger


def tag_gradient(tagger: Tagger, view: Tensor, target: Tensor) -> Tensor:
    """The gradient [1, 3, H, W] of log p(target), up to a positive factor, at a view [1, 3, H, W] in [-1, 1].

    ``target`` [1, tags] is one-hot; H and W are multiples of ``guidance.STRIDE``, so that the padding of every layer is known.
    Equal to automatic differentiation to six digits.
    """
    stem, last = tagger.body[0], tagger.body[-2]
    blocks = [layer for layer in tagger.body if isinstance(layer, InvertedResidual)]
    before = _convolved(view, stem)
    first = x = _relu6(before)
    # of every ReLU6 what it gave, and where it was not saturated
    states = []
    for block in blocks:
        state, y = _forward(block, x)
        states.append(state)
        x = x + y if block.residual else y
    before_top = _convolved(x, last)
    top = _relu6(before_top)
    error = target - tagger.head(top.mean((2, 3))).softmax(1)
    # pooling spreads its gradient evenly; the common factor does not matter
    spread = (error @ tagger.head.weight)[:, :, None, None]
    gradient = _transposed(torch.where(top == before_top, spread, 0.0), last)
    for block, state in zip(reversed(blocks), reversed(states), strict=True):
        inner = _backward(block, gradient, state)
        gradient = gradient + inner if block.residual else inner
    return _transposed(torch.where(first == before, gradient, 0.0), stem)


def _forward(block: InvertedResidual, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Where each ReLU6 of a block was not saturated, and what the block adds to its input, or gives."""
    *inner, projection = _convolutions(block)
    states = []
    for convolution in inner:
        before = _convolved(x, convolution)
        x = _relu6(before)
        states.append(x == before)
    return states, _convolved(x, projection)


def _backward(block: InvertedResidual, gradient: Tensor, states: list[Tensor]) -> Tensor:
    *inner, projection = _convolutions(block)
    gradient = _transposed(gradient, projection)
    for convolution, state in zip(reversed(inner), reversed(states), strict=True):
        gradient = _transposed(torch.where(state, gradient, 0.0), convolution)
    return gradient


def _convolutions(block: InvertedResidual) -> list[nn.Conv2d]:
    """Expansion (none in the first block), depthwise convolution and projection."""
    return [layer for layer in block.layers if isinstance(layer, nn.Conv2d)]


def _relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


def _convolved(x: Tensor, layer: nn.Module) -> Tensor:
    """A convolution padded as TensorFlow's "same" for even sides."""
    assert isinstance(layer, nn.Conv2d)
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    total = kernel - stride if stride > 1 else kernel - 1
    before = total // 2
    return _padded(x, layer.weight, before, total - before, layer.groups, layer.bias, stride)


def _transposed(x: Tensor, layer: nn.Module) -> Tensor:
    """The transpose of ``_convolved``: from its outputs to its inputs.

    At stride 2 the four phases of what it gives are convolutions of their own, of at most 3x3, and are interleaved.
    """
    assert isinstance(layer, nn.Conv2d)
    weight, groups = layer.weight, layer.groups
    # numbers and not sizes of a traced tensor
    outputs, inputs, side = map(int, weight.shape[:3])
    if layer.stride[0] == 1:
        flipped = weight.flip(2, 3)
        kernel = flipped if groups > 1 else flipped.transpose(0, 1)
        return _padded(x, kernel, (side - 1) // 2, (side - 1) // 2, groups)
    taps, after = _phases(side)
    # a tap beyond the kernel is zero
    flat = F.pad(weight.reshape(outputs, inputs, side * side), (0, 1))
    phases = flat.index_select(2, taps.to(weight.device)).reshape(outputs, inputs, 4, 2 + after, 2 + after)
    if groups > 1:
        kernel = phases.reshape(outputs * 4, 1, 2 + after, 2 + after)
    else:
        kernel = phases.permute(1, 2, 0, 3, 4).reshape(inputs * 4, outputs, 2 + after, 2 + after)
    return F.pixel_shuffle(_padded(x, kernel, 1, after, groups), 2)


def _padded(
    x: Tensor,
    weight: Tensor,
    before: int,
    after: int,
    groups: int,
    bias: Tensor | None = None,
    stride: int = 1,
) -> Tensor:
    if before == after:
        return F.conv2d(x, weight, bias, stride, before, groups=groups)
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, bias, stride, groups=groups)


def _phases(kernel: int) -> tuple[Tensor, int]:
    """The transpose of a "same" convolution of stride 2: the taps [4 * K * K] of the phases' kernels, and the padding after them.

    Position 2m + phase of the input takes output i = m + offset with tap ``phase + padding - 2 offset``; ``kernel``**2 is none.
    """
    padding = (kernel - 2) // 2
    taps = [
        (phase, tap, (phase + padding - tap) // 2)
        for phase in range(2)
        for tap in range(kernel)
        if (phase + padding - tap) % 2 == 0
    ]
    after = max(offset for *_, offset in taps)
    # in numpy: a traced graph holds the result and not how it was made
    chosen = np.full((2, 2, 2 + after, 2 + after), kernel * kernel)
    for row, tap_y, dy in taps:
        for column, tap_x, dx in taps:
            chosen[row, column, dy + 1, dx + 1] = tap_y * kernel + tap_x
    return torch.from_numpy(chosen.reshape(-1)), after
