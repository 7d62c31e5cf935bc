"""Stage ``diffusion``: a text-conditioned UNet on the latent space, before any compressor is there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.enhancer import Enhancer
from slimcodec.models.native import CaptionEncoder
from slimcodec.training.data import Batch, Crops
from slimcodec.training.draws import Draws
from slimcodec.training.sheets import Tile
from slimcodec.training.stages.common import BaseStage

SAMPLE_STEPS = 8


def dropped(captions: list[str | None], share: float, draws: Draws) -> list[str | None]:
    """The captions with a random ``share`` of them left out, which classifier-free guidance needs."""
    drop = (draws.uniform() < share).tolist()
    return [None if out else caption for out, caption in zip(drop, captions, strict=True)]


def by_energy(energy: Tensor) -> Tensor:
    """Weights [B, C, 1, 1] in proportion to what a channel's error costs in the picture, of mean one; ``energy`` [B, C]."""
    return (energy / energy.mean(1, keepdim=True))[..., None, None]


class DiffusionStage(BaseStage):
    """The enhancer's path from a decompressed latent of which nothing is left: from noise to latents, given captions.

    With z^ = 0 and an error scale of 1 the path is flow matching from noise to data (Lipman et al. 2023), so stage ``enhance`` goes
    on with the same network.
    """

    name = "diffusion"

    def __init__(
        self,
        autoencoder: PatchAutoencoder,
        enhancer: Enhancer,
        text: CaptionEncoder,
        crops: Crops,
        *,
        caption_dropout: float = 0.15,
    ) -> None:
        self.autoencoder = autoencoder.requires_grad_(False)
        self.model = nn.ModuleDict({"enhancer": enhancer, "text": text})
        self.enhancer, self.text, self.batches = enhancer, text, crops
        self.caption_dropout, self.frozen = caption_dropout, [autoencoder]
        enhancer.error_scale.fill_(1.0)

    def loss(self, batch: Batch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """E [c |u_hat - u|^2] with u = -z, c the channels' energy in the picture."""
        with torch.no_grad():
            latents = self.autoencoder.encode(batch.pictures)
        nothing = torch.zeros_like(latents)
        level = torch.zeros(len(latents), device=latents.device)
        start = self.enhancer.start(nothing, level, draws.normal(*latents.shape[1:]))
        time = 1 - draws.uniform()
        state = torch.lerp(latents, start, time[:, None, None, None])
        captions = dropped(batch.captions, self.caption_dropout, draws)
        lost = self.enhancer.lost(state, nothing, time, level, self.text(captions))
        weight = by_energy(self.autoencoder.latent_scale()[None])
        errors = (weight * (lost + latents) ** 2).mean((1, 2, 3))
        return errors.mean(), {"denoising": errors.detach().mean()}

    def samples(self, batch: Batch, draws: Draws) -> list[list[Tile]]:
        """Pictures made of captions alone."""
        latents = self.autoencoder.encode(batch.pictures)
        noise = draws.normal(*latents.shape[1:])
        text = self.text(batch.captions)
        made = self.enhancer(torch.zeros_like(latents), 1, SAMPLE_STEPS, noise, text, text)
        decoded = self.autoencoder.decode(made)
        return [
            [Tile.of(original, "original"), Tile.of(picture, caption or "no caption")]
            for original, picture, caption in zip(batch.pictures, decoded, batch.captions, strict=True)
        ]
