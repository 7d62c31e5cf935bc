"""Loss terms, each with its formula; the stages weigh and log them by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from slimcodec.data.classifiers import Classifier
from slimcodec.models.prior import scale_of_index
from slimcodec.training.batches import Batch, Draws

#: evens out the size of the compressor's loss and that of other stages, so that one clipping of gradients suits all
LOSS_SCALE = 0.1


def symbol_bits(values: Tensor, index: Tensor) -> Tensor:
    """Bits of zero-mean residuals under the discretised Gaussian of a (continuous) table index, elementwise.

    ``-log2(Phi((v + 1/2) / s) - Phi((v - 1/2) / s))``, ``s = scale_of_index(index)``, of rounded or noisy symbols.
    """
    scale = scale_of_index(index)
    distance = values.abs()
    # by symmetry both arguments are taken in the left tail; logarithms keep a gradient where the mass underflows
    upper = torch.special.log_ndtr((0.5 - distance) / scale)
    lower = torch.special.log_ndtr((-0.5 - distance) / scale)
    return -(upper + torch.log1p(-torch.exp(lower - upper).clamp(max=1 - 1e-6))) / math.log(2)


def roi_weights(masks: Tensor, background: float) -> Tensor:
    """Fidelity weight of every pixel: 1 in the RoI, ``background`` outside, linear between."""
    return background + (1 - background) * masks


def weighted_mse(decoded: Tensor, pictures: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Mean of ``w (x_hat - x)^2`` per picture [B], in units of 0..255 squared, for pictures in [-1, 1]."""
    return ((decoded - pictures) ** 2 * weights).mean((1, 2, 3)) * 127.5**2


@dataclass(frozen=True)
class Features:
    """What frozen classifiers add to fidelity."""

    #: weight of the feature maps by depth, the shallowest (stride 4) first
    weights: tuple[float, ...] = (1.0, 1.0, 0.3)
    #: weight of the divergence of the classifiers' answers, whose gradient is large, and shared by networks at low rates alone
    logits: float = 0.0
    start: float = 0.5  #: share of the stage before they join
    #: weight of the features' distance, and what is left of that of the squared error beside it
    weight: float = 0.3
    squared_error: float = 0.4
    share: float = 0.5  #: share of the batch


#: squared error, in units of 0..255 squared, that typically goes with a distance of features of 1
FEATURE_UNIT = 300.0


@dataclass
class Fidelity:
    """RoI-weighted squared error, joined by features of frozen classifiers: F in docs/training.md.

    One of the ``teachers`` is drawn for each step. It sees decoded and original pictures scaled by one of ``scales`` and shifted
    by up to ``shift`` pixels, so that a pattern private to a network or a pixel grid does not pay.
    """

    background: float
    features: Features = field(default_factory=Features)
    teachers: Sequence[Classifier] = ()
    scales: Sequence[float] = (0.875, 1.0, 1.25)
    shift: int = 8

    def __call__(
        self, decoded: Tensor, pictures: Tensor, masks: Tensor, draws: Draws, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """F per picture [B], in units of 0..255 squared, and its terms; pictures in [-1, 1], masks [B, 1, H, W]."""
        fidelity = weighted_mse(decoded, pictures, roi_weights(masks, self.background))
        features = self.features
        chosen = draws.every(features.share).nonzero()[:, 0]
        if not self.teachers or progress < features.start or not len(chosen):
            return fidelity, {}
        distance = self.distance(decoded[chosen], pictures[chosen], draws)
        mixed = features.squared_error * fidelity[chosen] + features.weight * FEATURE_UNIT * distance
        return fidelity.index_put((chosen,), mixed), {"feature": distance.detach().mean()}

    def distance(self, decoded: Tensor, pictures: Tensor, draws: Draws) -> Tensor:
        """Distance of features [B] of pictures in [-1, 1]: each depth's squared distance is divided by the features' energy."""
        features = self.features
        teacher = self.teachers[draws.common(0, len(self.teachers))]
        scale = self.scales[draws.common(0, len(self.scales))]
        side = max(32, int(decoded.shape[-1] * scale) // 32 * 32)
        shift = [draws.common(-self.shift, self.shift + 1) for _ in range(2)]

        def classify(x: Tensor) -> tuple[Tensor | None, Sequence[Tensor]]:
            x = torch.roll((x + 1) / 2, shift, (2, 3))
            if side != x.shape[-1]:
                x = F.interpolate(x, side, mode="bilinear", antialias=True)
            return teacher.features(x, len(features.weights), bool(features.logits))

        with torch.no_grad():
            original_logits, original_maps = classify(pictures)
        logits, maps = classify(decoded)
        total = decoded.new_zeros(len(decoded))
        for weight, ours, theirs in zip(features.weights, maps, original_maps, strict=False):
            energy = theirs.square().mean((1, 2, 3)) + 1e-6
            total = total + weight * (ours - theirs).square().mean((1, 2, 3)) / energy
        if logits is not None and original_logits is not None:
            ours, theirs = logits.log_softmax(1), original_logits.log_softmax(1)
            divergence = F.kl_div(ours, theirs, reduction="none", log_target=True)
            total = total + features.logits * divergence.sum(1)
        return total


@dataclass
class RateDistortion:
    """Rate + lambda(q) x fidelity, the weights evened out over qualities."""

    #: weights of the mean squared error at quality 1 and 100, logarithmic between
    lambdas: tuple[float, float]
    fidelity: Fidelity
    mixed_start: float  #: share of the stage after which the rate is mixed (see ``rate_bits``)

    def weight(self, quality: Tensor) -> Tensor:
        """lambda at qualities [B]."""
        low, high = self.lambdas
        return low * (high / low) ** ((quality.float() - 1) / 99)

    def __call__(
        self, bits: Tensor, decoded: Tensor, batch: Batch, quality: Tensor, draws: Draws, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over a share, and its terms."""
        fidelity, terms = self.fidelity(decoded, batch.pictures, batch.masks, draws, progress)
        loss, more = self.sum(bits / batch.pictures[0, 0].numel(), fidelity, quality)
        return loss, terms | more | region_errors(decoded, batch.pictures, batch.masks)

    def sum(self, bpp: Tensor, fidelity: Tensor, quality: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of bits per pixel and fidelity of pictures [B], and its terms."""
        weight = self.weight(quality)
        # dividing by lambda^(1/2) evens out the gradients of low and high qualities
        loss = ((bpp + weight * fidelity) / weight.sqrt()).mean() * LOSS_SCALE
        bpp = bpp.detach()
        terms = {"bpp": bpp.mean(), "fidelity": fidelity.detach().mean()}
        bands = {"bpp_low": quality <= 33, "bpp_high": quality > 67}
        return loss, terms | {name: bpp[band].mean() for name, band in bands.items() if band.any()}


def rate_failure(bpp: float) -> str | None:
    """Why a mean rate, bits per pixel, says that training has failed."""
    if bpp < 1e-3:
        return (
            f"the rate has collapsed to {bpp:.5f} bits per pixel, the compressor sends nothing; raise compressor.lambdas or "
            "lower compressor.optimisation.learning_rate"
        )
    if bpp > 24:
        return f"the rate has grown to {bpp:.0f} bits per pixel; lower compressor.optimisation.learning_rate"
    return None


def psnr(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, dB, of a mean squared error in units of 0..255 squared."""
    return 10 * (255.0**2 / error.clamp(min=1e-6)).log10()


@torch.no_grad()
def region_errors(decoded: Tensor, pictures: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Mean squared error of a batch in the region of interest and outside, in units of 0..255 squared."""
    squared = ((decoded - pictures) ** 2).mean(1, keepdim=True) * 127.5**2
    outside = 1 - masks
    return {
        "mse_roi": (squared * masks).sum() / masks.sum().clamp(min=1),
        "mse_background": (squared * outside).sum() / outside.sum().clamp(min=1),
    }
