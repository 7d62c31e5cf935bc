"""TAEF2, the small autoencoder of FLUX.2's latent space (Ollin Boer Bohan, github.com/madebyollin/taesd, MIT).

Written after its description: residual blocks of three 3x3 convolutions with ReLU; those at 1/8 of the resolution have a branch
before them that normalises in groups over the whole picture. It takes the place of diffusers' ``AutoencoderKLFlux2`` where that
is too large.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from safetensors.torch import load_file
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.pretrained.part_files import TAEF2_CONFIG, TAEF2_FILES

WIDTH = 64
#: channels and groups of the branch of a block at 1/8 of the resolution
BRANCH, GROUPS = 256, 4
#: latents are squeezed into -3..3 before they are decoded
LIMIT = 3.0


class Block(AutoencoderTinyBlock):
    """ReLU(x + three convolutions of x); ``branch``: what the normalising branch gives is added to x before."""

    def __init__(self, branch: bool = False) -> None:
        super().__init__(WIDTH, WIDTH, "relu")
        layers = [
            nn.Conv2d(WIDTH, BRANCH, 1, bias=False),
            nn.GroupNorm(GROUPS, BRANCH),
            nn.ReLU(),
            nn.Conv2d(BRANCH, WIDTH, 1, bias=False),
        ]
        self.pool = nn.Sequential(*layers) if branch else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, 64, h, w] to the same size."""
        return super().forward(x if self.pool is None else x + self.pool(x))


class _Squeezed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / LIMIT) * LIMIT


class Taef2(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] to raw latents [B, 32, H/8, W/8] and back, with the methods of diffusers' autoencoders."""

    def __init__(self) -> None:
        super().__init__()
        self.config = FrozenDict(TAEF2_CONFIG)
        channels = TAEF2_CONFIG["latent_channels"]
        down = [_conv(3, WIDTH), Block()]
        up: list[nn.Module] = [_Squeezed(), _conv(channels, WIDTH), nn.ReLU()]
        for level in range(3):
            down += [_conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(level == 2) for _ in range(3))]
            up += [*(Block(level == 0) for _ in range(3)), nn.Upsample(scale_factor=2)]
            up += [_conv(WIDTH, WIDTH, bias=False)]
        # the order of the layers gives the names of their tensors
        self.encoder = nn.Sequential(*down, _conv(WIDTH, channels))
        self.decoder = nn.Sequential(*up, Block(), _conv(WIDTH, 3))

    def encode(self, pictures: Tensor) -> Any:
        """The latents of pictures."""
        return AutoencoderTinyOutput(latents=self.encoder(pictures / 2 + 0.5))

    def decode(self, latents: Tensor) -> Any:
        """The pictures of latents."""
        return DecoderOutput(sample=self.decoder(latents) * 2 - 1)

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Taef2:
        """The autoencoder whose two files lie in a folder, frozen; ``SlimError`` where they hold other tensors."""
        with torch.device("meta"):
            model = cls()
        tensors = {
            f"{part}.{name}": tensor.to(dtype)
            for part, file in TAEF2_FILES.items()
            for name, tensor in load_file(folder / file).items()
        }
        try:
            model.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            raise SlimError(f"{folder}: not the files of TAEF2 ({error}); get them again") from error
        return model.eval().requires_grad_(False)


def _conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)
