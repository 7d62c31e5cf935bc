"""Photos with class indices: parquet files, image folders, or any source that the ``datasets`` library loads."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimcodec.errors import SlimError

#: columns that may hold the class index, the first one found is taken
LABEL_COLUMNS = ("imagenet_index", "label", "labels")
PICTURES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Sample:
    """A photo as it is stored, with what is known of it.

    ``id``: the first 16 hex digits of the SHA-256 of ``image`` (encoded bytes), so that it stays the same wherever the
    photo stands in a data set; ``label``: class index from 0; ``mask``: encoded grey picture or None; ``boxes``: [x0, y0,
    x1, y1] in pixels.
    """

    id: str
    image: bytes
    label: int
    mask: bytes | None = None
    boxes: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Samples:
    """A data set: its name, the id and label of every photo, and how to read one."""

    name: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    read: Callable[[int], Sample]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(row) for row in range(len(self)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sorted ids and labels: the same for the same labelled photos in any order."""
        lines = sorted(f"{id_} {label}" for id_, label in zip(self.ids, self.labels, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load_samples(
    source: str,
    *,
    split: str = "validation",
    label_column: str | None = None,
    labels: str | None = None,
    classes: str | None = None,
    limit: int | None = None,
    labelled: bool = True,
) -> Samples:
    """The photos of ``source``: a parquet file (or a glob, or a folder of them), an image folder, or a hub id.

    A parquet file or hub data set has a column ``image`` and one of integers (``label_column``, or the first of
    ``LABEL_COLUMNS``); ``mask`` and ``boxes`` are read where they exist; ``split`` is for hub ids. In an image folder the
    class is the name of the sub-folder, a number or a line of the text file ``classes``; or ``labels`` names a text file
    with a line ``file name, index`` for every photo. ``limit`` takes the first photos;
    without ``labelled`` every label is -1.

    Raises ``SlimError`` for a source that cannot be read, a photo without label, and a photo that is there twice.
    """
    path = Path(source)
    if path.is_dir() and not any(path.rglob("*.parquet")):
        name, count, read = path.name, *_folder(path, labels, classes, labelled)
    else:
        if labels or classes:
            raise SlimError(
                "--labels and --classes are for image folders; tables have a column of class indices"
            )
        name, count, read = _table(source, split, label_column, labelled)
    count = min(count, limit or count)
    if not count:
        raise SlimError(f"{source}: no photos in it")
    ids, found = [], []
    for row in range(count):
        sample = read(row)
        ids.append(sample.id)
        found.append(sample.label)
    twice = [id_ for id_, times in Counter(ids).items() if times > 1]
    if twice:
        rows = [row for row, id_ in enumerate(ids) if id_ == twice[0]]
        raise SlimError(
            f"{source}: {len(twice)} photos are there twice, the first in rows {rows[0]} and {rows[1]}; "
            "remove the copies, which would count double"
        )
    return Samples(name, tuple(ids), tuple(found), read)


def check_labels(samples: Samples, classes: int, judge: str) -> None:
    """Raises ``SlimError`` where a label is outside 0..``classes`` - 1, the outputs of the classifier ``judge``."""
    wrong = [row for row, label in enumerate(samples.labels) if not 0 <= label < classes]
    if wrong:
        raise SlimError(
            f"{len(wrong)} of {len(samples)} labels are outside 0..{classes - 1}, the classes of {judge}: the first is "
            f"{samples.labels[wrong[0]]} in row {wrong[0]}; give the labels that this classifier was trained with"
        )


def photo_id(image: bytes) -> str:
    """The id of a photo's encoded bytes."""
    return hashlib.sha256(image).hexdigest()[:16]


def _table(
    source: str, split: str, label_column: str | None, labelled: bool
) -> tuple[str, int, Callable[[int], Sample]]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise SlimError("tables need the datasets library: pip install 'slimcodec[eval]'") from error
    path = Path(source)
    files: list[str] = []
    if path.is_dir():
        files = sorted(map(str, path.rglob("*.parquet")))
    elif path.suffix == ".parquet" or glob.has_magic(source):
        files = sorted(glob.glob(source)) if glob.has_magic(source) else [source]
        if not files or not all(map(os.path.isfile, files)):
            raise SlimError(f"{source}: no such file")
    elif path.is_absolute() or source.startswith(".") or (path.suffix and len(path.parts) == 1):
        raise SlimError(f"{source}: no such folder, and not a .parquet file or the id of a hub data set")
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if files:
            table = datasets.load_dataset("parquet", data_files=files, split="train")
        else:
            table = datasets.load_dataset(source, split=split)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise SlimError(
            f"{source}: no such file or folder, and not a data set that can be loaded: {reason}"
        ) from error
    finally:
        if not shown:
            datasets.enable_progress_bars()
    columns = table.column_names
    if "image" not in columns:
        raise SlimError(f"{source}: no column 'image'; it has {', '.join(columns)}")
    chosen = label_column or next((name for name in LABEL_COLUMNS if name in columns), None)
    if labelled and (chosen is None or chosen not in columns):
        raise SlimError(
            f"{source}: no column {chosen or 'of labels'}; choose one of {', '.join(columns)} with --label-column"
        )
    for column in ("image", "mask"):
        if column in columns:
            table = table.cast_column(column, datasets.Image(decode=False))

    def read(row: int) -> Sample:
        record: dict[str, Any] = table[row]
        label = record[chosen] if labelled and chosen is not None else -1
        if not isinstance(label, int) or isinstance(label, bool):
            raise SlimError(
                f"{source}: row {row} of column {chosen!r} holds {label!r}, not a class index; choose a column of "
                "integers with --label-column"
            )
        stored = record["image"] or {}
        data = stored.get("bytes") or (Path(stored["path"]).read_bytes() if stored.get("path") else b"")
        mask = (record.get("mask") or {}).get("bytes")
        boxes = tuple(tuple(map(float, box)) for box in record.get("boxes") or ())
        return Sample(photo_id(data), data, label, mask, boxes)

    return (path.name if files else source), len(table), read


def _folder(
    path: Path, labels: str | None, classes: str | None, labelled: bool
) -> tuple[int, Callable[[int], Sample]]:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in PICTURES and not file.name.startswith(".") and file.is_file()
    )
    if not labelled:
        numbers = [-1] * len(files)
    elif labels is not None:
        numbers = _labels_by_file(files, path, read_labels(labels), labels)
    else:
        named = _class_numbers(classes)
        numbers = [_folder_class(file, path, named) for file in files]

    def read(row: int) -> Sample:
        data = files[row].read_bytes()
        return Sample(photo_id(data), data, numbers[row])

    return len(files), read


def read_labels(path: str) -> dict[str, int]:
    """File names and class indices of a text file: a line each, separated by a comma, tab or space."""
    found: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        name, _, index = re.sub(r"[,\t]", " ", line).strip().rpartition(" ")
        if not name or not re.fullmatch(r"-?\d+", index):
            if number == 1:
                continue  # a heading
            raise SlimError(f"{path}: line {number} is {line!r}; write 'file name, class index'")
        found[name.strip()] = int(index)
    if not found:
        raise SlimError(f"{path}: no line 'file name, class index' in it")
    return found


def _labels_by_file(files: Sequence[Path], root: Path, labels: dict[str, int], source: str) -> list[int]:
    numbers, missing = [], []
    for file in files:
        place = file.relative_to(root).as_posix()
        number = labels.get(place, labels.get(file.name))
        missing += [place] if number is None else []
        numbers.append(-1 if number is None else number)
    if missing:
        raise SlimError(
            f"{source}: no label for {len(missing)} of {len(files)} photos, the first is {missing[0]}"
        )
    return numbers


def _class_numbers(path: str | None) -> dict[str, int]:
    if path is None:
        return {}
    numbers = {name.strip(): number for number, name in enumerate(_lines(path))}
    if len(numbers) < 2:
        raise SlimError(f"{path}: write the name of a class on each line, class 0 first")
    return numbers


def _folder_class(file: Path, root: Path, numbers: dict[str, int]) -> int:
    place = file.relative_to(root)
    name = place.parts[0] if len(place.parts) > 1 else ""
    if name in numbers:
        return numbers[name]
    if name.isdecimal() and not numbers:
        return int(name)
    raise SlimError(
        f"{place}: its class is unknown; sort photos into folders named by class index, or name the folders' classes "
        "in order with --classes FILE, or list photos with --labels FILE"
    )


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
        raise SlimError(f"{path}: cannot be read: {reason}") from error
    return [line for line in text.splitlines() if line.strip()]
