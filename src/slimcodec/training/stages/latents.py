"""Stage ``latents``: the compressor's first steps, on latents that are computed once and without the autoencoder's decoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from slimcodec.errors import SlimError
from slimcodec.models.compressor import Compressor
from slimcodec.models.pretrained.networks import PretrainedAutoencoder
from slimcodec.training.batches import Draws
from slimcodec.training.compression_model import CompressionModel, code, interest, start_as_transform
from slimcodec.training.latent_cache import LatentBatch, LatentCache, LatentCrops
from slimcodec.training.loop import Stage
from slimcodec.training.losses import RateDistortion, rate_failure, roi_weights, weighted_mse
from slimcodec.training.run import Run
from slimcodec.training.stages.compressor import latent_autoencoder, some_everywhere


class LatentStage(Stage[LatentBatch]):
    """Rate + lambda(q) x RoI-weighted squared error of latents, each channel weighted by its energy in the picture."""

    name = "latents"

    def __init__(self, run: Run) -> None:
        """Computes the latents where they are not in the run folder."""
        options, recipe = run.recipe.latents.optimisation, run.recipe.compressor
        autoencoder, device = latent_autoencoder(run), run.accelerator.device
        if not isinstance(autoencoder, PretrainedAutoencoder) or not run.recipe.latents.count:
            raise SlimError(
                "stage latents needs a pretrained autoencoder and crops: set ldm.source and latents.count"
            )
        self.objective = RateDistortion(
            recipe.lambdas, run.fidelity(recipe.background), run.recipe.latents.mixed_start
        )
        self.model: CompressionModel = CompressionModel(Compressor(recipe.network), autoencoder)
        lambdas = self.objective.weight(torch.linspace(1, 100, recipe.network.prior.levels))
        self.cache = latent_cache(run)
        scale = start_as_transform(self.model, autoencoder, self.cache.crops(0).pictures, lambdas)
        self.stride = autoencoder.stride
        with run.accelerator.main_process_first(), run.accelerator.autocast():
            self.cache.fill(lambda pictures: autoencoder.encode(pictures.to(device)).cpu())
        # the mean squared error of pixels, by the sum over channels
        scale = scale * (len(scale) / (3 * self.stride**2)) ** 0.5
        self.scale = scale[:, None, None].to(device)
        side = options.crop // self.stride
        self.batches = LatentCrops(self.cache, side, options.seed, recipe.network.patch)

    def loss(self, batch: LatentBatch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """E_q [(R + lambda |z^ - z|^2) / sqrt(lambda)]."""
        quality, objective = draws.integers(1, 101), self.objective
        masks = some_everywhere(batch.masks, draws)
        roi = interest(masks, batch.latents)
        coded = code(self.model, batch.latents, quality, roi, draws, progress >= objective.mixed_start)
        weights = roi_weights(masks, objective.fidelity.background)
        error = weighted_mse(coded.latents * self.scale, batch.latents * self.scale, weights)
        pixels = masks[0].numel() * self.stride**2
        loss, terms = objective.sum(coded.bits / pixels, error, quality)
        return loss, terms | {"hyper_bpp": coded.hyper_bits.detach().mean() / pixels}

    def failure(self, terms: dict[str, float]) -> str | None:
        """A rate that has collapsed or burst."""
        return rate_failure(terms["bpp"])


def latent_cache(run: Run) -> LatentCache:
    """The latents that a run has computed, or is about to."""
    recipe, pretrained = run.recipe.latents, run.pretrained
    assert pretrained is not None and pretrained.config.ldm is not None
    ldm = pretrained.config.ldm
    crops = replace(run.data.crops("latents", "mask"), size=recipe.side)
    vae = ldm.part("vae")
    assert vae is not None
    channels = run.recipe.compressor.network.latent_channels
    return LatentCache(run.folder / "latents", crops, channels, ldm.stride, recipe.count, vae.sha256)
