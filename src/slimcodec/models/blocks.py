"""Convolutional blocks of our networks, and what they ask of levels and types.

No block normalises over space, so a picture cut into overlapping tiles gives the same values as the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a SiLU, added to the input; the second starts small, so a new block is near identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + hidden


class SameConv(nn.Conv2d):
    """A convolution that pads at the right and bottom first, as the networks do whose weights the captioner starts from."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        # plain numbers also where a network is traced for export
        sizes = map(int, x.shape[2:])
        rows, columns = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in sizes)
        padding = rows // 2, columns // 2
        if rows % 2 or columns % 2:
            x, padding = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)), (0, 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def small_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution that starts near zero, for the end of a branch that is added to a linear path."""
    conv = nn.Conv2d(in_channels, out_channels, 1)
    with torch.no_grad():
        conv.weight.mul_(0.02)
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
