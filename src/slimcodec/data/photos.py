"""Training photos by row, decoded when they are first used, with the annotation that goes with each."""

from __future__ import annotations

import bisect
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.data.masks import mask_from_boxes, mask_from_picture
from slimcodec.errors import ImageError, SlimError
from slimcodec.images import load_image

logger = logging.getLogger(__name__)
Mask = NDArray[np.float32]


@dataclass
class Photo:
    """A decoded photo with its annotation.

    ``pixels`` [H, W, 3] uint8; ``mask`` [h, w] in [0, 1] over the whole photo, or None where nobody and no network drew one;
    ``annotated``: whether the mask is a person's; ``logits`` [K]: what frozen classifiers said, or None; ``source``: the collection
    that it belongs to, where the data names one.
    """

    pixels: NDArray[np.uint8]
    mask: Mask | None
    annotated: bool
    label: str | None
    captions: list[str]
    name: str = ""
    logits: Tensor | None = None
    source: str = ""


class Drawn(Protocol):
    """An annotation from a file beside the photos: COCO or VOC."""

    @property
    def captions(self) -> Sequence[str]:
        """Sentences of people."""
        ...

    @property
    def label(self) -> str | None:
        """The name of the main object."""
        ...

    def mask(self, size: tuple[int, int]) -> Mask | None:
        """The region of interest [H, W] of a photo of ``size`` (width, height)."""
        ...


@dataclass(frozen=True)
class Target:
    """What frozen networks say of a photo: mean logits [K] of the classifiers, a mask [h, w] and a caption where they gave one."""

    logits: Tensor | None = None
    mask: Mask | None = None
    caption: str | None = None


#: finds the target of a row's photo
Targets = Callable[[int, Photo], Target]


class Pool(Protocol):
    """Photos that a batch is drawn from."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Photo | None: ...


class PhotoSet:
    """Rows of ``datasets`` sources, kept decoded in memory up to a limit.

    Columns: ``image`` is needed; ``mask`` (grey picture, object from 128 up), ``boxes`` ([x0, y0, x1, y1] in pixels), ``label``
    (text or class), ``captions`` and ``source`` (name of a collection) are used where they are. A photo that cannot be decoded is None; it is counted, and named in
    a warning once.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        annotations: Mapping[str, Drawn] | None = None,
        memory: int = 4 << 30,
    ) -> None:
        self._sources, self._annotations, self._room = list(sources), annotations or {}, memory
        self._starts = [0, *accumulate(len(source) for source in self._sources)]
        self._photos: dict[int, Photo | None] = {}
        #: rows that could not be decoded
        self.broken: set[int] = set()
        self._targets: Targets | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def collections(self) -> set[str]:
        """The names in the column ``source``, "" where there is none; no picture is read."""
        found: set[str] = set()
        for source in self._sources:
            if "source" in source.column_names:
                found.update(_named(source, "source", value) or "" for value in source.unique("source"))
            else:
                found.add("")
        return found

    def use(self, targets: Targets) -> None:
        """From now on photos have what frozen networks say of them, those that are in memory too."""
        self._targets = targets
        for row, photo in self._photos.items():
            if photo is not None:
                attach(photo, targets(row, photo))

    def __getitem__(self, row: int) -> Photo | None:
        if row in self._photos:
            return self._photos[row]
        part = bisect.bisect_right(self._starts, row) - 1
        photo = self.read(self._sources[part], self._sources[part][row - self._starts[part]], row)
        if photo is not None and self._targets is not None:
            attach(photo, self._targets(row, photo))
        size = photo.pixels.nbytes if photo is not None else 0
        if size <= self._room:
            self._room -= size
            self._photos[row] = photo
        return photo

    def pool(self, step: int) -> PhotoSet:
        """The photos that the batch of a step is drawn from: all of them."""
        return self

    def read(self, source: Any, record: dict[str, Any], row: int) -> Photo | None:
        """The photo of a record of ``source``, without target; None where its bytes cannot be decoded."""
        try:
            return _photo(source, record, self._annotations, row)
        except (ImageError, OSError, ValueError) as error:
            if row not in self.broken:
                self.broken.add(row)
                logger.warning("%s is left out: %s", _name(record, row), error)
            return None


class PhotoStream:
    """Photos of one streamed source, in windows that are held one at a time.

    Window w serves the steps w * n .. w * n + n - 1, and holds the photos w * window .. of the shuffled stream, which starts
    over at its end. So a batch is a function of the step, as with a ``PhotoSet``; a resumed run reads up to its window first.
    """

    def __init__(
        self, source: Any, steps: int, window: int, seed: int, annotations: Mapping[str, Drawn] | None = None
    ) -> None:
        self._reader = PhotoSet([], annotations)
        self._source, self._steps, self._window, self._seed = source, max(1, steps), window, seed
        self._held: tuple[int, list[Photo | None]] | None = None
        self._rows: Any = None
        self._next = 0
        self.targets: Targets | None = None

    @property
    def broken(self) -> set[int]:
        """Numbers of the photos that could not be decoded, in the order of the stream."""
        return self._reader.broken

    def pool(self, step: int) -> Sequence[Photo | None]:
        """The photos of the window that serves a step."""
        wanted = step // self._steps
        if self._held is None or self._held[0] != wanted:
            if self._rows is None or wanted < self._next:
                self._rows, self._next = self._forever(), 0
            for _ in islice(self._rows, (wanted - self._next) * self._window):
                pass
            records = list(islice(self._rows, self._window))
            self._next = wanted + 1
            first = wanted * self._window
            self._held = (wanted, [self._photo(first + n, record) for n, record in enumerate(records)])
        return self._held[1]

    def _photo(self, number: int, record: dict[str, Any]) -> Photo | None:
        photo = self._reader.read(self._source, record, number)
        if photo is not None and self.targets is not None:
            attach(photo, self.targets(number, photo))
        return photo

    def _forever(self) -> Any:
        epoch = 0
        while True:
            count = 0
            for record in self._source.shuffle(seed=self._seed + epoch, buffer_size=self._window):
                count += 1
                yield record
            if not count:
                raise SlimError("the streamed photos are empty")
            epoch += 1


def attach(photo: Photo, target: Target) -> None:
    """Gives a photo what frozen networks say of it; a person's mask and words stay."""
    photo.logits = target.logits
    if photo.mask is None:
        photo.mask = target.mask
    if target.caption and not photo.captions and not photo.label:
        photo.captions = [target.caption]


def _photo(source: Any, record: dict[str, Any], annotations: Mapping[str, Drawn], row: int) -> Photo:
    stored = record["image"] or {}
    data = stored.get("bytes") or stored.get("path")
    if not data:
        raise ImageError("it has neither bytes nor a path")
    pixels = load_image(data)
    size = (pixels.shape[1], pixels.shape[0])
    label = _named(source, "label", record.get("label"))
    captions = record.get("captions") or record.get("caption") or []
    captions = [captions] if isinstance(captions, str) else list(captions)
    drawn = annotations.get(os.path.basename(stored.get("path") or ""))
    mask: Mask | None = None
    kept = record.get("mask") or {}
    if kept.get("bytes") or kept.get("path"):
        with Image.open(io.BytesIO(kept["bytes"]) if kept.get("bytes") else kept["path"]) as opened:
            mask = mask_from_picture(opened, size)
    elif record.get("boxes"):
        mask = mask_from_boxes(record["boxes"], size)
    elif drawn is not None:
        mask = drawn.mask(size)
    if drawn is not None:
        label = label or drawn.label
        captions = captions or list(drawn.captions)
    collection = _named(source, "source", record.get("source")) or ""
    return Photo(pixels, mask, mask is not None, label, captions, _name(record, row), source=collection)


def _name(record: dict[str, Any], row: int) -> str:
    path = (record.get("image") or {}).get("path")
    return str(path) if path else f"row {row}"


def _named(source: Any, column: str, value: Any) -> str | None:
    """A name; a class number is looked up in the source's own names."""
    if value is None or isinstance(value, str):
        return value
    feature: Any = (source.features or {}).get(column)
    if hasattr(feature, "int2str") and int(value) >= 0:
        # folder names are often written with underscores
        return str(feature.int2str(int(value))).replace("_", " ")
    return None
