"""Where in a picture the region of interest is, seen from its latent: trained with masks, run by the encoder without any."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.models.blocks import ResBlock, at_level, dtype_of

#: latent positions a side that the coarsest part sees as one
REDUCTION = 4


class RoiFinder(nn.Module):
    """Latents to the logit of a mask: a small network down to a quarter of the latent's resolution, and back.

    An object is told from its ground by what surrounds it, so the coarse part also sees the mean of the whole picture. What is
    found conditions the analysis, which has ``inner`` channels inside.
    """

    #: makes steps of the optimiser felt
    STRENGTH = 16.0

    def __init__(self, channels: int, inner: int, levels: int, width: int) -> None:
        super().__init__()
        #: what being outside adds to the logit of every coefficient's gate
        self.outside = nn.Parameter(torch.zeros(levels, channels))
        self.beside = nn.Conv2d(1, inner, 1)
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1), ResBlock(width))
        self.down = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, REDUCTION, stride=REDUCTION),
            ResBlock(2 * width),
        )
        self.whole = nn.Linear(2 * width, 2 * width)
        self.coarse = ResBlock(2 * width)
        self.up = nn.Conv2d(2 * width, width, 1)
        self.leave = nn.Sequential(ResBlock(width), nn.SiLU(), nn.Conv2d(width, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to logits [B, 1, h, w], float32."""
        height, width = latents.shape[2:]
        padded = F.pad(latents, (0, -width % REDUCTION, 0, -height % REDUCTION), mode="replicate")
        fine = self.enter(padded.to(dtype_of(self.enter)))
        coarse = self.down(fine)
        coarse = self.coarse(coarse + self.whole(coarse.mean((2, 3)))[..., None, None])
        joined = fine + F.interpolate(self.up(coarse), scale_factor=REDUCTION, mode="nearest")
        found: Tensor = self.leave(joined)[:, :, :height, :width]
        return found.float()

    def condition(self, roi: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Of logits [B, 1, h, w] at levels [B]: states [B, inner, h, w] for the analysis, and an offset of its gates."""
        states: Tensor = self.beside(torch.sigmoid(roi).to(dtype_of(self.beside)))
        offset = self.STRENGTH * at_level(self.outside, level)[..., None, None]
        return states, torch.sigmoid(-roi.float()) * offset
