"""Linear layers in exact integers, and their float twins for training.

An exact layer multiplies integer activations by integer weights in float64. Every sum stays far below 2^53, so it is the
same number whatever the order of addition, the number of threads, the batch or the device; results return to a fixed grid
by a rounded shift. Networks built on ``FloatLayer`` run unchanged on either kind.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.models.blocks import at_level
from slimcodec.models.config import ACTIVATION_BITS, LayerConfig
from slimcodec.models.latent_codec import check_layer

#: activations are clipped to 0..2^15-1 units of 2^-8
ACTIVATION_LIMIT = 2**15 - 1
#: weights are stored in 16 bits, with as many fractional bits as fit
MAX_WEIGHT_BITS = 20


def interpolate_levels(table: Tensor, quality: Tensor) -> Tensor:
    """Integer rows of ``table`` [levels, n] at a quality [1] of 1..100: floor of the exact weighted mean, int64 [1, n]."""
    last = table.shape[0] - 1
    position = (quality - 1) * last
    low = torch.div(position, 99, rounding_mode="floor")
    weight = position - 99 * low
    high = (low + 1).clamp(max=last)
    mixed = table[low] * (99 - weight) + table[high] * weight
    return torch.div(mixed, 99, rounding_mode="floor")


class FloatLayer(nn.Module):
    """``y = s (x W^T + b(level))`` on the last axis, optionally with a clipped ReLU: the trainable twin of ``ExactLayer``.

    ``in_scale`` [in] and ``out_scale`` [out] condition training and are folded into the weights at export.
    """

    in_scale: Tensor
    out_scale: Tensor

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.relu, self.in_bits, self.out_bits = config.relu, config.in_bits, config.out_bits
        spread = (2 / config.inputs) ** 0.5 * (1.0 if config.relu else 0.1)
        self.weight = nn.Parameter(torch.randn(config.outputs, config.inputs) * spread)
        self.bias = nn.Parameter(torch.zeros(config.levels, config.outputs))
        self.register_buffer("in_scale", torch.ones(config.inputs))
        self.register_buffer("out_scale", torch.ones(config.outputs))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """x [B, ..., in] and level [B] in 0..levels-1 to [B, ..., out]."""
        y = F.linear(x * self.in_scale, self.weight)
        if self.bias.shape[0] == 1:
            y = y + self.bias[0]
        else:
            y = y + at_level(self.bias, level).reshape(x.shape[0], *([1] * (x.dim() - 2)), -1)
        y = y * self.out_scale
        return y.clamp(0, ACTIVATION_LIMIT / 2**ACTIVATION_BITS) if self.relu else y

    def quantise(self) -> dict[str, Tensor]:
        """The layer on integer grids: ``weight`` int16 [out, in], ``bias`` int64 [levels, out], ``meta`` int32."""
        weight = (self.weight * self.out_scale[:, None] * self.in_scale).detach().double()
        largest = float(weight.abs().max())
        bits = MAX_WEIGHT_BITS
        while largest * 2**bits >= 2**15 - 1:
            bits -= 1
        shift = self.in_bits + bits - self.out_bits
        return {
            "weight": (weight * 2**bits).round().to(torch.int16),
            "bias": ((self.bias * self.out_scale).detach().double() * 2 ** (self.in_bits + bits))
            .round()
            .to(torch.int64),
            "meta": torch.tensor([shift, int(self.relu)], dtype=torch.int32),
        }


class ExactLayer(nn.Module):
    """A ``FloatLayer`` on integer grids: integers in, integers out, bit-exact everywhere."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, meta: Tensor) -> None:
        super().__init__()
        check_layer(weight.numpy(), bias.numpy(), meta.numpy())
        self.shift, self.relu = int(meta[0]), bool(meta[1])
        self.register_buffer("weight", weight.double())
        self.register_buffer("bias", bias.long())

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """x [B, ..., in], integers held in float64, at a quality [1] of 1..100 (``level``), to integers [B, ..., out]."""
        row = interpolate_levels(self.bias, level) if self.bias.shape[0] > 1 else self.bias
        # adding half a unit before the floor rounds to nearest, ties up; all steps are exact in float64
        total = F.linear(x, self.weight, row[0].double() + 2.0 ** (self.shift - 1))
        y = torch.floor(total * 2.0**-self.shift)
        return y.clamp(0, ACTIVATION_LIMIT) if self.relu else y
