"""Stage ``compressor``, the paper's stage 1: the latent compressor, trained with RoI masks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from slimcodec.models.compressor import Compressor
from slimcodec.models.pretrained.autoencoder import Autoencoder, PretrainedAutoencoder
from slimcodec.training.compression_model import CompressionModel, code, interest, start_as_transform
from slimcodec.training.data import Batch, Crops
from slimcodec.training.draws import Draws, part_mean
from slimcodec.training.losses import Fidelity, region_errors, weighted_mse
from slimcodec.training.sheets import Tile
from slimcodec.training.stages.common import BaseStage, rate_trouble

#: evens out the size of this loss and that of the other stages, so that one clipping of gradients suits all
LOSS_SCALE = 0.1
#: weight of the round trip of clean latents
CLEAN_WEIGHT = 4e-3
#: share of pictures that are all region of interest
UNTOLD = 0.3


class RateFidelity:
    """Rate + lambda(q) x fidelity, the weights evened out over qualities.

    ``lambdas`` are the weights of the mean squared error at quality 1 and 100, logarithmic between. From ``mixed_start`` of a
    stage on, the rate is that of rounded symbols (see ``rate_bits``).
    """

    def __init__(self, lambdas: tuple[float, float], fidelity: Fidelity, mixed_start: float = 0.0) -> None:
        self.lambdas, self.fidelity, self.mixed_start = lambdas, fidelity, mixed_start

    def weight(self, quality: Tensor) -> Tensor:
        """lambda at qualities [B]."""
        low, high = self.lambdas
        return low * (high / low) ** ((quality.float() - 1) / 99)

    def rate(self, progress: float) -> str:
        """The rate model at a point of the stage."""
        return "mixed" if progress >= self.mixed_start else "noise"

    def __call__(
        self, bits: Tensor, decoded: Tensor, batch: Batch, quality: Tensor, draws: Draws, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over a share, and its terms."""
        weight = self.weight(quality)
        bpp = bits / (batch.pictures.shape[2] * batch.pictures.shape[3])
        fidelity, terms = self.fidelity(decoded, batch.pictures, batch.masks, draws, progress)
        # dividing by lambda^(1/2) evens out the gradients of low and high qualities
        loss = ((bpp + weight * fidelity) / weight.sqrt()).mean() * LOSS_SCALE
        seen = bpp.detach()
        terms |= {"bpp": seen.mean(), "fidelity": fidelity.detach().mean()}
        for name, chosen in (("low", quality <= 33), ("high", quality > 67)):
            if chosen.any():
                terms[f"bpp_{name}"] = seen[chosen].mean()
        return loss, terms | region_errors(decoded, batch.pictures, batch.masks)


class CompressorStage(BaseStage):
    """Rate + lambda(q) x RoI-weighted fidelity.

    A pretrained latent space stays as it is. Of our own small autoencoder, ``train_decoder`` tunes the decoder on decompressed
    latents, and ``train_encoder`` the encoder for its latents to cost fewer bits (our decisions).
    """

    name = "compressor"

    def __init__(
        self,
        autoencoder: Autoencoder,
        compressor: Compressor,
        crops: Crops,
        objective: RateFidelity,
        *,
        train_encoder: bool = False,
        train_decoder: bool = True,
        clean_share: float = 0.1,
    ) -> None:
        self.autoencoder = autoencoder.requires_grad_(False)
        self.model: CompressionModel = CompressionModel(compressor, autoencoder)
        own = self.model.autoencoder
        self.train_encoder = train_encoder and own is not None
        train_decoder = train_decoder and own is not None
        self.model.tune_autoencoder(encoder=train_encoder, decoder=train_decoder)
        self.frozen = [autoencoder]
        self.slow = [] if own is None else [own.analysis, own.synthesis]
        self.batches, self.objective = crops, objective
        self.clean_share = clean_share if train_decoder or self.train_encoder else 0.0
        qualities = torch.linspace(1, 100, compressor.config.prior.levels)
        lambdas = objective.weight(qualities)
        if isinstance(autoencoder, PretrainedAutoencoder):
            start_as_transform(self.model, autoencoder, crops(0).pictures, lambdas)
        else:
            self.model.init_gains(autoencoder.latent_scale().detach() * 127.5, lambdas)

    def loss(self, batch: Batch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """E_q [(R + lambda F) / sqrt(lambda)], and the round trip of some clean latents."""
        quality = draws.integers(1, 101)
        with torch.set_grad_enabled(self.train_encoder):
            latents = self.autoencoder.encode(batch.pictures)
        # some pictures are to be equally good everywhere: for encoders that are told no region
        told = (draws.uniform() >= UNTOLD)[:, None, None, None]
        batch = replace(batch, masks=torch.where(told, batch.masks, 1.0))
        roi = interest(batch.masks, latents)
        coded = code(self.model, latents, quality, self.objective.rate(progress), draws, roi)
        decoded = self.autoencoder.decode(coded.latents)
        loss, terms = self.objective(coded.bits, decoded, batch, quality, draws, progress)
        pixels = batch.pictures.shape[2] * batch.pictures.shape[3]
        terms["hyper_bpp"] = coded.hyper_bits.detach().mean() / pixels
        chosen = draws.every(self.clean_share) if self.clean_share else quality < 0
        if chosen.any():
            clean = self.autoencoder.decode(latents[chosen])
            error = weighted_mse(clean, batch.pictures[chosen], torch.ones((), device=clean.device))
            terms["mse_clean"] = error.detach().mean()
            loss = loss + CLEAN_WEIGHT * part_mean(error, chosen, self.clean_share, draws.batch)
        return loss, terms

    def trouble(self, terms: dict[str, float]) -> str | None:
        """A rate that has collapsed or burst."""
        return rate_trouble(terms["bpp"])

    def samples(self, batch: Batch, draws: Draws) -> list[list[Tile]]:
        """Original, mask, and the picture at three qualities with its bits per pixel."""
        latents = self.autoencoder.encode(batch.pictures)
        size = (batch.pictures.shape[3], batch.pictures.shape[2])
        roi = interest(batch.masks, latents)
        rows = [
            [Tile.of(picture, "original"), Tile.heat(mask[0], size, "region of interest")]
            for picture, mask in zip(batch.pictures, batch.masks, strict=True)
        ]
        for quality in (10, 40, 80):
            level = torch.full((len(latents),), quality, device=latents.device)
            coded = code(self.model, latents, level, "rounded", roi=roi)
            decoded = self.autoencoder.decode(coded.latents)
            for row, picture, bits in zip(rows, decoded, coded.bits, strict=True):
                row.append(Tile.of(picture, f"q {quality}, {float(bits) / (size[0] * size[1]):.3f} bpp"))
        return rows
