"""Stage ``compressor``, the paper's stage 1: the latent compressor, trained with RoI masks; and stage ``latents`` before it.

Stage ``latents`` takes the compressor's first steps on latents of crops that are computed once, without the autoencoder.
"""

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

from slimcodec.data.contact_sheet import Tile, map_tiles, picture_tiles
from slimcodec.errors import SlimError
from slimcodec.files import atomic_write
from slimcodec.models.compressor import Compressor
from slimcodec.models.pretrained.networks import Autoencoder, PretrainedAutoencoder
from slimcodec.processes import progress
from slimcodec.training.batches import Batch, Crops, Draws
from slimcodec.training.compression_model import CompressionModel, code, start_as_transform
from slimcodec.training.loop import Stage, restore
from slimcodec.training.losses import RateDistortion, roi_weights, weighted_mse
from slimcodec.training.run import Run
from slimcodec.training.stages.latent_diffusion import load_autoencoder

logger = logging.getLogger(__name__)

#: weight of the round trip of clean latents, and the share of pictures that take it
CLEAN_WEIGHT, CLEAN_SHARE = 4e-3, 0.1
#: share of pictures that are all region of interest
ALL_ROI_SHARE = 0.3
#: batches of latents between two notes of what is done
NOTED = 8


class CompressorStage(Stage[Batch]):
    """Rate + lambda(q) x RoI-weighted fidelity.

    A pretrained latent space stays as it is. Of our own small autoencoder, the recipe's ``train_decoder`` tunes the decoder on
    decompressed latents, and ``train_encoder`` the encoder for its latents to cost fewer bits (our decisions).
    """

    name = "compressor"

    def __init__(self, run: Run) -> None:
        """Begins with the weights of stage ``latents`` if the recipe has it, else as a transform code."""
        recipe = run.recipe.compressor
        # weights that are missing are an error before photos are labelled
        begun = run.load("latents") if run.recipe.latents.count else None
        autoencoder = latent_autoencoder(run).requires_grad_(False)
        self.autoencoder, compressor = autoencoder, Compressor(recipe.network)
        self.batches, self.objective = run.data.crops(self.name, "mask"), run.rate_distortion()
        self.model: CompressionModel = CompressionModel(compressor, autoencoder)
        self.train_encoder, self.clean_share = False, 0.0
        lambdas = self.objective.weight(torch.linspace(1, 100, recipe.network.prior.levels))
        if begun is not None:
            restore(self.model, begun, run.weights_path("latents"))
        elif isinstance(autoencoder, PretrainedAutoencoder):
            start_as_transform(self.model, autoencoder, self.batches(0).pictures, lambdas)
        else:
            self.model.init_gains(autoencoder.latent_scale() * 127.5, lambdas)
            self.model.tune_autoencoder(encoder=recipe.train_encoder, decoder=recipe.train_decoder)
            self.scaled = [autoencoder.analysis, autoencoder.synthesis]
            self.train_encoder = recipe.train_encoder
            if recipe.train_encoder or recipe.train_decoder:
                self.clean_share = CLEAN_SHARE

    def loss(self, batch: Batch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """E_q [(R + lambda F) / sqrt(lambda)], and the round trip of some clean latents."""
        quality = draws.integers(1, 101)
        with torch.set_grad_enabled(self.train_encoder):
            latents = self.autoencoder.encode(batch.pictures)
        batch = batch._replace(masks=some_everywhere(batch.masks, draws))
        mixed = progress >= self.objective.mixed_start
        coded = code(self.model, latents, quality, batch.masks, draws, mixed)
        decoded = self.autoencoder.decode(coded.latents)
        loss, terms = self.objective(coded.bits, decoded, batch, quality, draws, progress)
        terms["hyper_bpp"] = coded.hyper_bits.detach().mean() / batch.pictures[0, 0].numel()
        chosen = draws.every(self.clean_share) if self.clean_share else quality < 0
        if chosen.any():
            error = weighted_mse(self.autoencoder.decode(latents[chosen]), batch.pictures[chosen])
            terms["mse_clean"] = error.detach().mean()
            loss = loss + CLEAN_WEIGHT * draws.part_mean(error, self.clean_share)
        return loss, terms

    def samples(self, batch: Batch, draws: Draws) -> list[list[Tile]]:
        """Original, mask, and the picture at three qualities with its bits per pixel."""
        latents, size = self.autoencoder.encode(batch.pictures), batch.pictures.shape[2:]
        columns = [
            picture_tiles(batch.pictures, "original"),
            map_tiles(batch.masks, size, "region of interest"),
        ]
        for quality in (10, 40, 80):
            level = torch.full((len(latents),), quality, device=latents.device)
            coded = code(self.model, latents, level, batch.masks)
            lines = [f"q {quality}, {float(bits) / (size[0] * size[1]):.3f} bpp" for bits in coded.bits]
            columns.append(picture_tiles(self.autoencoder.decode(coded.latents), lines))
        return columns


def some_everywhere(masks: Tensor, draws: Draws) -> Tensor:
    """Masks [B, 1, H, W], some of ones: these pictures are to be equally good everywhere, for encoders that are given no region."""
    has_roi = (draws.uniform() >= ALL_ROI_SHARE)[:, None, None, None]
    return torch.where(has_roi, masks, 1.0)


def latent_autoencoder(run: Run) -> Autoencoder:
    """The autoencoder that the compressor works on: the pretrained one that the recipe names, or our own as trained."""
    return load_autoencoder(run) if run.pretrained is None else run.pretrained.latent_model.autoencoder


def load_compression_model(run: Run, autoencoder: Autoencoder, enhanced: bool = False) -> CompressionModel:
    """The compression model as stage ``compressor`` left it, frozen; ``enhanced``: as stage ``enhance`` did, where it tuned it."""
    # its state holds our own autoencoder too, as tuned by the compressor stage
    model = CompressionModel(Compressor(run.recipe.compressor.network), autoencoder)
    run.restore(model, "compressor")
    if enhanced and (tuned := run.load("enhance", "codec")):
        restore(model, tuned, run.weights_path("enhance"))
    return model.requires_grad_(False)


# ---- stage latents ---------------------------------------------------------------------------------------------


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
        folder.mkdir(parents=True, exist_ok=True)
        _ = self.done

    @property
    def done(self) -> int:
        """The number of crops whose latents are on disk, by this process or another."""
        note = self.folder / "done.json"
        if not note.exists():
            return 0
        noted = json.loads(note.read_text())
        if noted["about"] != self.about:
            raise SlimError(
                f"{self.folder}: holds latents of {noted['about']}, not of {self.about}; remove it"
            )
        return int(noted["done"])

    def fill(self, encode: Callable[[Tensor], Tensor]) -> None:
        """Computes what is missing; goes on where an earlier call was stopped."""
        # read now: another process may have filled the folder since this one opened it
        done = self.done
        if done == self.count:
            return
        arrays = self.arrays("r+" if done else "w+")
        batch, steps = self.crops.batch, -(-self.count // self.crops.batch)
        first = done // batch
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
        # other photos, or other masks of them, have other latents
        settings = json.loads(run.origin(self.name, (), ("data", "roi", "teachers")))
        about = " ".join([vae.sha256, *settings.values()])
        cache = LatentCache(run.folder / self.name, crops, channels, self.stride, latents.count, about)
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
