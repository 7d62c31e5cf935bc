"""Small convolutional blocks shared by the autoencoder and the compressor, and what all networks ask of levels and types.

None of them normalises over space, so a picture cut into overlapping tiles gives the same values as the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a SiLU, added to the input; the second starts small, so a new block is near identity."""

    #: positions that an output value looks to each side
    radius = 2
    #: ``layers`` are added to the input
    residual = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """What is added to the input, in order: ``slimcodec.models.fused`` reads it too."""
        return nn.SiLU(), self.conv1, nn.SiLU(), self.conv2

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for layer in self.layers:
            hidden = layer(hidden)
        return x + hidden


class SameConv(nn.Conv2d):
    """A convolution that pads at the right and bottom first, as the networks do whose weights the captioner starts from."""

    def padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input, padded where that is uneven, and the even padding that is left to do."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:])
        if rows % 2 or columns % 2:
            return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)), (0, 0)
        return x, (rows // 2, columns // 2)

    def widened(self, x: Tensor) -> bool:
        """Whether even padding of 1, and a kernel with a row and a column of zeros before it, come to the same for an input.

        Copying a large input into a padded one takes longer than the zeros of a depthwise kernel.
        """
        even = not (x.shape[2] % 2 or x.shape[3] % 2)
        return self.groups > 1 and self.kernel_size == (3, 3) and self.stride == (2, 2) and even

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self.padded(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def small_conv(
    in_channels: int, out_channels: int, gain: float = 0.02, kind: type[nn.Conv2d] = nn.Conv2d
) -> nn.Conv2d:
    """A 1x1 convolution that starts near zero, for the end of a branch that is added to a linear path."""
    conv = kind(in_channels, out_channels, 1)
    with torch.no_grad():
        conv.weight.mul_(gain)
        if conv.bias is not None:
            conv.bias.zero_()
    return conv


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating-point type that the module's parameters have."""
    return next(module.parameters()).dtype


def quality_to_level(quality: Tensor, levels: int) -> Tensor:
    """Quality 1..100 as a position between trained levels, 0..levels-1."""
    return (quality.float() - 1) * ((levels - 1) / 99)


def at_level(table: Tensor, level: Tensor) -> Tensor:
    """Rows of ``table`` [levels, ...] linearly interpolated at ``level`` [B], in 0..levels-1."""
    low = level.floor().clamp(0, table.shape[0] - 1)
    high = (low + 1).clamp(max=table.shape[0] - 1)
    weight = (level - low).reshape(-1, *([1] * (table.dim() - 1)))
    return table[low.long()] * (1 - weight) + table[high.long()] * weight
