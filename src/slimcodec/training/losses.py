"""Loss terms, each with its formula; the stages weigh and log them by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from slimcodec.models.prior import scale_of_index

LOG2 = math.log(2.0)


def symbol_bits(values: Tensor, index: Tensor) -> Tensor:
    """Bits of zero-mean residuals under the discretised Gaussian of a (continuous) table index, elementwise.

    ``-log2(Phi((v + 1/2) / s) - Phi((v - 1/2) / s))`` with ``s = scale_of_index(index)``; values are rounded symbols, or
    symbols with uniform noise in training (Balle et al. 2017).
    """
    scale = scale_of_index(index)
    distance = values.abs()
    # by symmetry both arguments are taken in the left tail; logarithms keep a gradient where the mass underflows
    upper = torch.special.log_ndtr((0.5 - distance) / scale)
    lower = torch.special.log_ndtr((-0.5 - distance) / scale)
    return -(upper + torch.log1p(-torch.exp(lower - upper).clamp(max=1 - 1e-6))) / LOG2


def roi_weights(masks: Tensor, background: float) -> Tensor:
    """Fidelity weight of every pixel: 1 in the RoI, ``background`` outside, linear between."""
    return background + (1 - background) * masks


def weighted_mse(decoded: Tensor, pictures: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``w (x_hat - x)^2`` per picture [B], in units of 0..255 squared, for pictures in [-1, 1]."""
    return ((decoded - pictures) ** 2 * weights).mean((1, 2, 3)) * 127.5**2


class FeatureLoss:
    """Distance of shallow features of frozen classifiers between decoded and original pictures.

    One teacher is drawn per call; the pictures are scaled and shifted at random before it, so that a pattern that is private
    to a network or a pixel grid does not pay. Each stride's squared distance is divided by the features' energy.
    """

    def __init__(
        self,
        teachers: Sequence[Callable[[Tensor], tuple[Tensor, ...]]],
        weights: Sequence[float],
        scales: Sequence[float] = (0.875, 1.0, 1.25),
    ) -> None:
        self.teachers, self.weights, self.scales = list(teachers), list(weights), list(scales)

    def __call__(self, decoded: Tensor, pictures: Tensor) -> Tensor:
        """Loss per picture [B]."""
        teacher = self.teachers[int(torch.randint(len(self.teachers), ()))]
        side = int(decoded.shape[-1] * self.scales[int(torch.randint(len(self.scales), ()))]) // 32 * 32
        shift = torch.randint(-8, 9, (2,)).tolist()

        def view(x: Tensor) -> Tensor:
            x = torch.roll((x + 1) / 2, shift, (2, 3))
            return F.interpolate(x, side, mode="bilinear", antialias=True) if side != x.shape[-1] else x

        with torch.no_grad():
            wanted = teacher(view(pictures))[1:]
        seen = teacher(view(decoded))[1:]
        total = decoded.new_zeros(len(decoded))
        for weight, ours, theirs in zip(self.weights, seen, wanted, strict=False):
            energy = theirs.square().mean((1, 2, 3)) + 1e-6
            total = total + weight * (ours - theirs).square().mean((1, 2, 3)) / energy
        return total
