"""The training stages: what each trains, on what, and its loss. Formulae are in docs/training.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimcodec.models.autoencoder import PATCH, PatchAutoencoder
from slimcodec.models.blocks import at_level
from slimcodec.models.captioner import Tagger
from slimcodec.models.compressor import Compressor
from slimcodec.models.enhancer import Enhancer
from slimcodec.models.prior import (
    SCALES,
    PriorNetwork,
    anchor_mask,
    checkerboard,
    float_prior,
    index_of_scale,
)
from slimcodec.models.text import CaptionEncoder
from slimcodec.training.data import Crops, PhotoSet, view
from slimcodec.training.losses import FeatureLoss, roi_weights, symbol_bits, weighted_mse


def groups(
    learning_rate: float, slow: Sequence[nn.Parameter], model: nn.Module, factor: float
) -> list[dict[str, Any]]:
    """Two parameter groups: ``slow`` parameters at ``factor`` times the rate, and the rest of the model."""
    ids = {id(parameter) for parameter in slow}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    return [{"params": rest, "lr": learning_rate}, {"params": list(slow), "lr": learning_rate * factor}]


class AutoencoderStage:
    """Reconstruction by mean squared error, then with shallow features of frozen classifiers."""

    name = "autoencoder"

    def __init__(
        self,
        model: PatchAutoencoder,
        crops: Crops,
        features: FeatureLoss | None = None,
        feature_weight: float = 0.3,
        feature_start: float = 0.5,
        feature_share: float = 0.5,
    ) -> None:
        self.model, self.crops, self.features = model, crops, features
        self.feature_weight, self.feature_start, self.feature_share = (
            feature_weight,
            feature_start,
            feature_share,
        )

    def init_linear(self, batches: int = 60) -> None:
        """Sets the linear path to the KLT of patches from the first batches."""
        patches = []
        for step in range(batches):
            pictures = self.crops(step).pictures
            patches.append(nn.functional.pixel_unshuffle(pictures, PATCH).permute(0, 2, 3, 1).flatten(0, 2))
        self.model.init_linear(torch.cat(patches))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        linear = [self.model.analysis, self.model.synthesis, self.model.mean]
        return groups(learning_rate, linear, self.model, 0.02)

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        pictures = self.crops(step).pictures
        decoded = self.model.decode(self.model.encode(pictures))
        mse = ((decoded - pictures) ** 2).mean() * 127.5**2
        value = float(mse.detach())
        terms = {"mse": value, "psnr": 10 * math.log10(255**2 / value)}
        loss = mse / 30
        if self.features is not None and progress >= self.feature_start:
            share = max(1, int(len(pictures) * self.feature_share))
            feature = self.features(decoded[:share], pictures[:share]).mean()
            terms["feature"] = float(feature.detach())
            loss = loss * 0.5 + self.feature_weight * 10 * feature
        return loss, terms


class LatentCodec(nn.Module):
    """What the compressor stage trains: compressor, float prior and hyper scales, and the autoencoder's decoder."""

    def __init__(self, compressor: Compressor, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        config = compressor.config.prior
        self.compressor = compressor
        self.prior: PriorNetwork = float_prior(config)
        self.hyper_scale = nn.Parameter(torch.zeros(config.levels, config.hyper_channels))
        self.decoder = autoencoder.decoder
        self.synthesis = autoencoder.synthesis

    @property
    def hyper_index(self) -> Tensor:
        """Table index of the hyper-latents' scale [levels, Ch]; the factor makes steps of the optimiser felt."""
        return 12 + 32 * self.hyper_scale

    @torch.no_grad()
    def init_gains(self, latent_scale: Tensor, lambdas: Tensor) -> None:
        """Starts as a transform codec: gains from the step size that each lambda wants, scales from the latents' energy.

        ``latent_scale`` [C]: picture energy of a unit latent in units of 0..255; ``lambdas`` [levels].
        """
        step = 5.1 / lambdas.sqrt()
        gain = (latent_scale[None] / step[:, None]).log()
        self.compressor.log_gain.copy_(gain)
        self.compressor.log_inverse_gain.copy_(-gain)
        middle = gain.mean(0).exp().clamp(min=1.0)
        layers: Any = self.prior.layers
        layers["context"].in_scale.copy_((1 / middle).repeat(len(layers["context"].in_scale) // len(middle)))
        for head in ("anchor", "rest"):
            layers[f"{head}_mean"].out_scale.copy_(middle)
            layers[f"{head}_scale"].out_scale.fill_(8.0)
            # prediction leaves about a third of a coefficient's deviation
            layers[f"{head}_scale"].bias.copy_(index_of_scale(gain.exp() * 0.3 + 0.1) / 8.0)


@dataclass
class Coded:
    """A pass through the compressor in training."""

    latents: Tensor
    bits: Tensor
    hyper_bits: Tensor


def straight_round(x: Tensor) -> Tensor:
    """Rounding whose gradient is one (straight-through)."""
    return x + (x.round() - x).detach()


def rate_bits(residual: Tensor, index: Tensor, rate: str) -> Tensor:
    """Bits of residuals before rounding, elementwise, by the rate model ``rate``.

    ``noise``: symbols with uniform noise in place of rounding (Balle et al. 2017), smooth, but it overstates low rates.
    ``rounded``: what the file costs; it has no gradient for what rounds to zero, so it is for measuring. ``mixed``: the value
    of ``rounded``, whose gradient trains the scales, while values and means follow the gradient of ``noise``.
    """
    if rate == "noise":
        return symbol_bits(residual + torch.rand_like(residual) - 0.5, index)
    true = symbol_bits(residual.detach().round(), index)
    if rate == "rounded":
        return true
    smooth = symbol_bits(residual + torch.rand_like(residual) - 0.5, index.detach())
    return true + smooth - smooth.detach()


def code(model: LatentCodec, latents: Tensor, quality: Tensor, rate: str) -> Coded:
    """Latents through analysis, quantisation, prior and synthesis, with bits per picture [B] (see ``rate_bits``).

    The synthesis and the context see rounded symbols (straight-through).
    """
    compressor, network = model.compressor, model.prior
    level = compressor.level(quality)
    values = compressor.analyse(latents, level)
    hyper = compressor.hyper_analyse(values, level)
    with torch.autocast(latents.device.type, enabled=False):
        values, hyper = values.float(), hyper.float()
        hyper_index = at_level(model.hyper_index, level).clamp(0, SCALES - 1)[..., None, None]
        hyper_bits = rate_bits(hyper, hyper_index, rate).sum((1, 2, 3))

        # channels last from here on
        y = values.permute(0, 2, 3, 1)
        height, width = y.shape[1:3]
        features = network.hyper_features(straight_round(hyper).permute(0, 2, 3, 1), level, height, width)
        anchors = anchor_mask(height, width, y.device)

        def quantise(y: Tensor, mean: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            residual = y - mean
            bits = rate_bits(residual, index.clamp(0, SCALES - 1), rate)
            return straight_round(residual) + mean, bits.sum((1, 2))

        first, first_bits = quantise(y[:, anchors], *network.anchor_parameters(features[:, anchors], level))
        grid = torch.zeros_like(y)
        grid[:, anchors] = first
        context = network.context(grid, checkerboard(grid)[1])
        rest, rest_bits = quantise(
            y[:, ~anchors], *network.rest_parameters(features[:, ~anchors], context, level)
        )
        grid = grid.clone()
        grid[:, ~anchors] = rest
    decoded = compressor.synthesise(grid.permute(0, 3, 1, 2), level)
    return Coded(decoded, first_bits + rest_bits + hyper_bits, hyper_bits)


class CompressorStage:
    """Stage 1 of SLIM: rate + lambda(q) x RoI-weighted fidelity, with the latent space frozen.

    The encoder of the autoencoder, and so the latent space, stays as it is. ``train_decoder`` also tunes its decoder on
    decompressed latents (our decision, for our own small autoencoder).
    """

    name = "compressor"

    def __init__(
        self,
        autoencoder: PatchAutoencoder,
        compressor: Compressor,
        crops: Crops,
        *,
        lambdas: tuple[float, float] = (6e-5, 2e-2),
        background: float = 0.5,
        features: FeatureLoss | None = None,
        feature_weight: float = 0.3,
        feature_start: float = 0.4,
        feature_share: float = 0.5,
        mixed_start: float = 0.4,
        train_decoder: bool = True,
        clean_share: float = 0.1,
    ) -> None:
        self.autoencoder = autoencoder
        self.model = LatentCodec(compressor, autoencoder)
        autoencoder.requires_grad_(False)
        self.model.decoder.requires_grad_(train_decoder)
        self.model.synthesis.requires_grad_(train_decoder)
        self.crops, self.lambdas, self.background = crops, lambdas, background
        self.features, self.feature_weight = features, feature_weight
        self.feature_start, self.feature_share, self.mixed_start = (
            feature_start,
            feature_share,
            mixed_start,
        )
        self.clean_share = clean_share if train_decoder else 0.0
        levels = compressor.config.prior.levels
        scale = autoencoder.latent_scale().detach() * 127.5
        self.model.init_gains(scale, self.lambda_of(torch.linspace(1, 100, levels)))

    def lambda_of(self, quality: Tensor) -> Tensor:
        """Weight of the mean squared error at qualities [B], logarithmic between the ends."""
        low, high = self.lambdas
        return low * (high / low) ** ((quality - 1) / 99)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        slow = [self.model.synthesis] if self.model.synthesis.requires_grad else []
        return groups(learning_rate, slow, self.model, 0.02)

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        batch = self.crops(step)
        quality = torch.randint(1, 101, (len(batch.pictures),))
        weight = self.lambda_of(quality.float())
        with torch.no_grad():
            latents = self.autoencoder.encode(batch.pictures)
        rate = "mixed" if progress >= self.mixed_start else "noise"
        coded = code(self.model, latents, quality, rate)
        decoded = self.autoencoder.decode(coded.latents)
        pixels = batch.pictures.shape[2] * batch.pictures.shape[3]
        bpp = coded.bits / pixels
        distortion = weighted_mse(decoded, batch.pictures, roi_weights(batch.masks, self.background))
        fidelity = distortion
        terms = {
            "bpp": float(bpp.detach().mean()),
            "hyper_bpp": float(coded.hyper_bits.detach().mean()) / pixels,
        }
        if self.features is not None and progress >= self.feature_start:
            share = max(1, int(len(decoded) * self.feature_share))
            feature = self.features(decoded[:share], batch.pictures[:share])
            terms["feature"] = float(feature.detach().mean())
            # the features' loss in units of the MSE that it typically goes with
            mixed = 0.4 * distortion[:share] + self.feature_weight * 300 * feature
            fidelity = torch.cat([mixed, distortion[share:]])
        # dividing by lambda^(1/2) evens out the gradients of low and high qualities
        loss = ((bpp + weight * fidelity) / weight.sqrt()).mean() * 0.1
        if self.clean_share:
            count = max(1, int(len(latents) * self.clean_share))
            clean = self.autoencoder.decode(latents[:count])
            loss = loss + 2e-3 * weighted_mse(clean, batch.pictures[:count], torch.ones(())).mean()
        with torch.no_grad():
            squared = ((decoded - batch.pictures) ** 2).mean(1, keepdim=True) * 127.5**2
            terms["mse_roi"] = float((squared * batch.masks).sum() / batch.masks.sum().clamp(min=1))
            outside = 1 - batch.masks
            terms["mse_background"] = float((squared * outside).sum() / outside.sum().clamp(min=1))
            for name, chosen in (("low", quality <= 33), ("high", quality > 67)):
                if chosen.any():
                    terms[f"bpp_{name}"] = float(bpp[chosen].mean())
        return loss, terms


class CaptionerStage:
    """The tagger: cross-entropy to the labels and to the classifiers' mean probabilities."""

    name = "captioner"

    def __init__(
        self,
        model: Tagger,
        photos: PhotoSet,
        vocabulary: Sequence[str],
        soft: Tensor,
        thumbnails: PhotoSet | None = None,
        *,
        batch: int = 32,
        thumbnail_share: float = 0.15,
        smallest_area: float = 0.5,
        seed: int = 0,
    ) -> None:
        """``soft`` [rows, K] are logits of the photos over the first K tags; ``thumbnails`` have labels alone."""
        self.model, self.photos, self.thumbnails, self.soft = model, photos, thumbnails, soft
        self.batch, self.seed, self.smallest_area = batch, seed, smallest_area
        self.thumbnail_share = thumbnail_share if thumbnails is not None else 0.0
        # of equal tags the first one counts
        tags = {tag: number for number, tag in reversed(list(enumerate(vocabulary)))}
        self.labels = {
            id(source): [tags.get(label or "", -1) for label in source.labels()]
            for source in (photos, thumbnails)
            if source is not None
        }

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters()), "lr": learning_rate}]

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [B, 3, S, S] in [-1, 1], target probabilities [B, tags], and whether a label was known [B]."""
        rng = np.random.default_rng([self.seed, step])
        config = self.model.config
        pictures: list[Tensor] = []
        targets: list[Tensor] = []
        known: list[bool] = []
        while len(pictures) < self.batch:
            thumbnail = self.thumbnails is not None and rng.random() < self.thumbnail_share
            source = self.thumbnails if thumbnail and self.thumbnails is not None else self.photos
            row = int(rng.integers(len(source)))
            photo, label = source[row], self.labels[id(source)][row]
            if photo is None or (thumbnail and label < 0):
                continue
            target = torch.zeros(config.tags)
            if not thumbnail:
                probability = self.soft[row].softmax(0)
                target[: len(probability)] = probability
            if label >= 0:
                share = 1.0 if thumbnail else 0.5
                target *= 1 - share
                target[label] += share
            pictures.append(view(photo, config.side, rng, self.smallest_area))
            targets.append(target)
            known.append(label >= 0)
        return torch.stack(pictures).float() / 127.5 - 1, torch.stack(targets), torch.tensor(known)

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        pictures, targets, known = self._batch(step)
        self.model.train()
        logits = self.model(pictures)
        loss = -(targets * logits.log_softmax(1)).sum(1).mean()
        right = (logits.argmax(1) == targets.argmax(1))[known]
        return loss, {"top1_train": float(right.float().mean()) if len(right) else 0.0}


class EnhanceStage:
    """Stage 2 of SLIM: denoising from the decompressed latent, conditioned on the caption, weighted by the RoI.

    Captions are dropped at random, so that the network also learns the picture without one.
    """

    name = "enhance"

    def __init__(
        self,
        autoencoder: PatchAutoencoder,
        codec: LatentCodec,
        enhancer: Enhancer,
        text: CaptionEncoder,
        crops: Crops,
        *,
        background: float = 0.5,
        caption_dropout: float = 0.15,
        fidelity: float = 1.0,
    ) -> None:
        self.fidelity = fidelity
        self.autoencoder, self.codec = autoencoder.requires_grad_(False), codec.requires_grad_(False)
        self.model = nn.ModuleDict({"enhancer": enhancer, "text": text})
        self.enhancer, self.text, self.crops = enhancer, text, crops
        self.background, self.caption_dropout = background, caption_dropout

    @torch.no_grad()
    def measure_errors(self, batches: int = 8) -> None:
        """Sets the enhancer's error scale to the standard deviation of what the compressor loses, by level and channel."""
        levels = self.enhancer.config.levels
        for row, quality in enumerate(torch.linspace(1, 100, levels)):
            squares = []
            for step in range(batches):
                latents = self.autoencoder.encode(self.crops(step).pictures)
                decoded = code(self.codec, latents, quality.expand(len(latents)), "rounded").latents
                squares.append((decoded - latents).square().mean((0, 2, 3)))
            self.enhancer.error_scale[row] = torch.stack(squares).mean(0).sqrt()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters()), "lr": learning_rate}]

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        batch = self.crops(step)
        count = len(batch.pictures)
        # low qualities lose more, and are what enhancement is for: they are drawn twice as often
        quality = 1 + 99 * torch.rand(count) ** 1.5
        with torch.no_grad():
            latents = self.autoencoder.encode(batch.pictures)
            rough = code(self.codec, latents, quality, "rounded").latents
            level = self.codec.compressor.level(quality)
            scale = at_level(self.enhancer.error_scale, level)[..., None, None]
            begin = self.enhancer.start(rough, level, torch.randn_like(rough))
            time = 1 - torch.rand(count) ** 2
            time[: count // 3] = 1.0  # a third at the start of the path: one step must do well
            state = torch.lerp(latents, begin, time[:, None, None, None])
            wanted = (rough - latents) / scale
            energy = self.autoencoder.latent_scale() * scale[..., 0, 0]
            weight = (energy / energy.mean(1, keepdim=True))[..., None, None]
            masks = nn.functional.avg_pool2d(batch.masks, PATCH)
            weight = weight * roi_weights(masks, self.background)
        captions = [
            None if drop else caption
            for drop, caption in zip(
                (torch.rand(count) < self.caption_dropout).tolist(), batch.captions, strict=True
            )
        ]
        lost = self.enhancer.lost(state, rough, time, level, self.text(captions))
        squared = (weight * (lost - wanted) ** 2).mean((1, 2, 3))
        # the decoder is tuned to decompressed latents: nearer to the original latent is not yet nearer to the picture
        at_start = time == 1.0
        enhanced = self.autoencoder.decode((rough - scale * lost)[at_start])
        pixels = roi_weights(batch.masks, self.background)[at_start]
        fidelity = weighted_mse(enhanced, batch.pictures[at_start], pixels)
        with torch.no_grad():
            before = weighted_mse(self.autoencoder.decode(rough[at_start]), batch.pictures[at_start], pixels)
            terms = {
                "denoising": float(squared.detach().mean()),
                "denoising_start": float(squared[at_start].mean()),
                "unchanged_start": float((weight * wanted**2).mean((1, 2, 3))[at_start].mean()),
                "fidelity_ratio": float((fidelity / before).mean()),
            }
        return squared.mean() + self.fidelity * (fidelity / before).mean(), terms
