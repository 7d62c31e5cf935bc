"""Batches of crops and views of photos, and their random numbers.

Both are pure functions of the seed, the step and the picture's number in the batch: they do not depend on how a batch is divided
among processes, or on when a run was interrupted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.data.photos import Photo
from slimcodec.errors import SlimError
from slimcodec.training.pseudo_labels import Photos, label_captions

#: tries before a set of photos counts as broken
MANY = 1000
#: weight of a known label beside a classifier's soft label
LABEL_SHARE = 0.5
#: weight of a mask that a network drew beside an annotated one
NETWORK_TRUST = 0.1


class Draws:
    """The random numbers of a step: a generator for each picture of a share, and one that all shares have in common.

    ``numbers``: those of the share's pictures in the whole batch of ``batch`` pictures.
    """

    def __init__(
        self, seed: int, step: int, numbers: Sequence[int], batch: int, device: torch.device | str = "cpu"
    ) -> None:
        self.numbers, self.batch, self.device = list(numbers), batch, device
        self._generators = [_generator(seed, step, number + 1) for number in numbers]
        self._common = _generator(seed, step, 0)

    def of(self, chosen: Tensor) -> Draws:
        """The draws of the pictures that are ``chosen`` (booleans [pictures]); what is common stays common."""
        part = copy.copy(self)
        places = chosen.nonzero()[:, 0].tolist()
        part.numbers = [self.numbers[place] for place in places]
        part._generators = [self._generators[place] for place in places]
        return part

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), [pictures, *shape]."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators]).to(self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, [pictures, *shape]."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators]).to(self.device)

    def integers(self, low: int, high: int) -> Tensor:
        """Whole numbers in low..high-1, [pictures]."""
        drawn = [torch.randint(low, high, (1,), generator=g) for g in self._generators]
        return torch.cat(drawn).to(self.device)

    def common(self, low: int, high: int) -> int:
        """One whole number in low..high-1, the same in all shares."""
        return int(torch.randint(low, high, (), generator=self._common))

    def every(self, share: float) -> Tensor:
        """Which pictures belong to a fixed, evenly spread ``share`` of the whole batch: booleans [pictures]."""
        count = self._count(share)
        chosen = [((n + 1) * count) // self.batch > (n * count) // self.batch for n in self.numbers]
        return torch.tensor(chosen, device=self.device)

    def part_mean(self, values: Tensor, share: float) -> Tensor:
        """This process's part of the batch's mean of ``values`` [chosen pictures]; chosen are those of ``every(share)``.

        Processes may hold unequal numbers of them: divided by the average number, the mean of the parts is that of the batch.
        """
        return values.sum() / (len(self.numbers) * self._count(share) / self.batch)

    def _count(self, share: float) -> int:
        return max(1, round(share * self.batch))


def _generator(seed: int, step: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, step, number]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def draw_photo(
    photos: Photos, step: int, rng: np.random.Generator, shares: Mapping[str, float] | None = None
) -> Photo:
    """A photo at random, of each source as often as ``shares`` says; ``SlimError`` where none can be decoded."""
    pool = photos.pool(step)
    decoded = 0
    for _ in range(MANY):
        if (photo := pool[int(rng.integers(len(pool)))]) is not None:
            decoded += 1
            if is_drawn(photo, shares or {}, rng):
                return photo
    if decoded:
        raise SlimError(f"data.shares left none of {decoded} photos: give the sources that are there more")
    raise SlimError(f"none of {MANY} photos could be decoded: are these pictures?")


def shuffled(photos: Photos, rng: np.random.Generator) -> Iterator[Photo | None]:
    """The photos that the first step draws from, each once at random; None for one that cannot be decoded."""
    pool = photos.pool(0)
    return (pool[row] for row in rng.permutation(len(pool)).tolist())


def is_drawn(photo: Photo, shares: Mapping[str, float], rng: np.random.Generator) -> bool:
    """Whether a photo counts: always without a share of its source, else as often as that says."""
    share = shares.get(photo.source, 1.0)
    return share >= 1.0 or bool(rng.random() < share)


class Batch(NamedTuple):
    """Crops: pictures [B, 3, S, S] in [-1, 1], masks [B, 1, S, S] in [0, 1] and captions."""

    pictures: Tensor
    masks: Tensor
    captions: list[str | None]

    def of(self, chosen: Tensor) -> Batch:
        """The pictures that are ``chosen`` (booleans [B])."""
        captions = [self.captions[place] for place in chosen.nonzero()[:, 0].tolist()]
        return Batch(self.pictures[chosen], self.masks[chosen], captions)


def crop(
    photo: Photo, size: int, rng: np.random.Generator, scale: tuple[float, float] = (0.8, 1.2)
) -> tuple[Tensor, Tensor]:
    """A random square crop with a random flip: picture [3, S, S] uint8 and mask [S, S], of ones where the photo has none.

    It covers ``size / s`` pixels a side of the photo for a scale s drawn from ``scale``, fewer of a small photo.
    """
    height, width = photo.pixels.shape[:2]
    side = min(round(size / rng.uniform(*scale)), height, width)
    x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
    pixels = photo.pixels[y : y + side, x : x + side]
    if side != size:
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    mask: NDArray[Any] = np.ones((size, size), np.float32)
    if photo.mask is not None:
        # the mask may be coarser than the photo (class-activation maps): it is cropped in its own pixels
        rows, columns = photo.mask.shape
        left, right = x * columns / width, (x + side) * columns / width
        box = (left, y * rows / height, right, (y + side) * rows / height)
        method = Image.Resampling.BOX if rows == height else Image.Resampling.BILINEAR
        mask = np.asarray(Image.fromarray(photo.mask).resize((size, size), method, box=box))
    if rng.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(mask.copy())


def random_caption(photo: Photo, rng: np.random.Generator, templates: Sequence[str] = ()) -> str | None:
    """A caption of a photo at random: one of its sentences, else a template with its label, else None."""
    choices = photo.captions or (label_captions(photo.label, templates) if photo.label else [])
    return choices[int(rng.integers(len(choices)))] if choices else None


@dataclass
class Crops:
    """Random crops (see ``crop``) with masks and captions: those of some ``numbers`` of a step's batch, or all of it."""

    photos: Photos
    size: int
    batch: int
    seed: int
    templates: Sequence[str] = ()
    shares: Mapping[str, float] = field(default_factory=dict)  #: see ``draw_photo``

    def __call__(self, step: int, numbers: Sequence[int] | None = None) -> Batch:
        pictures, masks, captions = [], [], []
        for number in range(self.batch) if numbers is None else numbers:
            rng = np.random.default_rng([self.seed, step, number])
            photo = draw_photo(self.photos, step, rng, self.shares)
            picture, mask = crop(photo, self.size, rng)
            pictures.append(picture)
            masks.append(mask)
            captions.append(random_caption(photo, rng, self.templates))
        return Batch(scaled(pictures), torch.stack(masks)[:, None].float(), captions)


def scaled(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures [3, H, W] uint8 as a batch [B, 3, H, W] in [-1, 1]."""
    return torch.stack(list(pictures)).float() / 127.5 - 1


class Views(NamedTuple):
    """Views for classification: pictures [B, 3, S, S] in [-1, 1]."""

    pictures: Tensor
    #: probabilities [B, tags], and whether a label was known [B]
    targets: Tensor
    known: Tensor
    #: [B, 1, S/16, S/16] in [0, 1], and the trust in each [B]: 1 if annotated, less if a network's, 0 if there is none
    masks: Tensor
    trust: Tensor


def view(
    photo: Photo, size: int, rng: np.random.Generator, smallest_area: float
) -> tuple[Tensor, Tensor | None]:
    """A random part of the photo, squeezed to a square, maybe flipped.

    Picture [3, size, size] uint8, and the mask [size/16, size/16] in [0, 1] of the same place where the photo has one.
    """
    height, width = photo.pixels.shape[:2]
    area = rng.uniform(smallest_area, 1.0)
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    columns = min(width, round(width * np.sqrt(area) * stretch))
    rows = min(height, round(height * np.sqrt(area) / stretch))
    x, y = int(rng.integers(0, width - columns + 1)), int(rng.integers(0, height - rows + 1))
    flip = rng.random() < 0.5

    def part(array: NDArray[Any], side: int) -> NDArray[Any]:
        image = Image.fromarray(array)
        across, down = image.width / width, image.height / height
        box = (x * across, y * down, (x + columns) * across, (y + rows) * down)
        resized = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
        return resized[:, ::-1] if flip else resized

    picture = torch.from_numpy(part(photo.pixels, size).transpose(2, 0, 1).copy())
    return picture, None if photo.mask is None else torch.from_numpy(part(photo.mask, size // 16).copy())


@dataclass
class LabelledViews:
    """Random views with what they show: the classifiers' soft label of the photo mixed with its label.

    They are drawn by step and number, as ``Crops`` are. A photo with neither kind of label is passed over.
    """

    photos: Photos
    vocabulary: Sequence[str]
    #: photos with labels alone, and their share of the pictures
    thumbnails: Photos | None = None
    thumbnail_share: float = 0.15
    _: KW_ONLY
    size: int
    seed: int
    smallest_area: float = 0.5
    #: classifiers will see every view, so that their soft label of the photo does not count
    labelled_later: bool = False

    def __post_init__(self) -> None:
        # of equal tags the first one counts
        self.tags = {tag: number for number, tag in reversed(list(enumerate(self.vocabulary)))}

    def __call__(self, step: int, numbers: Sequence[int]) -> Views:
        views = [self._view(step, np.random.default_rng([self.seed, step, number])) for number in numbers]
        pictures, targets, known, masks, trust = zip(*views, strict=True)
        return Views(
            scaled(pictures),
            torch.stack(targets),
            torch.tensor(known),
            torch.stack(masks)[:, None],
            torch.tensor(trust),
        )

    def _view(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, bool, Tensor, float]:
        for _ in range(MANY):
            photos = self.photos
            if self.thumbnails is not None and rng.random() < self.thumbnail_share:
                photos = self.thumbnails
            photo = draw_photo(photos, step, rng)
            tag = self.tags.get(photo.label or "", -1)
            logits = None if self.labelled_later else photo.logits
            if logits is None and tag < 0 and not self.labelled_later:
                continue
            target = torch.zeros(len(self.vocabulary))
            if logits is not None:
                probability = logits.softmax(0)
                target[: len(probability)] = probability * (1 - LABEL_SHARE if tag >= 0 else 1.0)
            if tag >= 0:
                target[tag] += LABEL_SHARE if logits is not None else 1.0
            picture, mask = view(photo, self.size, rng, self.smallest_area)
            if mask is None:
                mask, trust = torch.zeros(self.size // 16, self.size // 16), 0.0
            else:
                trust = 1.0 if photo.annotated else NETWORK_TRUST
            return picture, target, tag >= 0, mask, trust
        raise SlimError(
            "the photos have neither labels of the vocabulary nor classifiers' soft labels: give teachers.models, or labels"
        )
