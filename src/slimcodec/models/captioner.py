"""RoI-focused captions without a mask: a tagger that names, from a small copy of the picture, what a machine should see; and its gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.errors import SlimError
from slimcodec.models.blocks import SameConv, dtype_of
from slimcodec.models.config import CaptionerConfig

#: stride of the first block of each stage, in all networks
STRIDES = (1, 2, 2, 2, 1, 2, 1)
#: channels, blocks and kernel of each stage. MobileNet-v2: Sandler et al. 2018, table 2; EfficientNet-Lite: EfficientNet-B0 and B1 of Tan
#: and Le 2019 with ReLU6, without squeeze-and-excitation
NETWORKS = {
    "mobilenet-v2": ((16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1), (3, 3, 3, 3, 3, 3, 3)),
    "efficientnet-lite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), (3, 3, 5, 3, 5, 5, 3)),
    "efficientnet-lite1": ((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1), (3, 3, 5, 3, 5, 5, 3)),
}
FEATURES = 1280
#: channels inside the head that tells the region of interest
ROI_WIDTH = 64


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, added to the input where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [SameConv(hidden, hidden, kernel, stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Tagger(nn.Module):
    """A network of ``NETWORKS``, its normalisation folded into the convolutions, that scores every tag of the vocabulary."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [SameConv(3, 32, 3, 2), nn.ReLU6(inplace=True)]
        channels = 32
        if config.network not in NETWORKS:
            raise SlimError(f"captioners.network is {config.network!r}; known are {', '.join(NETWORKS)}")
        for stage, (width, blocks, kernel) in enumerate(zip(*NETWORKS[config.network], strict=True)):
            if stage == len(STRIDES) - 2:
                # up to here at a sixteenth of the resolution: where things are is still seen
                self.middle, middle_channels = len(layers), channels
            for number in range(blocks):
                stride, expansion = (1 if number else STRIDES[stage]), (6 if stage else 1)
                layers.append(InvertedResidual(channels, width, stride, expansion, kernel))
                channels = width
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, FEATURES, 1), nn.ReLU6(inplace=True))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(FEATURES, config.tags)
        if config.roi:
            self.roi_fine = nn.Conv2d(middle_channels, ROI_WIDTH, 1)
            self.roi_coarse = nn.Conv2d(FEATURES, ROI_WIDTH, 1)
            self.roi_head = nn.Conv2d(ROI_WIDTH, 1, 3, padding=1)
            with torch.no_grad():
                # nothing is known at first: a random guess over so many features would be a loud one
                self.roi_head.weight.zero_()

    def predict(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pictures [B, 3, H, W] in [-1, 1] of any size, squeezed to a square, to logits [B, tags], float32.

        And, with ``config.roi``, logits [B, 1, side/16, side/16] of the region of interest.
        """
        side = self.config.side
        if pictures.shape[2:] != (side, side):
            pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        middle = self.body[: self.middle](pictures.to(dtype_of(self.body)))
        last = self.body[self.middle :](middle).float()
        logits: Tensor = self.head(self.dropout(last.mean((2, 3))))
        if not self.config.roi:
            return logits, None
        fine = self.roi_fine(middle.float())
        coarse = F.interpolate(self.roi_coarse(last), fine.shape[2:], mode="bilinear")
        return logits, self.roi_head(F.relu(fine + coarse))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to logits [B, tags], float32."""
        return self.predict(pictures)[0]


# ---- the gradient with respect to the picture --------------------------------------------------------------------
#
# Back-propagation through a network without its weights' gradients is a network too: convolutions with transposed weights, and
# masks where a ReLU6 was saturated. A strided convolution's transpose is a convolution to 2x2 phases and a rearrangement. ONNX
# Runtime runs the whole in half the time of automatic differentiation in torch, and needs no torch.


def tag_gradient(tagger: Tagger, view: Tensor, target: Tensor) -> Tensor:
    """The gradient [1, 3, H, W] of log p(target), up to a positive factor, at a view [1, 3, H, W] in [-1, 1].

    ``target`` [1, tags] is one-hot; H and W are multiples of ``guidance.STRIDE``, so that the padding of every layer is known.
    Equal to automatic differentiation to six digits.
    """
    stem, last = tagger.body[0], tagger.body[-2]
    blocks = [layer for layer in tagger.body if isinstance(layer, InvertedResidual)]
    # ``forward`` and no call, which would name the nodes of a traced graph
    before = stem.forward(view)
    first = x = before.clamp(0, 6)
    # of every ReLU6 what it gave, and where it was not saturated
    states = []
    for block in blocks:
        state, y = _forward(block, x)
        states.append(state)
        x = x + y if block.residual else y
    before_top = last.forward(x)
    top = before_top.clamp(0, 6)
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
        before = convolution.forward(x)
        x = before.clamp(0, 6)
        states.append(x == before)
    return states, projection.forward(x)


def _backward(block: InvertedResidual, gradient: Tensor, states: list[Tensor]) -> Tensor:
    *inner, projection = _convolutions(block)
    gradient = _transposed(gradient, projection)
    for convolution, state in zip(reversed(inner), reversed(states), strict=True):
        gradient = _transposed(torch.where(state, gradient, 0.0), convolution)
    return gradient


def _convolutions(block: InvertedResidual) -> list[nn.Conv2d]:
    """Expansion (none in the first block), depthwise convolution and projection."""
    return [layer for layer in block.layers if isinstance(layer, nn.Conv2d)]


def _transposed(x: Tensor, layer: nn.Module) -> Tensor:
    """The transpose of a convolution: from its outputs to its inputs.

    At stride 2 the four phases of what it gives are convolutions of their own, of at most 3x3, and are interleaved.
    """
    assert isinstance(layer, nn.Conv2d)
    weight, groups = layer.weight, layer.groups
    # numbers and not sizes of a traced tensor
    outputs, inputs, side = map(int, weight.shape[:3])
    if layer.stride[0] == 1:
        # a copy that changes nothing costs time whenever the graph is loaded
        flipped = weight.flip(2, 3) if side > 1 else weight
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


def _padded(x: Tensor, weight: Tensor, before: int, after: int, groups: int) -> Tensor:
    if before == after:
        return F.conv2d(x, weight, padding=before, groups=groups)
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, groups=groups)


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
