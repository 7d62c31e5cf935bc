"""Stage ``compressor``, the paper's stage 1: the latent compressor, trained with RoI masks."""

from __future__ import annotations

import torch
from torch import Tensor

from slimcodec.data.contact_sheet import Tile, map_tiles, picture_tiles
from slimcodec.models.compressor import Compressor
from slimcodec.models.pretrained.networks import Autoencoder, PretrainedAutoencoder
from slimcodec.training.batches import Batch, Crops, Draws, part_mean
from slimcodec.training.compression_model import CompressionModel, code, start_as_transform
from slimcodec.training.loop import Stage
from slimcodec.training.losses import RateDistortion, weighted_mse
from slimcodec.training.recipe import CompressorRecipe
from slimcodec.training.run import Run
from slimcodec.training.stages.latent_diffusion import load_autoencoder

#: weight of the round trip of clean latents, and the share of pictures that take it
CLEAN_WEIGHT, CLEAN_SHARE = 4e-3, 0.1
#: share of pictures that are all region of interest
ALL_ROI_SHARE = 0.3


class CompressorStage(Stage[Batch]):
    """Rate + lambda(q) x RoI-weighted fidelity.

    A pretrained latent space stays as it is. Of our own small autoencoder, the recipe's ``train_decoder`` tunes the decoder on
    decompressed latents, and ``train_encoder`` the encoder for its latents to cost fewer bits (our decisions).
    """

    name = "compressor"

    def __init__(
        self,
        autoencoder: Autoencoder,
        compressor: Compressor,
        crops: Crops,
        objective: RateDistortion,
        recipe: CompressorRecipe,
    ) -> None:
        self.autoencoder = autoencoder.requires_grad_(False)
        self.model: CompressionModel = CompressionModel(compressor, autoencoder)
        self.batches, self.objective, self.frozen = crops, objective, [autoencoder]
        self.train_encoder, self.clean_share = False, 0.0
        lambdas = objective.weight(torch.linspace(1, 100, compressor.config.prior.levels))
        if isinstance(autoencoder, PretrainedAutoencoder):
            start_as_transform(self.model, autoencoder, crops(0).pictures, lambdas)
            return
        self.model.init_gains(autoencoder.latent_scale() * 127.5, lambdas)
        self.model.tune_autoencoder(encoder=recipe.train_encoder, decoder=recipe.train_decoder)
        self.scaled = [autoencoder.analysis, autoencoder.synthesis]
        self.train_encoder = recipe.train_encoder
        if recipe.train_encoder or recipe.train_decoder:
            self.clean_share = CLEAN_SHARE

    @classmethod
    def build(cls, run: Run) -> CompressorStage:
        """The stage of a run."""
        recipe = run.recipe.compressor
        stage = cls(
            latent_autoencoder(run),
            Compressor(recipe.network),
            run.data.crops(cls.name, "mask"),
            run.rate_distortion(),
            recipe,
        )
        if run.recipe.latents.count:
            run.restore(stage.model, "latents")
        return stage

    def loss(self, batch: Batch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """E_q [(R + lambda F) / sqrt(lambda)], and the round trip of some clean latents."""
        quality = draws.integers(1, 101)
        with torch.set_grad_enabled(self.train_encoder):
            latents = self.autoencoder.encode(batch.pictures)
        batch = batch._replace(masks=some_everywhere(batch.masks, draws))
        mixed = progress >= self.objective.mixed_start
        coded = code(self.model, latents, quality, batch.masks, draws, mixed)
        decoded = self.autoencoder.decode(coded.latents)
        loss, terms = self.objective(coded.bits, decoded, batch, quality, draws, progress)
        terms["hyper_bpp"] = coded.hyper_bits.detach().mean() / batch.pictures[0, 0].numel()
        chosen = draws.every(self.clean_share) if self.clean_share else quality < 0
        if chosen.any():
            error = weighted_mse(self.autoencoder.decode(latents[chosen]), batch.pictures[chosen])
            terms["mse_clean"] = error.detach().mean()
            loss = loss + CLEAN_WEIGHT * part_mean(error, chosen, self.clean_share, draws.batch)
        return loss, terms

    def samples(self, batch: Batch, draws: Draws) -> list[list[Tile]]:
        """Original, mask, and the picture at three qualities with its bits per pixel."""
        latents, size = self.autoencoder.encode(batch.pictures), batch.pictures.shape[2:]
        columns = [
            picture_tiles(batch.pictures, "original"),
            map_tiles(batch.masks, size, "region of interest"),
        ]
        for quality in (10, 40, 80):
            level = torch.full((len(latents),), quality, device=latents.device)
            coded = code(self.model, latents, level, batch.masks)
            lines = [f"q {quality}, {float(bits) / (size[0] * size[1]):.3f} bpp" for bits in coded.bits]
            columns.append(picture_tiles(self.autoencoder.decode(coded.latents), lines))
        return columns


def some_everywhere(masks: Tensor, draws: Draws) -> Tensor:
    """Masks [B, 1, H, W], some of ones: these pictures are to be equally good everywhere, for encoders that are given no region."""
    has_roi = (draws.uniform() >= ALL_ROI_SHARE)[:, None, None, None]
    return torch.where(has_roi, masks, 1.0)


def latent_autoencoder(run: Run) -> Autoencoder:
    """The autoencoder that the compressor works on: the pretrained one that the recipe names, or our own as trained."""
    return load_autoencoder(run) if run.pretrained is None else run.pretrained.latent_model.autoencoder


def load_compression_model(run: Run, autoencoder: Autoencoder, enhanced: bool = False) -> CompressionModel:
    """The compression model as stage ``compressor`` left it, frozen; ``enhanced``: as stage ``enhance`` did, where it tuned it."""
    # its state holds our own autoencoder too, as tuned by the compressor stage
    model = CompressionModel(Compressor(run.recipe.compressor.network), autoencoder)
    run.restore(model, "compressor")
    if enhanced and run.load("enhance", "codec"):
        run.restore(model, "enhance", "codec")
    return model.requires_grad_(False)
