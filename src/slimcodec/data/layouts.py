"""Annotation files as people have them: COCO's JSON and Pascal VOC's XML, read to one ``Annotation`` a photo."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from slimcodec.data.masks import Annotation, Region
from slimcodec.errors import SlimError


def read_annotations(path: str | Path) -> dict[str, Annotation]:
    """Annotations by file name: of a COCO .json file, or of a folder of Pascal VOC .xml files.

    Raises ``SlimError`` for anything else, and where ``read_coco`` and ``read_voc`` do.
    """
    path = Path(path)
    if path.is_dir():
        return read_voc(path)
    if path.is_file() and path.suffix.lower() == ".json":
        return read_coco(path)
    raise SlimError(f"{path}: no annotations; give a COCO .json file or a folder of Pascal VOC .xml files")


def read_coco(path: str | Path) -> dict[str, Annotation]:
    """Annotations by ``file_name`` of a COCO file: instances, captions, or both (https://cocodataset.org/#format-data).

    Boxes [x, y, width, height], polygons and run lengths (as lists or compressed strings) become pixels of the image.
    Crowds count like other objects: a machine that reads the photo needs them too. Polygons of less than three points cover
    nothing and are left out. Raises ``SlimError`` with the file and the place in it where something is missing or wrong.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SlimError(f"{path}: not a JSON file that can be read ({error})") from error
    place = "its top level"
    try:
        names: dict[Any, str] = {}
        for number, category in enumerate(content.get("categories", [])):
            place = f"categories[{number}]"
            names[category["id"]] = str(category["name"])
        images: dict[Any, tuple[str, tuple[int, int]]] = {}
        for number, image in enumerate(content["images"]):
            place = f"images[{number}]"
            images[image["id"]] = str(image["file_name"]), _size(image["width"], image["height"])
        regions: dict[Any, list[Region]] = {key: [] for key in images}
        captions: dict[Any, list[str]] = {key: [] for key in images}
        place = "its top level"
        for number, entry in enumerate(content["annotations"]):
            place = f"annotations[{number}]"
            key = entry["image_id"]
            if key not in images:
                raise ValueError(f"image_id {key!r} is not among the images")
            if "caption" in entry:
                captions[key].append(str(entry["caption"]).strip())
            else:
                regions[key].append(_coco_region(entry, names, images[key][1]))
    except KeyError as error:
        raise SlimError(f"{path}: {place} has no {error.args[0]!r}, which COCO annotations need") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise SlimError(f"{path}: {place} is not as in COCO annotations: {error}") from error
    return {
        name: Annotation(size, tuple(regions[key]), tuple(captions[key]))
        for key, (name, size) in images.items()
    }


def counts_from_string(text: str) -> list[int]:
    """COCO's compressed run lengths as numbers: five bits a character, low bits first, differences from the third on.

    Raises ``ValueError`` where a character is outside "0".."o" or the text ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"counts hold the character {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        # the count before last is of the same kind, 0 or 1, so the difference is small
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("counts end within a number")
    return counts


def _coco_region(entry: Mapping[str, Any], names: Mapping[Any, str], size: tuple[int, int]) -> Region:
    if entry["category_id"] not in names:
        raise ValueError(f"category_id {entry['category_id']!r} is not among the categories")
    box = [float(value) for value in entry["bbox"]]
    if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        raise ValueError(f"bbox is {entry['bbox']!r}, not [x, y, width, height]")
    x, y, width, height = box
    polygons: list[NDArray[np.float32]] = []
    runs = None
    segmentation = entry.get("segmentation") or []
    if isinstance(segmentation, dict):
        runs = _runs(segmentation, size)
    else:
        for corners in segmentation:
            values = np.array(corners, np.float32)
            if values.ndim != 1 or len(values) % 2 or not np.isfinite(values).all():
                raise ValueError("segmentation has a polygon that is not [x, y, x, y, ...]")
            if len(values) >= 6:
                polygons.append(values.reshape(-1, 2))
    return Region((x, y, x + width, y + height), names[entry["category_id"]], tuple(polygons), runs)


def _runs(segmentation: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.int64]:
    height, width = segmentation["size"]
    if (width, height) != size:
        raise ValueError(
            f"segmentation has size {width} x {height} (width x height), the image {size[0]} x {size[1]}"
        )
    counts = segmentation["counts"]
    runs = np.array(counts_from_string(counts) if isinstance(counts, str) else counts, np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != width * height:
        raise ValueError(f"segmentation has counts that do not add up to {width} x {height} pixels")
    return runs


def read_voc(folder: str | Path) -> dict[str, Annotation]:
    """Annotations by file name of a folder of Pascal VOC XML files, or of its subfolder ``Annotations``.

    The name is ``<filename>``, or the XML file's own without its ending where that is missing. Boxes are 1-based with both
    ends inside (Everingham et al. 2010), so they become (xmin - 1, ymin - 1, xmax, ymax). Difficult objects count like others.
    Raises ``SlimError`` with the file and the element where something is missing or wrong, where two files name one photo,
    and for a document type declaration: annotations need none, and entities declared there can fill the memory.
    """
    folder = Path(folder)
    inner = folder / "Annotations"
    files = sorted((inner if inner.is_dir() else folder).glob("*.xml"))
    if not files:
        raise SlimError(f"{folder}: holds no .xml file; give the folder of Pascal VOC annotations")
    found: dict[str, Annotation] = {}
    for path in files:
        name, annotation = _voc_file(path)
        if name in found:
            raise SlimError(
                f"{path}: filename is {name!r}, as in another file of this folder; name each photo once"
            )
        found[name] = annotation
    return found


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a document type declaration; remove it")


def _voc_file(path: Path) -> tuple[str, Annotation]:
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())
        root = ElementTree.fromstring(path.read_bytes(), parser)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise SlimError(f"{path}: not an XML file that can be read ({error})") from error
    place = root.tag
    try:
        size = _size(_number(root, "size/width"), _number(root, "size/height"))
        regions = []
        for number, entry in enumerate(root.findall("object")):
            place = f"object[{number}]"
            x0, y0, x1, y1 = (_number(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
            if x1 < x0 or y1 < y0:
                raise ValueError(f"bndbox ends before it begins: {x0:g}, {y0:g} to {x1:g}, {y1:g}")
            regions.append(Region((x0 - 1, y0 - 1, x1, y1), _text(entry, "name")))
    except ValueError as error:
        raise SlimError(f"{path}: {place} is not as in Pascal VOC annotations: {error}") from error
    return (root.findtext("filename") or "").strip() or path.stem, Annotation(size, tuple(regions))


def _text(element: ElementTree.Element, key: str) -> str:
    text = (element.findtext(key) or "").strip()
    if not text:
        raise ValueError(f"{key} is missing")
    return text


def _number(element: ElementTree.Element, key: str) -> float:
    text = _text(element, key)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key} is {text!r}, not a number")
    return value


def _size(width: float, height: float) -> tuple[int, int]:
    if int(width) != width or int(height) != height or min(width, height) < 1:
        raise ValueError(f"width and height are {width!r} and {height!r}, not numbers of pixels")
    return int(width), int(height)
