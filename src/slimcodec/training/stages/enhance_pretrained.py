"""Stage ``enhance`` on a pretrained diffusion model: low-rank matrices teach its UNet that compression is a kind of noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from slimcodec.models.pretrained.autoencoder import PretrainedAutoencoder
from slimcodec.models.pretrained.denoiser import (
    Denoiser,
    PromptEncoder,
    clean_latent,
    fitting_strength,
    prediction_target,
)
from slimcodec.training.compression_model import CompressionModel, code, interest
from slimcodec.training.data import Crops
from slimcodec.training.draws import Draws
from slimcodec.training.lora import LowRank
from slimcodec.training.losses import Fidelity
from slimcodec.training.stages.diffusion import by_energy
from slimcodec.training.stages.enhance import Denoised, EnhanceStage

#: batches whose errors set the start of denoising
MEASURED = 2


class PretrainedEnhanceStage(EnhanceStage):
    """The model's own objective, with the error of compression in the place of noise (see ``slimcodec.models.pretrained.denoiser``).

    Trained are the low-rank matrices that ``add_lora`` put into the UNet, and with ``objective`` the compressor.
    """

    def __init__(
        self,
        autoencoder: PretrainedAutoencoder,
        codec: CompressionModel,
        denoiser: Denoiser,
        prompts: PromptEncoder,
        crops: Crops,
        fidelity: Fidelity,
        **options: Any,
    ) -> None:
        """``options``: as of ``EnhanceStage``."""
        low_rank = LowRank(denoiser.unet)
        # travels with the weights: the bundle starts denoising where training did
        low_rank.register_buffer("strength", torch.tensor(denoiser.config.strength))
        super().__init__(
            autoencoder, codec, denoiser, prompts, crops, fidelity, trained={"lora": low_rank}, **options
        )
        self.low_rank: Any = low_rank
        self.frozen = [autoencoder, codec, denoiser, prompts]
        self.energy = torch.ones(autoencoder.latent_channels)

    @torch.no_grad()
    def measure_errors(self, batches: int = MEASURED) -> None:
        """Sets the channels' energies in the picture and, where the recipe does not, the start of denoising at each quality."""
        device = next(self.autoencoder.parameters()).device
        errors = []
        for quality in (1, 100):
            squares = []
            for step in range(batches):
                batch = self.batches(step)
                latents = self.autoencoder.encode(batch.pictures.to(device))
                level = torch.full((len(latents),), quality, device=device)
                roi = interest(batch.masks.to(device), latents)
                rough = code(self.codec, latents, level, "rounded", roi=roi).latents
                squares.append((rough - latents).square().mean())
            errors.append(float(torch.stack(squares).mean().sqrt()))
        self.energy = self.autoencoder.latent_scale(latents[:2])
        config = self.enhancer.config
        if max(config.strength) <= 0:
            strength = fitting_strength((errors[0], errors[1]), self.enhancer.scheduler)
            self.enhancer.config = replace(config, strength=strength)
        self.low_rank.strength.copy_(torch.tensor(self.enhancer.config.strength))

    def denoise(
        self,
        latents: Tensor,
        rough: Tensor,
        quality: Tensor,
        at_start: Tensor,
        captions: list[str | None],
        regions: Tensor,
        draws: Draws,
    ) -> Denoised:
        """States a z + s e at steps up to T, with e = a_T (z^ - z) / s_T + nu n, and the UNet's prediction there."""
        denoiser: Denoiser = self.enhancer
        kind = denoiser.scheduler.config.prediction_type
        begin = denoiser.start(quality)
        a, s = denoiser.factors(begin)
        noise = denoiser.noise_share * draws.normal(*rough.shape[1:])
        error = a / s * (rough - latents) + noise
        earlier = (draws.uniform() * (begin + 1)).long()
        times = torch.where(at_start, begin, earlier)
        a, s = denoiser.factors(times)
        state = a * latents + s * error
        prediction = denoiser.predict(state, times, self.text(captions))
        # the compressor is tuned by what comes of its latents, not by being an easy target
        target = prediction_target(kind, latents, error.detach(), a, s)
        weight = by_energy(self.energy.to(rough.device)[None]) * regions
        squared = (weight * (prediction - target) ** 2).mean((1, 2, 3))
        unchanged = (weight * error.detach() ** 2).mean((1, 2, 3))
        return Denoised(squared, unchanged, clean_latent(kind, prediction, state, a, s))
