"""The prior over latent symbols: a hyperprior and a two-pass checkerboard context (He et al. 2021, CVPR), exact at run time.

The same network code runs on float layers (training) and on exact integer layers (coding). An exact layer multiplies integer
activations by integer weights in float64. Every sum stays far below 2^53, so it is the same number whatever the order of addition,
the number of threads, the batch or the device; results return to a fixed grid by a rounded shift.

Tensors are channels-last, [B, h, w, C]. Means live on a grid of 1/16, scales are indices 0..63 into the bundle's symbol tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.models.blocks import at_level
from slimcodec.models.config import ACTIVATION_BITS, SCALES, LayerConfig

#: activations are clipped to 0..2^15-1 units of 2^-8
ACTIVATION_LIMIT = 2**15 - 1
#: weights are stored in 16 bits, with as many fractional bits as fit
MAX_WEIGHT_BITS = 20
#: means are clipped so that mean plus symbol stays far inside the exact range
MEAN_LIMIT = 2**18
#: at the smallest scale a zero costs a millionth of a bit; a smaller one would only starve training of gradients
SCALE_MIN, SCALE_MAX = 0.1, 256.0
#: offsets of the 12 anchors around a non-anchor, in a 5x5 window
CONTEXT_OFFSETS = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]


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
    """A ``FloatLayer`` on integer grids, which ``check_prior`` has looked at: integers in, integers out, bit-exact everywhere."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, meta: Tensor) -> None:
        super().__init__()
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


def scale_of_index(index: Tensor) -> Tensor:
    """Standard deviation of the table at a (continuous) index 0..63: logarithmic from 0.1 to 256."""
    return SCALE_MIN * torch.exp(index * (math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1)))


def index_of_scale(scale: Tensor) -> Tensor:
    """The inverse of ``scale_of_index``."""
    return torch.log(scale / SCALE_MIN) * ((SCALES - 1) / math.log(SCALE_MAX / SCALE_MIN))


def neighbours(x: Tensor, offsets: list[tuple[int, int]], radius: int, at: Tensor) -> Tensor:
    """Values of [B, h, w, C] at offsets from the positions ``at`` [N], counted in raster order, zero outside.

    The result [B, N, len(offsets) * C] holds the offsets one after another, all channels of each.
    """
    batch, _, width, channels = x.shape
    columns = width + 2 * radius
    padded = F.pad(x, (0, 0, radius, radius, radius, radius)).reshape(batch, -1, channels)
    centres = (at // width + radius) * columns + at % width + radius
    # from tensors: in a traced graph the width is not a constant
    down, right = torch.tensor(offsets, device=x.device).unbind(1)
    steps = down * columns + right
    values = padded.index_select(1, (centres[:, None] + steps).reshape(-1))
    return values.reshape(batch, -1, len(offsets) * channels)


def window(x: Tensor) -> Tensor:
    """The 3x3 window around every position of [B, h, w, C]: [B, h, w, 9C]."""
    batch, height, width, _ = x.shape
    every = torch.arange(height * width, device=x.device)
    return neighbours(x, WINDOW_3X3, 1, every).reshape(batch, height, width, -1)


WINDOW_3X3 = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def depth_to_space(x: Tensor) -> Tensor:
    """[B, h, w, 4C] to [B, 2h, 2w, C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


class PriorNetwork(nn.Module):
    """Hyper-synthesis, context and heads; ``layers`` are all ``FloatLayer`` or all ``ExactLayer``.

    ``level`` is what the layers take: a tensor [B] of positions between levels, or a quality [1] of 1..100.
    """

    def __init__(self, channels: int, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.channels = channels
        self.layers = nn.ModuleDict(layers)

    def hyper_features(self, hyper: Tensor, level: Any) -> Tensor:
        """Features [B, 4h, 4w, W] from hyper-latents [B, h, w, Ch]."""
        x = self.layers["hyper_in"](hyper, level)
        x = depth_to_space(self.layers["hyper_up1"](window(x), level))
        return depth_to_space(self.layers["hyper_up2"](window(x), level))

    def anchor_parameters(self, features: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        """Mean and scale index [..., C] of the first pass from features [..., W]."""
        return self._head("anchor", features, level)

    def context(self, anchors: Tensor, at: Tensor) -> Tensor:
        """Anchors around the positions ``at`` [N]: [B, N, 12C], from latents [B, h, w, C] that are zero elsewhere."""
        return neighbours(anchors, CONTEXT_OFFSETS, 2, at)

    def rest_parameters(self, features: Tensor, context: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        """Mean and scale index [..., C] of the second pass from features [..., W] and context [..., 12C]."""
        context = self.layers["context"](context, level)
        return self._head("rest", torch.cat([features, context], dim=-1), level)

    def _head(self, name: str, x: Tensor, level: Any) -> tuple[Tensor, Tensor]:
        for part in ("1", "2"):
            x = self.layers[f"{name}_{part}"](x, level)
        mean = self.layers[f"{name}_mean"](x, level)
        scale = self.layers[f"{name}_scale"](x, level)
        return mean, scale


class ExactPrior(nn.Module):
    """The integer prior that the codec runs: hyper-latents and symbols in, table indices and means out.

    A quality is [1], int64; positions [N] are counted in raster order.
    """

    hyper_index: Tensor

    def __init__(self, channels: int, tensors: dict[str, Tensor]) -> None:
        """``tensors``: the integers that ``quantise_prior`` made, which ``check_prior`` has looked at."""
        super().__init__()
        # in order: the graph that is made of a prior is the same each time
        names = sorted({name.split(".")[0] for name in tensors} - {"hyper_index", "tables"})
        layers = {
            name: ExactLayer(*(tensors[f"{name}.{part}"] for part in ("weight", "bias", "meta")))
            for name in names
        }
        self.network = PriorNetwork(channels, layers)
        #: table index of each hyper-latent channel at each level, in 1/16 [levels, Ch]
        self.register_buffer("hyper_index", tensors["hyper_index"].long())

    def hyper_indices(self, quality: Tensor) -> Tensor:
        """Table index of each hyper-latent channel [Ch], int64."""
        return ((interpolate_levels(self.hyper_index, quality)[0] + 8) >> 4).clamp(0, SCALES - 1)

    def features(self, hyper: Tensor, quality: Tensor) -> Tensor:
        """Features [B, 4h, 4w, W], int16, of hyper-latents [B, h, w, Ch], int64."""
        return self.network.hyper_features(hyper.double(), quality).to(torch.int16)

    def first_pass(self, features: Tensor, at: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Means in 1/16 and table indices [B, N, C], int64, at anchors; ``features`` [B, h, w, W], int16."""
        here = features.flatten(1, 2).index_select(1, at).double()
        return _limited(self.network.anchor_parameters(here, quality))

    def second_pass(
        self, features: Tensor, anchors: Tensor, at: Tensor, quality: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means in 1/16 and table indices [B, N, C] at other positions; ``anchors`` [B, h, w, C], int32 in 1/16, else 0."""
        here = features.flatten(1, 2).index_select(1, at).double()
        context = self.network.context(anchors, at).double()
        return _limited(self.network.rest_parameters(here, context, quality))


def _limited(parameters: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    mean, scale = parameters
    return mean.clamp(-MEAN_LIMIT, MEAN_LIMIT).long(), scale.clamp(0, SCALES - 1).long()


def quantise_prior(network: PriorNetwork, hyper_index: Tensor) -> dict[str, Tensor]:
    """Integer tensors of a trained float prior; ``hyper_index`` [levels, Ch] is in units of one table."""
    tensors = {"hyper_index": (hyper_index.detach() * 16).round().to(torch.int32)}
    for name, layer in network.layers.items():
        assert isinstance(layer, FloatLayer)
        tensors |= {f"{name}.{part}": value for part, value in layer.quantise().items()}
    return tensors
