"""RoI-focused captions without a mask: a small tagger that names, from the latent, what a machine should see.

The same network serves caption guidance at the decoder: it is trained on noisy latents too, so its gradient is of use on
decompressed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.models.blocks import ResBlock, dtype_of


@dataclass(frozen=True)
class CaptionerConfig:
    """Sizes of a ``LatentTagger``: widths and blocks of its scales, each half as fine as the one before."""

    latent_channels: int = 128
    tags: int = 1116
    #: latent positions a side that the first layer joins
    patch: int = 2
    width: tuple[int, ...] = (224, 320)
    blocks: tuple[int, ...] = (3, 1)
    dropout: float = 0.2
    #: below this probability no tag is named
    threshold: float = 0.12


class LatentTagger(nn.Module):
    """Scores of every tag of the vocabulary from a latent of a whole picture."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels, shrink = config.latent_channels, config.patch
        for width, blocks in zip(config.width, config.blocks, strict=True):
            layers += [nn.PixelUnshuffle(shrink), nn.Conv2d(channels * shrink**2, width, 1)]
            shrink = 2
            layers += [ResBlock(width) for _ in range(blocks)]
            channels = width
        self.body = nn.Sequential(*layers, nn.SiLU())
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(channels, config.tags)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] of any size to logits [B, tags], float32."""
        cell = self.config.patch * 2 ** (len(self.config.width) - 1)
        latents = F.pad(latents, (0, -latents.shape[3] % cell, 0, -latents.shape[2] % cell), mode="replicate")
        pooled = self.body(latents.to(dtype_of(self.body))).float().mean((2, 3))
        # the head stays in float32: a thousand close scores
        logits: Tensor = self.head(self.dropout(pooled))
        return logits

    @torch.no_grad()
    def name(self, latents: Tensor, vocabulary: Sequence[str]) -> list[str | None]:
        """The caption of each picture, "a photo of a {tag}", or None where no tag is likely enough."""
        from slimcodec.entropy.caption import tag_phrase

        probability, tag = self(latents).softmax(1).max(1)
        return [
            tag_phrase(vocabulary[int(index)]) if float(p) >= self.config.threshold else None
            for p, index in zip(probability, tag, strict=True)
        ]
