"""Stages ``autoencoder`` and ``diffusion``: our own latent diffusion model, which a pretrained one replaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimcodec.data.contact_sheet import Tile, picture_tiles
from slimcodec.entropy.caption import tag_phrase
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.config import EnhancerConfig
from slimcodec.models.enhancer import CaptionEncoder, Enhancer, small_text_encoder, small_unet_config
from slimcodec.training.batches import Batch, Draws
from slimcodec.training.loop import Stage
from slimcodec.training.losses import psnr, weighted_mse
from slimcodec.training.run import Run

#: batches from whose patches the autoencoder's linear path begins
INITIAL_BATCHES = 60
SAMPLE_STEPS = 8


class AutoencoderStage(Stage[Batch]):
    """Reconstruction by squared error, then with features of frozen classifiers."""

    name = "autoencoder"

    def __init__(self, run: Run) -> None:
        """Sets the linear path to the KLT of patches."""
        recipe = run.recipe.autoencoder
        self.model: PatchAutoencoder = PatchAutoencoder(recipe.network)
        self.scaled = [self.model.analysis, self.model.synthesis, self.model.mean]
        self.batches, self.fidelity = run.data.crops(self.name), run.fidelity(1.0, recipe.features)
        first = range(INITIAL_BATCHES)
        self.model.init_linear(torch.cat([self.batches(step).pictures for step in first]))

    def loss(self, batch: Batch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """F(D(E(x))) / 30."""
        decoded = self.model.decode(self.model.encode(batch.pictures))
        # the latent space serves the whole picture: no region of interest here
        everywhere = torch.ones_like(batch.masks)
        fidelity, terms = self.fidelity(decoded, batch.pictures, everywhere, draws, progress)
        error = ((decoded.detach() - batch.pictures) ** 2).mean() * 127.5**2
        return fidelity.mean() / 30, terms | {"mse": error, "psnr": psnr(error)}

    def samples(self, batch: Batch, draws: Draws) -> list[list[Tile]]:
        """Original and round trip."""
        decoded = self.model.decode(self.model.encode(batch.pictures))
        errors = weighted_mse(decoded, batch.pictures)
        lines = [f"round trip {float(psnr(error)):.1f} dB" for error in errors]
        return [picture_tiles(batch.pictures, "original"), picture_tiles(decoded, lines)]


class DiffusionStage(Stage[Batch]):
    """The enhancer's path from a decompressed latent of which nothing is left: from noise to latents, given captions.

    With z^ = 0 and an error scale of 1 the path is flow matching from noise to data (Lipman et al. 2023), so stage ``enhance`` goes
    on with the same network.
    """

    name = "diffusion"

    def __init__(self, run: Run) -> None:
        self.autoencoder = load_autoencoder(run)
        self.enhancer, self.text = build_unet(run)
        self.enhancer.error_scale.fill_(1.0)
        self.model = nn.ModuleDict({"enhancer": self.enhancer, "text": self.text})
        self.caption_dropout = run.recipe.diffusion.caption_dropout
        self.batches = run.data.crops(self.name, "caption")

    def loss(self, batch: Batch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """E [c |u_hat - u|^2] with u = -z, c the channels' energy in the picture."""
        with torch.no_grad():
            latents = self.autoencoder.encode(batch.pictures)
        nothing = torch.zeros_like(latents)
        level = torch.zeros(len(latents), device=latents.device)
        start = self.enhancer.start(nothing, level, draws.normal(*latents.shape[1:]))
        time = 1 - draws.uniform()
        state = torch.lerp(latents, start, time[:, None, None, None])
        captions = drop_captions(batch.captions, self.caption_dropout, draws)
        lost = self.enhancer.predict(state, nothing, time, level, self.text(captions))
        weight = energy_weights(self.autoencoder.latent_scale()[None])
        errors = (weight * (lost + latents) ** 2).mean((1, 2, 3))
        return errors.mean(), {"denoising": errors.detach().mean()}

    def samples(self, batch: Batch, draws: Draws) -> list[list[Tile]]:
        """Pictures made of captions alone."""
        latents = self.autoencoder.encode(batch.pictures)
        text = self.text(batch.captions)
        noise = draws.normal(*latents.shape[1:])
        sampled = self.enhancer(torch.zeros_like(latents), 1, SAMPLE_STEPS, noise, text, text)
        lines = [caption or "no caption" for caption in batch.captions]
        return [
            picture_tiles(batch.pictures, "original"),
            picture_tiles(self.autoencoder.decode(sampled), lines),
        ]


def load_autoencoder(run: Run) -> PatchAutoencoder:
    """Our own autoencoder as stage ``autoencoder`` left it, frozen."""
    autoencoder = PatchAutoencoder(run.recipe.autoencoder.network)
    run.restore(autoencoder, "autoencoder")
    return autoencoder.requires_grad_(False)


def build_unet(run: Run) -> tuple[Enhancer, CaptionEncoder]:
    """Our own UNet and text encoder, untrained."""
    recipe = run.recipe
    channels = recipe.autoencoder.network.latent_channels
    config = EnhancerConfig(
        latent_channels=channels,
        levels=recipe.compressor.network.prior.levels,
        unet=small_unet_config(channels, recipe.diffusion.unet),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler"},
    )
    phrases = [tag_phrase(tag) for tag in run.data.vocabulary]
    return Enhancer(config), small_text_encoder(phrases, width=recipe.diffusion.unet.text_width)


def drop_captions(captions: list[str | None], share: float, draws: Draws) -> list[str | None]:
    """The captions with a random ``share`` of them left out, which classifier-free guidance needs."""
    dropped = (draws.uniform() < share).tolist()
    return [None if drop else caption for drop, caption in zip(dropped, captions, strict=True)]


def energy_weights(energy: Tensor) -> Tensor:
    """Weights [B, C, 1, 1] in proportion to what a channel's error costs in the picture, of mean one; ``energy`` [B, C]."""
    return (energy / energy.mean(1, keepdim=True))[..., None, None]
