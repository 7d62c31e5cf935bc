"""Photos with masks and captions, and crops of them that are a pure function of the step."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.entropy.caption import tag_phrase
from slimcodec.errors import ImageError
from slimcodec.images import load_image
from slimcodec.roi.annotations import mask_from_boxes, mask_from_picture

logger = logging.getLogger(__name__)


@dataclass
class Photo:
    """A decoded photo [H, W, 3] uint8 with its annotation; ``mask`` is [h, w] in [0, 1] over the whole photo, or None."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.float32] | None
    annotated: bool
    label: str | None
    captions: list[str]


@dataclass
class Batch:
    """Crops: pictures [B, 3, S, S] in [-1, 1], masks [B, 1, S, S] in [0, 1], row numbers [B], captions."""

    pictures: Tensor
    masks: Tensor
    rows: NDArray[np.int64]
    captions: list[str | None]


class PhotoSet:
    """Rows of a ``datasets`` source, decoded once and kept in memory.

    Columns: ``image`` is needed; ``mask``, ``boxes``, ``label`` and ``captions`` are used where they are. ``maps`` may hold
    a class-activation map [rows, h, w] for photos without annotation.
    """

    def __init__(self, files: Sequence[str], maps: NDArray[np.float32] | None = None) -> None:
        import datasets

        source = datasets.load_dataset("parquet", data_files=list(files), split="train")
        for column in ("image", "mask"):
            if column in source.column_names:
                source = source.cast_column(column, datasets.Image(decode=False))
        self._source = source
        self._maps = maps
        self._photos: dict[int, Photo | None] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> Photo | None:
        """The photo of a row, or None where its bytes cannot be decoded (said once, with the row)."""
        if row not in self._photos:
            try:
                self._photos[row] = self._decode(row)
            except (ImageError, OSError, ValueError) as error:
                logger.warning("row %d is left out: %s", row, error)
                self._photos[row] = None
        return self._photos[row]

    def _decode(self, row: int) -> Photo:
        record: dict[str, Any] = self._source[row]
        picture = Image.fromarray(load_image(record["image"]["bytes"]))
        mask, annotated = None, True
        if (record.get("mask") or {}).get("bytes"):
            mask = mask_from_picture(Image.open(io.BytesIO(record["mask"]["bytes"])), picture.size)
        elif record.get("boxes"):
            mask = mask_from_boxes(record["boxes"], picture.size)
        else:
            annotated = False
            if self._maps is not None:
                mask = self._maps[row]
        return Photo(
            np.asarray(picture), mask, annotated, record.get("label"), list(record.get("captions") or [])
        )

    def labels(self) -> list[str | None]:
        """The class name of every row."""
        if "label" not in self._source.column_names:
            return [None] * len(self)
        return list(self._source["label"])


def crop(
    photo: Photo, size: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """A random square crop with a random flip: picture [3, S, S] uint8 and mask [S, S] from the same place.

    The crop covers ``size / s`` pixels a side of the photo for a scale s drawn from ``scale``, resized to ``size``; a photo
    that is too small is enlarged until the crop fits.
    """
    height, width = photo.pixels.shape[:2]
    side = min(round(size / rng.uniform(*scale)), height, width)
    x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
    pixels = photo.pixels[y : y + side, x : x + side]
    if side != size:
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    if photo.mask is None:
        mask = np.ones((size, size), np.float32)
    else:
        # the mask may be coarser than the photo (class-activation maps): crop it in its own pixels
        rows, columns = photo.mask.shape
        box = (
            x * columns / width,
            y * rows / height,
            (x + side) * columns / width,
            (y + side) * rows / height,
        )
        method = Image.Resampling.BOX if rows == height else Image.Resampling.BILINEAR
        mask = np.asarray(Image.fromarray(photo.mask).resize((size, size), method, box=box))
    if rng.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(mask.copy())


class Crops:
    """Batches by step number: the same (seed, step) always gives the same batch, which makes resuming exact."""

    def __init__(
        self, photos: PhotoSet, size: int, batch: int, seed: int, scale: tuple[float, float] = (0.8, 1.2)
    ) -> None:
        self.photos, self.size, self.batch, self.seed, self.scale = photos, size, batch, seed, scale

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        pictures: list[Tensor] = []
        masks: list[Tensor] = []
        rows: list[int] = []
        captions: list[str | None] = []
        while len(rows) < self.batch:
            row = int(rng.integers(len(self.photos)))
            photo = self.photos[row]
            if photo is None:
                continue
            picture, mask = crop(photo, self.size, rng, self.scale)
            pictures.append(picture)
            masks.append(mask)
            rows.append(row)
            choices = photo.captions or ([tag_phrase(photo.label)] if photo.label else [])
            captions.append(choices[int(rng.integers(len(choices)))] if choices else None)
        scaled = torch.stack(pictures).float() / 127.5 - 1
        return Batch(scaled, torch.stack(masks)[:, None].float(), np.array(rows), captions)


def view(photo: Photo, size: int, rng: np.random.Generator, smallest_area: float) -> Tensor:
    """A random view for classification, [3, size, size] uint8: a part of the photo, squeezed to a square, maybe flipped."""
    height, width = photo.pixels.shape[:2]
    area = rng.uniform(smallest_area, 1.0)
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    columns = min(width, round(width * np.sqrt(area) * stretch))
    rows = min(height, round(height * np.sqrt(area) / stretch))
    x, y = int(rng.integers(0, width - columns + 1)), int(rng.integers(0, height - rows + 1))
    part = Image.fromarray(photo.pixels).resize(
        (size, size), Image.Resampling.BILINEAR, box=(x, y, x + columns, y + rows)
    )
    pixels = np.asarray(part)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
