"""The latent space of a pretrained diffusion model: diffusers' autoencoders behind the interface of ``PatchAutoencoder``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.blocks import dtype_of

#: pixels a side up to which a picture is worked on whole, where the model's configuration says nothing
WHOLE_SIDE = 512
#: classes of diffusers that are known to map pictures to latents of two spatial dimensions
KNOWN = ("AutoencoderKL", "AutoencoderTiny")


class PretrainedAutoencoder(nn.Module):
    """Pictures in [-1, 1] to the scaled latents that a diffusion model was trained on, and back.

    z = (mode of the posterior - shift) * scale, with both factors from the model's configuration. Its normalisation and
    attention look at the whole picture, so it divides large ones itself, by the tiling of diffusers (``encoder_radius`` and
    ``decoder_radius`` are None).
    """

    encoder_radius = decoder_radius = None

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        config = vae.config
        self.stride: int = stride_of(config)
        self.latent_channels: int = config.latent_channels
        self.scale = float(config.get("scaling_factor") or 1.0)
        self.shift = float(config.get("shift_factor") or 0.0)
        if hasattr(vae, "tile_sample_min_size"):
            vae.tile_sample_min_size = max(_side(config.get("sample_size")), WHOLE_SIDE)
            vae.tile_latent_min_size = vae.tile_sample_min_size // self.stride
        vae.enable_tiling()

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], sides multiples of ``stride``, to latents [B, C, H/stride, W/stride], float32.

        The most likely latent is taken, not a random one: a picture has one file.
        """
        encoded = self.vae.encode(pictures.to(dtype_of(self.vae)))
        latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents.float() - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pictures [B, 3, stride * h, stride * w], float32, near [-1, 1] and not clipped."""
        raw = latents.float() / self.scale + self.shift
        decoded: Tensor = self.vae.decode(raw.to(dtype_of(self.vae))).sample
        return decoded.float()

    @torch.no_grad()
    def latent_scale(self, latents: Tensor, change: float = 0.1) -> Tensor:
        """Picture energy of a unit of each latent channel [C], as ``PatchAutoencoder.latent_scale``, measured around ``latents``.

        The root of |D(z + change * e) - D(z)|^2 per latent position, over ``change``, for a change e of one channel by +-1 at
        every position.
        """
        channels, device = latents.shape[1], latents.device
        signs = torch.Generator().manual_seed(0)
        before = self.decode(latents)
        energy = []
        for channel in range(channels):
            moved = latents.clone()
            sign = torch.randint(0, 2, latents[:, channel].shape, generator=signs).to(device) * 2.0 - 1
            moved[:, channel] += change * sign
            energy.append((self.decode(moved) - before).square().sum() / (sign.numel() * change**2))
        return torch.stack(energy).sqrt().clamp(min=1e-4)


Autoencoder = PatchAutoencoder | PretrainedAutoencoder


def stride_of(config: Any) -> int:
    """Pixels a side of a latent position, by the configuration of a diffusers autoencoder."""
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    if not blocks:
        raise SlimError(
            f"an autoencoder without block_out_channels is not known; give one of {', '.join(KNOWN)}"
        )
    return int(2 ** (len(blocks) - 1))


def _side(sample_size: Any) -> int:
    if isinstance(sample_size, (list, tuple)):
        return max(map(int, sample_size), default=0)
    return int(sample_size or 0)
