"""Where photos come from: parquet files, image folders, the hub, or drawn ones, as ``datasets`` tables."""

from __future__ import annotations

import glob
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from slimcodec.data.photos import Record, read_record
from slimcodec.errors import SlimError, needs
from slimcodec.files import is_hub_id, visible_files
from slimcodec.images import as_file

#: columns that may hold the class index, the first one found is taken
LABEL_COLUMNS = ("imagenet_index", "label", "labels")
PICTURES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
#: "generated:64" draws 64 pictures
GENERATED = "generated:"
#: what is drawn, by a tag of the embedded vocabulary, and the side of the pictures
SHAPES, SIDE = ("balloon", "envelope", "obelisk", "honeycomb"), 160


def open_sources(
    specs: Sequence[str], setting: str, split: str = "train", streaming: bool = False
) -> list[Any]:
    """A ``datasets`` table for each of ``specs`` (see ``open_table``); ``setting`` is what errors speak of."""
    if not specs:
        raise SlimError(f"{setting} is not set; give parquet files, an image folder or a hub id")
    try:
        return [open_table(spec, split, streaming) for spec in specs]
    except SlimError as error:
        raise SlimError(f"{setting}: {error}") from error


def open_table(spec: str, split: str, streaming: bool = False) -> Any:
    """A ``datasets`` table with a column ``image``; pictures stay encoded, as bytes or paths.

    ``spec`` is a parquet file, a glob or a folder of them, an image folder (class folders, or ``metadata.csv`` /
    ``metadata.jsonl``, as ``datasets`` reads them), a hub id ``owner/name`` whose ``split`` is taken, or ``generated:N``. Raises
    ``SlimError`` where nothing is found.
    """
    with needs("eval", "reading photos"):
        import datasets
        import huggingface_hub

    if not spec:  # the path "" is the folder at hand
        raise SlimError("the name of the photos is empty; give parquet files, an image folder or a hub id")
    if spec.startswith(GENERATED):
        count = spec.removeprefix(GENERATED)
        if not count.isdigit() or int(count) < 1:
            raise SlimError(f"{spec}: write how many pictures to draw, for example generated:64")
        drawn = datasets.Dataset.from_list(generated_rows(int(count)))
        return _undecoded(drawn.to_iterable_dataset() if streaming else drawn, spec)
    path = str(Path(spec).expanduser())
    if files := parquet_files(path):
        # local files have one split, whatever the hub's is called
        source: dict[str, Any] = {"path": "parquet", "data_files": files, "split": "train"}
    elif Path(path).is_dir():
        source = {"path": "imagefolder", "data_dir": path, "split": split}
    elif _is_hub_set(spec):
        source = {"path": spec, "split": split}
    else:
        raise SlimError(f"{spec}: no such file or folder, and not the id of a hub data set, OWNER/NAME")
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        # ``datasets`` asks a hub that does not answer for 20 seconds; what was read before needs no hub
        cached = Path(datasets.config.HF_DATASETS_CACHE, spec.replace("/", "___"))
        if source["path"] == spec and not cached.exists():
            huggingface_hub.dataset_info(spec)
        table = datasets.load_dataset(**source, streaming=streaming)
    except Exception as error:  # the library's errors have no common base
        if source["path"] == "imagefolder" and not any(_is_picture(file) for file in visible_files(path)):
            raise SlimError(f"{spec}: no pictures in it") from error
        reason = " ".join(str(error).split())[:300]
        hub = "no such folder; at the hub it " if source["path"] == spec else ""
        raise SlimError(f"{spec}: {hub}cannot be read as a data set: {reason}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    return _undecoded(table, spec)


def _is_hub_set(spec: str) -> bool:
    """Whether a source reads like a hub data set, ``owner/name``, and not like a file or a glob."""
    path = Path(spec)
    return is_hub_id(spec) and not (path.exists() or glob.has_magic(spec) or path.suffix == ".parquet")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def parquet_files(path: str) -> list[str]:
    """The parquet files of a path: itself, those of a glob or in a folder; none for an image folder or another name."""
    if Path(path).is_dir():
        inside = [str(file) for file in visible_files(path) if file.suffix == ".parquet"]
        return [] if any(Path(file).stem == "metadata" for file in inside) else inside
    files = sorted(glob.glob(path, recursive=True))
    if other := [file for file in files if not file.endswith(".parquet")]:
        raise SlimError(f"{other[0]} is no parquet file; give the folder that the pictures are in")
    return files


def _undecoded(table: Any, spec: str) -> Any:
    import datasets

    columns = table.column_names or list(table.features or {})
    if columns and "image" not in columns:
        raise SlimError(f"{spec}: no column 'image'; it has {', '.join(sorted(columns))}")
    for column in {"image", "mask"}.intersection(columns):
        table = table.cast_column(column, datasets.Image(decode=False))
    return table


def generated_rows(count: int) -> list[dict[str, Any]]:
    """Rows ``image`` and ``mask`` (PNG bytes) and ``label`` of ``count`` pictures of 160x160 pixels, a shape on a blurred ground."""
    return [_generated_row(np.random.default_rng([0, number]), number) for number in range(count)]


def _generated_row(rng: np.random.Generator, number: int) -> dict[str, Any]:
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mask = Image.new("L", (SIDE, SIDE))
    label = SHAPES[number % len(SHAPES)]
    size = int(rng.integers(SIDE // 4, SIDE // 2))
    x, y = (int(v) for v in rng.integers(0, SIDE - size, 2))
    draw, middle = ImageDraw.Draw(mask), x + size // 2
    if label == "balloon":
        draw.ellipse((x, y, x + size, y + size), fill=255)
    elif label == "envelope":
        draw.rectangle((x, y + size // 4, x + size, y + size), fill=255)
    elif label == "obelisk":
        draw.polygon([(middle, y), (x + size, y + size), (x, y + size)], fill=255)
    else:
        draw.regular_polygon((middle, y + size // 2, size // 2), 6, fill=255)
    grain = rng.normal(0, 18, (SIDE, SIDE, 3)) + rng.integers(40, 216, 3)
    surface = Image.fromarray(grain.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
    picture.paste(surface, mask=mask)
    return {"image": _png(picture), "mask": _png(mask), "label": label}


def _png(picture: Image.Image) -> dict[str, Any]:
    return {"bytes": as_file(picture), "path": None}


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos with class indices: the set's name, the id and class index of every photo, and how to read one's record."""

    name: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    read: Callable[[int], Record]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        return (self.read(row) for row in range(len(self)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sorted ids and labels: the same for the same labelled photos in any order."""
        lines = sorted(f"{id_} {label}" for id_, label in zip(self.ids, self.labels, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def open_labelled(
    source: str,
    *,
    split: str = "validation",
    label_column: str | None = None,
    labels: str | None = None,
    classes: str | None = None,
    limit: int | None = None,
    labelled: bool = True,
) -> LabelledPhotos:
    """The photos of a table (see ``open_table``) or image folder with their class indices.

    A table has a column of integers (``label_column``, or the first of ``LABEL_COLUMNS``). In an image folder the class is the
    name of the sub-folder, a number or a line of the text file ``classes``; or ``labels`` names a text file with a line
    ``file name, index`` for every photo. ``limit`` takes the first photos; without ``labelled`` every index is -1.

    Raises ``SlimError`` for a source that cannot be read, a photo without label, and a photo that is there twice.
    """
    path = Path(source)
    if source and path.is_dir() and not parquet_files(source):
        count, read = _folder(path, labels, classes, labelled)
    elif labels or classes:
        raise SlimError("--labels and --classes are for image folders; tables have a column of class indices")
    else:
        count, read = _table(source, split, label_column, labelled)
    count = min(count, limit or count)
    if not count:
        raise SlimError(f"{source}: no photos in it")
    ids, indices = zip(*((record.id, record.class_index) for record in map(read, range(count))), strict=True)
    twice = [id_ for id_, times in Counter(ids).items() if times > 1]
    if twice:
        rows = [row for row, id_ in enumerate(ids) if id_ == twice[0]]
        raise SlimError(
            f"{source}: {len(twice)} photos are there twice, the first in rows {rows[0]} and {rows[1]}; "
            "remove the copies, which would count double"
        )
    return LabelledPhotos(source if _is_hub_set(source) else path.name, ids, indices, read)


def _table(
    source: str, split: str, label_column: str | None, labelled: bool
) -> tuple[int, Callable[[int], Record]]:
    table = open_table(source, split)
    columns = table.column_names
    column = label_column or next((name for name in LABEL_COLUMNS if name in columns), None)
    if labelled and column not in columns:
        raise SlimError(
            f"{source}: no column {column or 'of labels'}; choose one of {', '.join(columns)} with --label-column"
        )

    def read(row: int) -> Record:
        cells = table[row]
        index = cells[column] if labelled else -1
        if type(index) is not int:
            raise SlimError(
                f"{source}: row {row} of column {column!r} holds {index!r}, not a class index; choose a column of "
                "integers with --label-column"
            )
        return replace(read_record(cells, table.features), class_index=index, name=f"{source}: row {row}")

    return len(table), read


def _folder(
    path: Path, labels: str | None, classes: str | None, labelled: bool
) -> tuple[int, Callable[[int], Record]]:
    files = [file for file in visible_files(path) if _is_picture(file)]
    places = [file.relative_to(path) for file in files]
    if not labelled:
        indices = [-1] * len(files)
    elif labels is not None:
        indices = _indices_by_file(places, labels)
    else:
        indices = _indices_by_folder(places, classes)
    return len(files), lambda row: Record(files[row].read_bytes(), indices[row], name=str(files[row]))


def _indices_by_file(places: Sequence[Path], labels: str) -> list[int]:
    """Class indices by a text file: a line each of file name and index, separated by a comma, tab or space."""
    by_name: dict[str, int] = {}
    for number, line in enumerate(_lines(labels), 1):
        if match := re.fullmatch(r"\s*(.*[^\s,])[\s,]+(-?\d+)\s*", line):
            by_name[match[1]] = int(match[2])
        elif number > 1:  # the first line may be a heading
            raise SlimError(f"{labels}: line {number} is {line!r}; write 'file name, class index'")
    if not by_name:
        raise SlimError(f"{labels}: no line 'file name, class index' in it")
    indices = [by_name.get(place.as_posix(), by_name.get(place.name)) for place in places]
    known = [index for index in indices if index is not None]
    if len(known) < len(places):
        first = places[indices.index(None)].as_posix()
        raise SlimError(
            f"{labels}: no label for {len(places) - len(known)} of {len(places)} photos, the first is {first}"
        )
    return known


def _indices_by_folder(places: Sequence[Path], classes: str | None) -> list[int]:
    """Class indices by the names of sub-folders: numbers, or lines of the text file ``classes``."""
    names = [] if classes is None else [line.strip() for line in _lines(classes)]
    if classes is not None and len(set(names)) < 2:
        raise SlimError(f"{classes}: write the name of a class on each line, class 0 first")
    numbers = {name: number for number, name in enumerate(names)}
    indices = []
    for place in places:
        name = place.parts[0] if len(place.parts) > 1 else ""
        if name not in numbers and (numbers or not name.isdecimal()):
            raise SlimError(
                f"{place}: its class is unknown; sort photos into folders named by class index, or name the folders' classes "
                "in order with --classes FILE, or list photos with --labels FILE"
            )
        indices.append(numbers[name] if numbers else int(name))
    return indices


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
        raise SlimError(f"{path}: cannot be read: {reason}") from error
    return [line for line in text.splitlines() if line.strip()]
