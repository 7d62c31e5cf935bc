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
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.data.masks import Annotation, Mask, mask_from_boxes, mask_from_picture
from slimcodec.errors import ImageError, SlimError
from slimcodec.images import load_image

logger = logging.getLogger(__name__)


@dataclass
class Photo:
    """A decoded photo with its annotation.

    ``pixels`` [H, W, 3] uint8; ``mask`` [h, w] in [0, 1] over the whole photo, or None where nobody and no network drew one;
    ``annotated``: whether the mask is a person's; ``label``: class name; ``logits`` [K]: mean answer of frozen classifiers, or
    None; ``source``: the collection that it belongs to, where the data names one; ``id`` and ``class_index``: as in ``Record``.
    """

    pixels: NDArray[np.uint8]
    mask: Mask | None = None
    annotated: bool = False
    label: str | None = None
    captions: Sequence[str] = ()
    name: str = ""
    logits: Tensor | None = None
    source: str = ""
    id: str = ""
    class_index: int = -1


@dataclass(frozen=True)
class Record:
    """A photo as it is stored: encoded bytes, with what is known of it.

    ``label``: class name; ``class_index``: from 0, -1 where unknown; ``mask``: encoded grey picture; ``boxes``: [x0, y0, x1, y1]
    in pixels; ``annotation``: from a COCO or VOC file beside the photos; ``source``: name of its collection.
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
        if not self.image:
            raise ImageError("it has neither bytes nor a path")
        pixels = load_image(self.image)
        size = (pixels.shape[1], pixels.shape[0])
        label, captions, mask = self.label, self.captions, None
        if self.mask:
            with Image.open(io.BytesIO(self.mask)) as opened:
                mask = mask_from_picture(opened, size)
        elif self.boxes:
            mask = mask_from_boxes(self.boxes, size)
        elif self.annotation is not None:
            mask = self.annotation.mask(size)
        if self.annotation is not None:
            label, captions = label or self.annotation.label, captions or self.annotation.captions
        return Photo(
            pixels,
            mask,
            mask is not None,
            label,
            captions,
            self.name,
            None,
            self.source,
            self.id,
            self.class_index,
        )


def read_record(
    row: Mapping[str, Any],
    number: int = 0,
    features: Mapping[str, Any] | None = None,
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
        label=class_name(features, "label", row.get("label")),
        captions=(captions,) if isinstance(captions, str) else tuple(captions),
        mask=_stored_bytes(row.get("mask")),
        boxes=tuple(tuple(map(float, box)) for box in row.get("boxes") or ()),
        annotation=(annotations or {}).get(os.path.basename(path)),
        source=class_name(features, "source", row.get("source")) or "",
        name=path or f"row {number}",
    )


def class_name(features: Mapping[str, Any] | None, column: str, value: Any) -> str | None:
    """A cell as a name: text as it is, a class number by the column's feature; None where there is no name."""
    if value is None or isinstance(value, str):
        return value
    feature: Any = (features or {}).get(column)
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

    def __getitem__(self, row: int) -> Photo | None: ...


class PhotoSet:
    """Rows of ``datasets`` tables (see ``read_record``), kept decoded in memory up to a limit of bytes.

    A photo that cannot be decoded is None; it is counted in ``broken``, and named in a warning once.
    """

    def __init__(
        self,
        tables: Sequence[Any],
        annotations: Mapping[str, Annotation] | None = None,
        memory: int = 4 << 30,
    ) -> None:
        self._tables, self._annotations, self._room = list(tables), annotations, memory
        self._starts = [0, *accumulate(len(table) for table in self._tables)]
        self._photos: dict[int, Photo | None] = {}
        #: rows that could not be decoded
        self.broken: set[int] = set()

    def __len__(self) -> int:
        return self._starts[-1]

    def collections(self) -> set[str]:
        """The names in the column ``source``, "" where there is none; no picture is read."""
        names: set[str] = set()
        for table in self._tables:
            values = table.unique("source") if "source" in table.column_names else [""]
            names.update(class_name(table.features, "source", value) or "" for value in values)
        return names

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

    def read(self, table: Any, row: Mapping[str, Any], number: int) -> Photo | None:
        """The photo of a row of ``table``, without pseudo-labels; None where its bytes cannot be decoded."""
        try:
            return read_record(row, number, table.features, self._annotations).decode()
        except (ImageError, OSError, ValueError) as error:
            if number not in self.broken:
                self.broken.add(number)
                name = (row.get("image") or {}).get("path") or f"row {number}"
                logger.warning("%s is left out: %s", name, error)
            return None


class PhotoStream:
    """Photos of one streamed table, in windows that are held one at a time.

    Window w serves the steps w * n .. w * n + n - 1, and holds the photos w * window .. of the shuffled stream, which starts
    over at its end. So a batch is a function of the step, as with a ``PhotoSet``; a resumed run reads up to its window first.
    """

    def __init__(
        self,
        table: Any,
        steps: int,
        window: int,
        seed: int,
        annotations: Mapping[str, Annotation] | None = None,
        label: Callable[[int, Photo], Photo] | None = None,
    ) -> None:
        """``label``: adds pseudo-labels to the photo of a number in the stream."""
        self._reader, self._label = PhotoSet([], annotations), label
        self._table, self._steps, self._window, self._seed = table, max(1, steps), window, seed
        self._held: tuple[int, list[Photo | None]] | None = None
        self._rows: Iterator[Mapping[str, Any]] = iter(())
        #: the window that ``_rows`` goes on with
        self._next: int | None = None

    @property
    def broken(self) -> set[int]:
        """Numbers of the photos that could not be decoded, in the order of the stream."""
        return self._reader.broken

    def pool(self, step: int) -> Sequence[Photo | None]:
        """The photos of the window that serves a step."""
        window = step // self._steps
        if self._held is None or self._held[0] != window:
            if self._next is None or window < self._next:
                self._rows, self._next = self._forever(), 0
            for _ in islice(self._rows, (window - self._next) * self._window):
                pass
            rows = list(islice(self._rows, self._window))
            self._next = window + 1
            first = window * self._window
            self._held = (window, [self._photo(first + n, row) for n, row in enumerate(rows)])
        return self._held[1]

    def _photo(self, number: int, row: Mapping[str, Any]) -> Photo | None:
        photo = self._reader.read(self._table, row, number)
        return photo if photo is None or self._label is None else self._label(number, photo)

    def _forever(self) -> Iterator[Mapping[str, Any]]:
        epoch = 0
        while True:
            count = 0
            for row in self._table.shuffle(seed=self._seed + epoch, buffer_size=self._window):
                count += 1
                yield row
            if not count:
                raise SlimError("the streamed photos are empty")
            epoch += 1
