"""What the codec asks of a latent diffusion model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimcodec.models.parts import Parts


@dataclass(frozen=True)
class CaptionEmbedding:
    """Captions as a denoiser reads them: hidden states [B, tokens, D] and, for SDXL, the pooled states [B, P]."""

    states: Tensor
    pooled: Tensor | None = None


class LatentModel(ABC):
    """A latent diffusion model: ours (``native``), or a pipeline of diffusers (``pretrained.pipeline``).

    Pictures are [B, 3, H, W] in [-1, 1], latents [B, C, H / stride, W / stride], both float32. Every network is loaded when
    it is first needed. ``SlimError`` names a network that the model lacks, and why.
    """

    #: what ``offload`` has set up
    offloaded: Any = None
    parts: Parts

    @property
    @abstractmethod
    def autoencoder(self) -> Any:
        """The latent space: ``encode`` and ``decode``."""

    @property
    @abstractmethod
    def enhancer(self) -> Any:
        """The UNet with its scheduler, decompressed latents to enhanced ones (see ``Enhancer.forward``).

        ``tile``: side in latent positions that it works on best, None: any.
        """

    @property
    @abstractmethod
    def text_encoder(self) -> Any:
        """Tokenizers and text encoders: captions to a ``CaptionEmbedding``."""

    def embed_captions(self, captions: Sequence[str | None]) -> CaptionEmbedding:
        """Captions as the enhancer takes them; None is no caption."""
        with self.parts.lock, torch.no_grad():
            embedding: CaptionEmbedding = self.text_encoder(captions)
        return embedding

    @abstractmethod
    def offload(self) -> None:
        """From now on the device holds one network at a time, that which runs."""

    def make_room(self, module: Any = None) -> None:  # noqa: B027  networks that stay on the device need none
        """With ``offload``: takes the network on the device away, and brings another ``module`` there."""
