"""How the region of interest, as the captioner sees it, changes what the analysis keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimcodec.models.blocks import at_level, dtype_of


class RoiGate(nn.Module):
    """Of a map of interest: states for the analysis, which has ``inner`` channels inside, and an offset of its gates.

    The map is an annotated mask in training and the captioner's own view at inference, where no mask is given.
    """

    #: makes steps of the optimiser felt
    STRENGTH = 16.0

    def __init__(self, channels: int, inner: int, levels: int) -> None:
        super().__init__()
        #: what being outside adds to the logit of every coefficient's gate
        self.outside = nn.Parameter(torch.zeros(levels, channels))
        self.beside = nn.Conv2d(1, inner, 1)

    def forward(self, roi: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, 1, h, w] in [0, 1] at levels [B] to states [B, inner, h, w] and offsets [B, channels, h, w]."""
        states: Tensor = self.beside(roi.to(dtype_of(self.beside)))
        offset = self.STRENGTH * at_level(self.outside, level)[..., None, None]
        return states, (1 - roi.float()) * offset
