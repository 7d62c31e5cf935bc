"""Stage ``autoencoder``: the latent space of slim-tiny."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slimcodec.models.autoencoder import PATCH, PatchAutoencoder
from slimcodec.training.data import Batch, Crops
from slimcodec.training.draws import Draws
from slimcodec.training.losses import Fidelity
from slimcodec.training.sheets import Tile
from slimcodec.training.stages.common import BaseStage, psnr


class AutoencoderStage(BaseStage):
    """Reconstruction by squared error, then with features of frozen classifiers."""

    name = "autoencoder"

    def __init__(self, model: PatchAutoencoder, crops: Crops, fidelity: Fidelity) -> None:
        self.model: PatchAutoencoder = model
        self.batches, self.fidelity = crops, fidelity
        self.slow = [model.analysis, model.synthesis, model.mean]

    def init_linear(self, batches: int = 60) -> None:
        """Sets the linear path to the KLT of patches from the first batches."""
        patches = []
        for step in range(batches):
            pictures = self.batches(step).pictures
            patches.append(nn.functional.pixel_unshuffle(pictures, PATCH).permute(0, 2, 3, 1).flatten(0, 2))
        self.model.init_linear(torch.cat(patches))

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
        errors = ((decoded - batch.pictures) ** 2).mean((1, 2, 3)) * 127.5**2
        return [
            [Tile.of(original, "original"), Tile.of(back, f"round trip {float(psnr(error)):.1f} dB")]
            for original, back, error in zip(batch.pictures, decoded, errors, strict=True)
        ]
