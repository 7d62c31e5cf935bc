"""Batches of crops and views of photos, each a pure function of the seed, the step, and the picture's number in the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.data.photos import Photo, Pool
from slimcodec.errors import SlimError
from slimcodec.training.captions import label_captions
from slimcodec.training.draws import WHOLE, Share

#: tries before a set of photos counts as broken
MANY = 1000
#: weight of a known label beside a classifier's opinion
LABEL_SHARE = 0.5
#: weight of a mask that a network drew beside a person's
NETWORK_TRUST = 0.1


class Photos(Protocol):
    """Photos from which a step draws: a ``PhotoSet`` or a ``PhotoStream``."""

    def pool(self, step: int) -> Pool | Sequence[Photo | None]:
        """What the batch of a step is drawn from."""
        ...


@dataclass
class Batch:
    """Crops: pictures [B, 3, S, S] in [-1, 1], masks [B, 1, S, S] in [0, 1], captions, and the pictures' numbers in the step."""

    pictures: Tensor
    masks: Tensor
    captions: list[str | None]
    numbers: Sequence[int]

    def of(self, chosen: Tensor) -> Batch:
        """The pictures that are ``chosen`` (booleans [B])."""
        picked = [place for place, wanted in enumerate(chosen.tolist()) if wanted]
        captions = [self.captions[place] for place in picked]
        return Batch(
            self.pictures[chosen], self.masks[chosen], captions, [self.numbers[place] for place in picked]
        )

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        return replace(self, pictures=self.pictures.to(device), masks=self.masks.to(device))


def generator(seed: int, step: int, number: int) -> np.random.Generator:
    """The random numbers of a picture of a step."""
    return np.random.default_rng([seed, step, number])


def draw(
    photos: Photos, step: int, rng: np.random.Generator, shares: Mapping[str, float] | None = None
) -> Photo:
    """A photo at random, broken ones passed over; ``SlimError`` where none can be decoded.

    ``shares``: of the photos of these sources, only that share counts when they are drawn.
    """
    pool = photos.pool(step)
    decoded = 0
    for _ in range(MANY):
        photo = pool[int(rng.integers(len(pool)))]
        if photo is None:
            continue
        decoded += 1
        if wanted(photo, shares or {}, rng):
            return photo
    if decoded:
        raise SlimError(f"data.shares left none of {decoded} photos: give the sources that are there more")
    raise SlimError(f"none of {MANY} photos could be decoded: are these pictures?")


def wanted(photo: Photo, shares: Mapping[str, float], rng: np.random.Generator) -> bool:
    """Whether a photo that was drawn counts: always without a share of its source, else as often as that says."""
    share = shares.get(photo.source, 1.0)
    return share >= 1.0 or bool(rng.random() < share)


def crop(
    photo: Photo, size: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """A random square crop with a random flip: picture [3, S, S] uint8 and mask [S, S] from the same place.

    The crop covers ``size / s`` pixels a side of the photo for a scale s drawn from ``scale``, resized to ``size``; a photo
    that is too small is enlarged until the crop fits. A photo without mask has one of ones.
    """
    height, width = photo.pixels.shape[:2]
    side = min(round(size / rng.uniform(*scale)), height, width)
    x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
    pixels = photo.pixels[y : y + side, x : x + side]
    if side != size:
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    if photo.mask is None:
        mask: NDArray[Any] = np.ones((size, size), np.float32)
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


def words(photo: Photo, rng: np.random.Generator, templates: Sequence[str] = ()) -> str | None:
    """A caption of a photo at random: one of its sentences, else a template with its label, else None."""
    choices = photo.captions or (label_captions(photo.label, templates) if photo.label else [])
    return choices[int(rng.integers(len(choices)))] if choices else None


class Crops:
    """Random crops by step and share, with masks and captions."""

    def __init__(
        self,
        photos: Photos,
        size: int,
        batch: int,
        seed: int,
        scale: tuple[float, float] = (0.8, 1.2),
        templates: Sequence[str] = (),
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """``scale``: see ``crop``; ``shares``: see ``draw``."""
        self.photos, self.size, self.batch, self.seed = photos, size, batch, seed
        self.scale, self.templates, self.shares = scale, tuple(templates), dict(shares or {})

    def __call__(self, step: int, share: Share = WHOLE) -> Batch:
        numbers = share.numbers(self.batch)
        pictures, masks, captions = [], [], []
        for number in numbers:
            rng = generator(self.seed, step, number)
            photo = draw(self.photos, step, rng, self.shares)
            picture, mask = crop(photo, self.size, rng, self.scale)
            pictures.append(picture)
            masks.append(mask)
            captions.append(words(photo, rng, self.templates))
        scaled = torch.stack(pictures).float() / 127.5 - 1
        return Batch(scaled, torch.stack(masks)[:, None].float(), captions, numbers)


def view(
    photo: Photo, size: int, rng: np.random.Generator, smallest_area: float
) -> tuple[Tensor, Tensor | None]:
    """A random view for classification: a part of the photo, squeezed to a square, maybe flipped.

    Picture [3, size, size] uint8, and the mask [size/16, size/16] in [0, 1] of the same place where the photo has one.
    """
    height, width = photo.pixels.shape[:2]
    area = rng.uniform(smallest_area, 1.0)
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    columns = min(width, round(width * np.sqrt(area) * stretch))
    rows = min(height, round(height * np.sqrt(area) / stretch))
    x, y = int(rng.integers(0, width - columns + 1)), int(rng.integers(0, height - rows + 1))
    flip = rng.random() < 0.5

    def part(image: Image.Image, side: int, across: float, down: float) -> NDArray[Any]:
        box = (x * across, y * down, (x + columns) * across, (y + rows) * down)
        seen = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
        return seen[:, ::-1] if flip else seen

    pixels = part(Image.fromarray(photo.pixels), size, 1.0, 1.0)
    mask = None
    if photo.mask is not None:
        full = Image.fromarray(photo.mask)
        mask = torch.from_numpy(part(full, size // 16, full.width / width, full.height / height).copy())
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), mask


@dataclass
class Views:
    """Views for classification.

    Pictures [B, 3, S, S] in [-1, 1]; probabilities [B, tags] and whether a label was known [B]; masks [B, 1, S/16, S/16] in [0, 1],
    and how far each is to be trusted [B]: 1 for a person's, less for a network's, 0 where there is none.
    """

    pictures: Tensor
    targets: Tensor
    known: Tensor
    masks: Tensor
    trust: Tensor
    numbers: range

    def to(self, device: torch.device) -> Views:
        """The views with their tensors on a device."""
        names = ("pictures", "targets", "known", "masks", "trust")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class LabelledViews:
    """Random views by step and share with what they show: the classifiers' opinion of the photo mixed with its label.

    ``thumbnails`` have labels alone, and make up ``thumbnail_share`` of the pictures. A photo without label and opinion is
    passed over.
    """

    def __init__(
        self,
        photos: Photos,
        vocabulary: Sequence[str],
        thumbnails: Photos | None = None,
        *,
        size: int,
        batch: int,
        seed: int,
        thumbnail_share: float = 0.15,
        smallest_area: float = 0.5,
        watched: bool = False,
    ) -> None:
        """``watched``: classifiers will look at every view, so that what they said of the photo does not count."""
        self.watched = watched
        self.photos, self.thumbnails = photos, thumbnails
        self.size, self.batch, self.seed, self.smallest_area = size, batch, seed, smallest_area
        self.thumbnail_share = thumbnail_share if thumbnails is not None else 0.0
        # of equal tags the first one counts
        self.tags = {tag: number for number, tag in reversed(list(enumerate(vocabulary)))}
        self.count = len(vocabulary)

    def __call__(self, step: int, share: Share = WHOLE) -> Views:
        numbers = share.numbers(self.batch)
        parts = [self._one(step, generator(self.seed, step, number)) for number in numbers]
        pictures, targets, known, masks, trust = zip(*parts, strict=True)
        scaled = torch.stack(pictures).float() / 127.5 - 1
        stacked = torch.stack(masks)[:, None]
        return Views(scaled, torch.stack(targets), torch.tensor(known), stacked, torch.tensor(trust), numbers)

    def _one(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, bool, Tensor, float]:
        for _ in range(MANY):
            thumbnail = self.thumbnails is not None and rng.random() < self.thumbnail_share
            source = self.thumbnails if thumbnail and self.thumbnails is not None else self.photos
            photo = draw(source, step, rng)
            tag = self.tags.get(photo.label or "", -1)
            logits = None if self.watched else photo.logits
            if logits is None and tag < 0 and not self.watched:
                continue
            target = torch.zeros(self.count)
            if logits is not None:
                probability = logits.softmax(0)
                target[: len(probability)] = probability * (1 - LABEL_SHARE if tag >= 0 else 1.0)
            if tag >= 0:
                target[tag] += LABEL_SHARE if logits is not None else 1.0
            picture, mask = view(photo, self.size, rng, self.smallest_area)
            if mask is None:
                return picture, target, tag >= 0, torch.zeros(self.size // 16, self.size // 16), 0.0
            return picture, target, tag >= 0, mask, 1.0 if photo.annotated else NETWORK_TRUST
        raise SlimError(
            "the photos have neither labels from the vocabulary nor classifiers' opinions: give teachers.models, or labels"
        )
