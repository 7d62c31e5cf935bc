"""Photos with what is known of them: records as they are stored, decoded photos, and sets to draw from."""

from __future__ import annotations

import bisect
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count, islice
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from slimcodec.data.masks import Annotation, Mask, mask_from_boxes
from slimcodec.errors import ImageError, SlimError
from slimcodec.images import Pixels, load_image, mask_from_picture

logger = logging.getLogger(__name__)


@dataclass
class Photo:
    """A decoded photo with its annotation.

    ``pixels`` [H, W, 3] uint8; ``mask`` [h, w] in [0, 1] over the whole photo, or None where nobody and no network drew one;
    ``annotated``: whether the mask is a person's; ``label``: class name; ``logits`` [K]: mean answer of frozen classifiers, or
    None; ``source``, ``id`` and ``class_index``: as in ``Record``.
    """

    pixels: Pixels
    mask: Mask | None = None
    annotated: bool = False
    label: str | None = None
    captions: Sequence[str] = ()
    logits: Tensor | None = None
    source: str = ""
    id: str = ""
    class_index: int = -1


@dataclass(frozen=True)
class Record:
    """A photo as it is stored: encoded bytes, with what is known of it.

    ``label``: class name; ``class_index``: from 0, -1 where unknown; ``mask``: encoded grey picture; ``boxes``: [x0, y0, x1, y1]
    in pixels; ``annotation``: from a COCO or VOC file beside the photos; ``source``: name of its collection, "" for none;
    ``name``: the file or row that errors speak of, "" where their reader names it.
    """

    image: bytes
    class_index: int = -1
    label: str | None = None
    captions: tuple[str, ...] = ()
    mask: bytes | None = None
    boxes: tuple[tuple[float, ...], ...] = ()
    annotation: Annotation | None = None
    source: str = ""
    name: str = ""

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of ``image``: the same wherever the photo stands in a data set."""
        return hashlib.sha256(self.image).hexdigest()[:16]

    def decode(self) -> Photo:
        """The photo, upright sRGB; ``ImageError`` (or ``OSError`` of its mask) where the bytes cannot be decoded."""
        try:
            photo = Photo(load_image(self.image), source=self.source, id=self.id)
        except ImageError as error:
            reason = str(error) if self.image else "it has neither bytes nor a path"
            raise ImageError(f"{self.name}: {reason}" if self.name else reason) from error
        photo.label, photo.captions, photo.class_index = self.label, self.captions, self.class_index
        height, width = photo.pixels.shape[:2]
        if self.annotation is not None:
            photo.label = self.label or self.annotation.label
            photo.captions = self.captions or self.annotation.captions
        if self.mask:
            with Image.open(io.BytesIO(self.mask)) as opened:
                photo.mask = mask_from_picture(opened, (width, height))
        elif self.boxes:
            photo.mask = mask_from_boxes(self.boxes, (width, height))
        elif self.annotation is not None:
            photo.mask = self.annotation.mask((width, height))
        photo.annotated = photo.mask is not None
        return photo


def read_record(
    row: Mapping[str, Any],
    features: Mapping[str, Any],
    annotations: Mapping[str, Annotation] | None = None,
) -> Record:
    """The record of a table's row; ``OSError`` where a file that it names cannot be read.

    Columns: ``image`` is needed; ``mask`` (grey picture, object from 128 up), ``boxes``, ``label`` (text or class), ``captions``
    and ``source`` are used where they are. ``features``: the table's, which name its classes; ``annotations``: by file name.
    """
    path = (row.get("image") or {}).get("path") or ""
    captions = row.get("captions") or row.get("caption") or ()
    return Record(
        _stored_bytes(row["image"]) or b"",
        label=_class_name(features, "label", row.get("label")),
        captions=(captions,) if isinstance(captions, str) else tuple(captions),
        mask=_stored_bytes(row.get("mask")),
        boxes=tuple(tuple(map(float, box)) for box in row.get("boxes") or ()),
        annotation=(annotations or {}).get(os.path.basename(path)),
        source=_class_name(features, "source", row.get("source")) or "",
    )


def _class_name(features: Mapping[str, Any], column: str, value: Any) -> str | None:
    """A cell as a name: text as it is, a class number by the column's feature; None where there is no name."""
    if value is None or isinstance(value, str):
        return value
    feature: Any = features.get(column)
    if hasattr(feature, "int2str") and int(value) >= 0:
        # folder names are often written with underscores
        return str(feature.int2str(int(value))).replace("_", " ")
    return None


def _stored_bytes(stored: Mapping[str, Any] | None) -> bytes | None:
    """The bytes of an undecoded picture of ``datasets``, which holds them or the path of a file."""
    if not stored:
        return None
    data: bytes | None = stored.get("bytes")
    return Path(stored["path"]).read_bytes() if not data and stored.get("path") else data


class Pool(Protocol):
    """Photos that a batch is drawn from."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Photo | None: ...


class _Reader:
    """Decodes rows of tables. A photo that cannot be decoded is None, counted in ``broken``, and named in a warning once."""

    def __init__(self, annotations: Mapping[str, Annotation] | None) -> None:
        self._annotations = annotations
        #: numbers of the photos that could not be decoded
        self.broken: set[int] = set()

    def read(self, table: Any, row: Mapping[str, Any], number: int) -> Photo | None:
        """The photo of a row of ``table``, without pseudo-labels."""
        try:
            return read_record(row, table.features or {}, self._annotations).decode()
        except (ImageError, OSError, ValueError) as error:
            if number not in self.broken:
                self.broken.add(number)
                name = (row.get("image") or {}).get("path") or f"row {number}"
                logger.warning("%s is left out: %s", name, error)
            return None


class PhotoSet(_Reader):
    """Rows of ``datasets`` tables (see ``read_record``), kept decoded in memory up to a limit of bytes."""

    def __init__(
        self,
        tables: Sequence[Any],
        annotations: Mapping[str, Annotation] | None = None,
        memory: int = 4 << 30,
    ) -> None:
        super().__init__(annotations)
        self._tables, self._room = tables, memory
        self._starts = [0, *accumulate(map(len, tables))]
        self._photos: dict[int, Photo | None] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def collections(self) -> set[str]:
        """The names in the column ``source``, "" where there is none; no picture is read."""
        return {name or "" for name in self._names("source")}

    def labels(self) -> set[str]:
        """The classes of photos that have one; no picture is read."""
        annotated = {annotation.label for annotation in (self._annotations or {}).values()}
        return {name for name in self._names("label") | annotated if name}

    def _names(self, column: str) -> set[str | None]:
        return {
            _class_name(table.features, column, value)
            for table in self._tables
            for value in (table.unique(column) if column in table.column_names else [None])
        }

    def __getitem__(self, row: int) -> Photo | None:
        if row in self._photos:
            return self._photos[row]
        part = bisect.bisect_right(self._starts, row) - 1
        table = self._tables[part]
        photo = self.read(table, table[row - self._starts[part]], row)
        size = photo.pixels.nbytes if photo is not None else 0
        if size <= self._room:
            self._room -= size
            self._photos[row] = photo
        return photo

    def pool(self, step: int) -> PhotoSet:
        """The photos that the batch of a step is drawn from: all of them."""
        return self


class PhotoStream(_Reader):
    """Photos of one streamed table, in windows that are held one at a time.

    Window w serves the steps w * n .. w * n + n - 1, and holds the photos w * window .. of the shuffled stream, which starts
    over at its end. So a batch is a function of the step, as with a ``PhotoSet``; a resumed run reads up to its window first.
    ``label``: adds pseudo-labels to a photo.
    """

    def __init__(
        self,
        table: Any,
        steps: int,
        window: int,
        seed: int,
        annotations: Mapping[str, Annotation] | None = None,
        label: Callable[[Photo], Photo] | None = None,
    ) -> None:
        super().__init__(annotations)
        self._table, self._steps, self._window, self._seed = table, max(1, steps), window, seed
        self._label, self._rows = label, self._forever()
        #: the window whose photos are held, and those
        self._held, self._photos = -1, list[Photo | None]()

    def pool(self, step: int) -> Sequence[Photo | None]:
        """The photos of the window that serves a step."""
        window = step // self._steps
        if window != self._held:
            if window < self._held:
                self._rows, self._held = self._forever(), -1
            skipped = (window - self._held - 1) * self._window
            rows = islice(self._rows, skipped, skipped + self._window)
            self._photos = [self._photo(window * self._window + n, row) for n, row in enumerate(rows)]
            self._held = window
        return self._photos

    def _photo(self, number: int, row: Mapping[str, Any]) -> Photo | None:
        photo = self.read(self._table, row, number)
        return photo if photo is None or self._label is None else self._label(photo)

    def _forever(self) -> Iterator[Mapping[str, Any]]:
        for epoch in count(self._seed):
            rows = iter(self._table.shuffle(seed=epoch, buffer_size=self._window))
            if (first := next(rows, None)) is None:
                raise SlimError("the streamed photos are empty")
            yield first
            yield from rows
