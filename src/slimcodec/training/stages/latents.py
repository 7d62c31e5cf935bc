"""Stage ``latents``: the compressor's first steps, on latents of crops that are computed once, without the autoencoder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slimcodec.errors import SlimError
from slimcodec.files import atomic_write
from slimcodec.models.compressor import Compressor
from slimcodec.models.pretrained.networks import PretrainedAutoencoder
from slimcodec.processes import progress
from slimcodec.training.batches import Crops, Draws
from slimcodec.training.compression_model import CompressionModel, code, start_as_transform
from slimcodec.training.loop import Stage
from slimcodec.training.losses import RateDistortion, roi_weights, weighted_mse
from slimcodec.training.run import Run
from slimcodec.training.stages.compressor import latent_autoencoder, some_everywhere

logger = logging.getLogger(__name__)

#: batches between two notes of what is done
NOTED = 8


class LatentBatch(NamedTuple):
    """Latents [B, C, h, w] of crops, and their masks [B, 1, h, w] in [0, 1]."""

    latents: Tensor
    masks: Tensor


class LatentCache:
    """The latents and masks of ``count`` crops in a folder: float16 and bytes, with one mask value a latent position."""

    def __init__(
        self, folder: Path, crops: Crops, channels: int, stride: int, count: int, about: str
    ) -> None:
        """``about``: what the latents depend on; a folder of others is an error."""
        self.folder, self.crops, self.stride, self.count = folder, crops, stride, count
        self.channels, self.side = channels, crops.size // stride
        self.about = {"of": about, "count": count, "size": crops.size, "seed": crops.seed}
        self.done = 0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "done.json").exists():
            noted = json.loads((folder / "done.json").read_text())
            if noted["about"] != self.about:
                raise SlimError(
                    f"{folder}: holds latents of {noted['about']}, not of {self.about}; remove it"
                )
            self.done = noted["done"]

    def fill(self, encode: Callable[[Tensor], Tensor]) -> None:
        """Computes what is missing; goes on where an earlier call was stopped."""
        if self.done == self.count:
            return
        arrays = self.arrays("r+" if self.done else "w+")
        batch, steps = self.crops.batch, -(-self.count // self.crops.batch)
        first = self.done // batch
        with progress(steps, "batches of latents", first, logger.info) as bar, torch.no_grad():
            for step in range(first, steps):
                crops = self.crops(step)
                encoded = encode(crops.pictures)
                begin, end = step * batch, min((step + 1) * batch, self.count)
                coarse = F.avg_pool2d(crops.masks, self.stride)[:, 0] * 255
                for array, values in zip(arrays, (encoded.half(), coarse.round().byte()), strict=True):
                    array[begin:end] = values[: end - begin].numpy()
                if (step + 1) % NOTED == 0 or end == self.count:
                    self._note(end, arrays)
                bar.advance()

    def arrays(self, mode: Any) -> tuple[Any, Any]:
        """Latents [N, C, h, w] and masks [N, h, w] on disk."""
        masks = (self.count, self.side, self.side)
        latents = (self.count, self.channels, *masks[1:])
        shapes = (("latents", np.float16, latents), ("masks", np.uint8, masks))
        opened = [
            np.lib.format.open_memmap(self.folder / f"{n}.npy", mode, kind, size) for n, kind, size in shapes
        ]
        return opened[0], opened[1]

    def _note(self, done: int, arrays: tuple[Any, Any]) -> None:
        for array in arrays:
            array.flush()
        atomic_write(self.folder / "done.json", json.dumps({"done": done, "about": self.about}).encode())
        self.done = done


def cached_crops(
    arrays: tuple[Any, Any], side: int, grid: int, seed: int, step: int, numbers: Sequence[int]
) -> LatentBatch:
    """Square parts of a cache's crops by step and number, ``side`` positions a side, at multiples of ``grid``."""
    count, _, *lengths = arrays[0].shape
    parts = []
    for number in numbers:
        rng = np.random.default_rng([seed, step, number])
        row = int(rng.integers(count))
        y, x = (int(rng.integers((length - side) // grid + 1)) * grid for length in lengths)
        parts.append([array[row, ..., y : y + side, x : x + side] for array in arrays])
    latents, masks = (
        torch.from_numpy(np.stack(part).astype(np.float32)) for part in zip(*parts, strict=True)
    )
    return LatentBatch(latents, masks[:, None] / 255)


class LatentStage(Stage[LatentBatch]):
    """Rate + lambda(q) x RoI-weighted squared error of latents, each channel weighted by its energy in the picture."""

    name = "latents"

    def __init__(self, run: Run) -> None:
        """Computes the latents where they are not in the run folder."""
        latents, recipe = run.recipe.latents, run.recipe.compressor
        autoencoder, device = latent_autoencoder(run), run.accelerator.device
        if not isinstance(autoencoder, PretrainedAutoencoder) or not latents.count:
            raise SlimError(
                "stage latents needs a pretrained autoencoder and crops: set ldm.source and latents.count"
            )
        self.objective = RateDistortion(recipe.lambdas, run.fidelity(recipe.background), latents.mixed_start)
        self.model: CompressionModel = CompressionModel(Compressor(recipe.network), autoencoder)
        lambdas = self.objective.weight(torch.linspace(1, 100, recipe.network.prior.levels))
        crops = replace(run.data.crops(self.name, "mask"), size=latents.side)
        self.stride = autoencoder.stride
        assert run.pretrained is not None and run.pretrained.config.ldm is not None
        vae = run.pretrained.config.ldm.part("vae")
        assert vae is not None
        channels = recipe.network.latent_channels
        cache = LatentCache(run.folder / self.name, crops, channels, self.stride, latents.count, vae.sha256)
        scale = start_as_transform(self.model, autoencoder, crops(0).pictures, lambdas)
        with run.accelerator.main_process_first(), run.accelerator.autocast():
            cache.fill(lambda pictures: autoencoder.encode(pictures.to(device)).cpu())
        # the mean squared error of pixels, by the sum over channels
        scale = scale * (len(scale) / (3 * self.stride**2)) ** 0.5
        self.scale = scale[:, None, None].to(device)
        side, seed = latents.optimisation.crop // self.stride, latents.optimisation.seed
        self.batches = partial(cached_crops, cache.arrays("r"), side, recipe.network.patch, seed)

    def loss(self, batch: LatentBatch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """E_q [(R + lambda |z^ - z|^2) / sqrt(lambda)]."""
        quality, objective = draws.integers(1, 101), self.objective
        masks = some_everywhere(batch.masks, draws)
        mixed = progress >= objective.mixed_start
        coded = code(self.model, batch.latents, quality, masks, draws, mixed)
        weights = roi_weights(masks, objective.fidelity.background)
        error = weighted_mse(coded.latents * self.scale, batch.latents * self.scale, weights)
        pixels = masks[0].numel() * self.stride**2
        loss, terms = objective.sum(coded.bits / pixels, error, quality)
        return loss, terms | {"hyper_bpp": coded.hyper_bits.detach().mean() / pixels}
