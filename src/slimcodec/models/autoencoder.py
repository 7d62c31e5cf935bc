"""The latent space of slim-tiny: a patch autoencoder with a linear (KLT) path and a convolutional branch.

The linear path projects every 16x16 patch on its principal components, so that the untrained autoencoder already is a
transform codec; the branches at 1/8 and 1/16 of the resolution learn what a linear map cannot. No layer works at full
resolution: cost on a CPU is resolution times channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.models.blocks import ResBlock, dtype_of, small_conv
from slimcodec.models.config import PATCH, AutoencoderConfig


def patch_rows(maps: Tensor, side: int) -> Tensor:
    """The square patches of maps [B, C, H, W] as rows [patches, C * side^2], in the channel order of ``pixel_unshuffle``."""
    return F.pixel_unshuffle(maps, side).permute(0, 2, 3, 1).flatten(0, 2)


def klt(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The KLT (PCA) of ``rows`` [rows, N]: their mean [N], and in float64 ``count`` basis vectors [count, N] with deviations [count]."""
    mean = rows.mean(0)
    centred = (rows - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    return mean, vectors.flip(1)[:, :count].T, values.flip(0)[:count].clamp(min=1e-8).sqrt()


class PatchAutoencoder(nn.Module):
    """Pictures in [-1, 1] to latents of about unit variance at 1/16 of the resolution, and back."""

    stride = PATCH
    #: pieces of any size: values look a few positions far
    tile: int | None = None

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, inner = config.latent_channels, 3 * PATCH * PATCH
        self.analysis = nn.Parameter(torch.zeros(channels, inner))
        self.synthesis = nn.Parameter(torch.zeros(inner, channels))
        self.mean = nn.Parameter(torch.zeros(inner))
        fine, coarse = config.encoder_width
        self.encoder = nn.Sequential(
            # strided convolutions: a map of whole patches, cheaper than rearranging them first
            nn.Conv2d(3, fine, 8, stride=8),
            *(ResBlock(fine) for _ in range(config.encoder_blocks[0])),
            nn.Conv2d(fine, coarse, 2, stride=2),
            *(ResBlock(coarse) for _ in range(config.encoder_blocks[1])),
            nn.SiLU(),
            small_conv(coarse, channels),
        )
        fine, coarse = config.decoder_width
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, coarse, 1),
            *(ResBlock(coarse) for _ in range(config.decoder_blocks[1])),
            nn.Conv2d(coarse, 4 * fine, 1),
            nn.PixelShuffle(2),
            *(ResBlock(fine) for _ in range(config.decoder_blocks[0])),
            nn.SiLU(),
            small_conv(fine, 192),
            nn.PixelShuffle(8),
        )

    @torch.no_grad()
    def init_linear(self, pictures: Tensor) -> None:
        """Sets the linear path to the KLT (PCA) of the patches of pictures [B, 3, H, W] in [-1, 1]."""
        mean, basis, scale = klt(patch_rows(pictures, PATCH), self.config.latent_channels)
        basis, scale = basis.float(), scale.float()[:, None]
        self.mean.copy_(mean)
        self.analysis.copy_(basis / scale)
        self.synthesis.copy_((basis * scale).T)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], sides multiples of 16, to latents [B, C, H/16, W/16], float32."""
        with torch.autocast(pictures.device.type, enabled=False):
            # the KLT stays in float32: bfloat16 loses the DC coefficient; a strided convolution is the product with patches
            kernel = self.analysis.reshape(-1, 3, PATCH, PATCH)
            linear = F.conv2d(pictures.float(), kernel, -(self.analysis @ self.mean), stride=PATCH)
        return linear + self.encoder(pictures.to(dtype_of(self.encoder))).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pictures [B, 3, 16h, 16w], float32, near [-1, 1] and not clipped."""
        with torch.autocast(latents.device.type, enabled=False):
            patches = F.conv2d(latents.float(), self.synthesis[:, :, None, None], self.mean)
            linear = F.pixel_shuffle(patches, PATCH)
        return linear + self.decoder(latents.to(dtype_of(self.decoder))).float()

    def latent_scale(self) -> Tensor:
        """Picture energy of a unit of each latent channel [C]: the norm of its synthesis vector."""
        return self.synthesis.norm(dim=0)
