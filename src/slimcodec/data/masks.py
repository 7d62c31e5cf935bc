"""RoI masks from what annotators drew: mask pictures, boxes, COCO's JSON files and Pascal VOC's XML files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimcodec.errors import SlimError

Mask = NDArray[np.float32]
#: values of a trimap from here up count as object (Oxford-IIIT pets: 255 animal, 127 border)
OBJECT_VALUE = 128
#: polygons are drawn this much finer than the mask, as long as the drawing stays below ``FINEST_SIDE`` pixels a side
FINER, FINEST_SIDE = 4, 4096


def mask_from_picture(mask: Image.Image, size: tuple[int, int]) -> Mask:
    """The object part of a grey mask picture as [H, W] float32, 0 or 1, at ``size`` (width, height)."""
    scaled = mask.convert("L").resize(size, Image.Resampling.NEAREST)
    return (np.asarray(scaled) >= OBJECT_VALUE).astype(np.float32)


def mask_from_boxes(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> Mask:
    """The union of boxes [x0, y0, x1, y1] in pixels as [H, W] float32, 0 or 1; ``size`` is (width, height)."""
    width, height = size
    mask = np.zeros((height, width), np.float32)
    for x0, y0, x1, y1 in boxes:
        rows = slice(max(int(np.floor(y0)), 0), max(int(np.ceil(y1)), 0))
        mask[rows, max(int(np.floor(x0)), 0) : max(int(np.ceil(x1)), 0)] = 1.0
    return mask


def mask_from_polygons(polygons: Sequence[NDArray[np.floating]], size: tuple[int, int]) -> Mask:
    """The union of polygons as [H, W] float32: the share of each pixel, 0 to 1, that they cover.

    A polygon is [points, 2] of x and y in pixels, pixel k spanning k to k + 1; ``size`` is (width, height).
    """
    from pycocotools import mask as coco

    width, height = size
    finer = max(1, min(FINER, FINEST_SIDE // max(size)))
    corners = [(polygon.astype(np.float64) * finer).ravel().tolist() for polygon in polygons]
    canvas = coco.decode(coco.merge(coco.frPyObjects(corners, height * finer, width * finer)))
    # a sum of slices is many times faster than one over two axes
    rows = np.add.reduce([canvas[k::finer] for k in range(finer)], dtype=np.uint8)
    covered = np.add.reduce([rows[:, k::finer] for k in range(finer)], dtype=np.uint8)
    return covered.astype(np.float32) / np.float32(finer**2)


def mask_from_runs(runs: dict[str, Any], size: tuple[int, int]) -> Mask:
    """COCO's compressed run lengths ``{"size": [height, width], "counts": bytes}`` as [H, W] float32 at ``size`` (width, height)."""
    from pycocotools import mask as coco

    drawn = Image.fromarray(coco.decode(runs) * np.uint8(255))
    return np.asarray(drawn.resize(size, Image.Resampling.BOX), np.float32) / np.float32(255)


@dataclass(frozen=True, eq=False)
class Region:
    """One annotated object: its box (x0, y0, x1, y1) in pixels, its class name and, where drawn, its outline.

    The outline is ``polygons`` ([points, 2] each) or ``runs`` (see ``mask_from_runs``); without one the box stands for it.
    """

    box: tuple[float, float, float, float]
    label: str
    polygons: tuple[Mask, ...] = ()
    runs: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Annotation:
    """What is known of one photo; boxes and outlines are in pixels of ``size`` (width, height)."""

    size: tuple[int, int]
    regions: tuple[Region, ...] = ()
    captions: tuple[str, ...] = ()

    @property
    def label(self) -> str | None:
        """The class of the object with the largest box, or None where there is no object."""
        if not self.regions:
            return None
        return max(self.regions, key=lambda r: (r.box[2] - r.box[0]) * (r.box[3] - r.box[1])).label

    def mask(self, size: tuple[int, int]) -> Mask | None:
        """The union of all objects as [H, W] float32 in [0, 1] at ``size`` (width, height), or None without objects.

        An object is its outline where one was drawn, else its box. ``size`` may differ from that of the annotation: the
        photo is taken to be the same one, resized.
        """
        if not self.regions:
            return None
        scale = np.array([size[0] / self.size[0], size[1] / self.size[1]])
        boxes = [region.box for region in self.regions if not region.polygons and region.runs is None]
        polygons = [polygon * scale for region in self.regions for polygon in region.polygons]
        masks = [mask_from_boxes((np.array(boxes).reshape(-1, 4) * np.tile(scale, 2)).tolist(), size)]
        if polygons:
            masks.append(mask_from_polygons(polygons, size))
        masks += [mask_from_runs(region.runs, size) for region in self.regions if region.runs is not None]
        mask: Mask = np.maximum.reduce(masks)
        return mask


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


def read_coco(path: Path) -> dict[str, Annotation]:
    """Annotations by ``file_name`` of a COCO file: instances, captions, or both (https://cocodataset.org/#format-data).

    Crowds count like other objects: a machine that reads the photo needs them too. Polygons of less than three points cover
    nothing and are left out. Raises ``SlimError`` with the file and the place in it where something is missing or wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SlimError(f"{path}: not a JSON file that can be read ({error})") from error
    place = "its top level"
    classes: dict[Any, str] = {}
    images: dict[Any, tuple[str, tuple[int, int], list[Region], list[str]]] = {}
    try:
        for number, category in enumerate(content.get("categories", [])):
            place = f"categories[{number}]"
            classes[category["id"]] = str(category["name"])
        for number, image in enumerate(content["images"]):
            place = f"images[{number}]"
            images[image["id"]] = str(image["file_name"]), _size(image["width"], image["height"]), [], []
        place = "its top level"
        for number, entry in enumerate(content["annotations"]):
            place = f"annotations[{number}]"
            key = entry["image_id"]
            if key not in images:
                raise ValueError(f"image_id {key!r} is not among the images")
            _, size, regions, captions = images[key]
            if "caption" in entry:
                captions.append(str(entry["caption"]).strip())
            else:
                regions.append(_coco_region(entry, classes, size))
    except KeyError as error:
        raise SlimError(f"{path}: {place} has no {error.args[0]!r}, which COCO annotations need") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise SlimError(f"{path}: {place} is not as in COCO annotations: {error}") from error
    return {
        name: Annotation(size, tuple(regions), tuple(captions))
        for name, size, regions, captions in images.values()
    }


def _coco_region(entry: Mapping[str, Any], classes: Mapping[Any, str], size: tuple[int, int]) -> Region:
    if entry["category_id"] not in classes:
        raise ValueError(f"category_id {entry['category_id']!r} is not among the categories")
    label, box = classes[entry["category_id"]], np.array(entry["bbox"], np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or box[2:].min() < 0:
        raise ValueError(f"bbox is {entry['bbox']!r}, not [x, y, width, height]")
    x, y, width, height = box.tolist()
    corners = (x, y, x + width, y + height)
    segmentation = entry.get("segmentation") or []
    if isinstance(segmentation, dict):
        return Region(corners, label, runs=_runs(segmentation, size))
    polygons = [np.array(values, np.float32) for values in segmentation]
    if any(values.ndim != 1 or len(values) % 2 or not np.isfinite(values).all() for values in polygons):
        raise ValueError("segmentation has a polygon that is not [x, y, x, y, ...]")
    return Region(corners, label, tuple(values.reshape(-1, 2) for values in polygons if len(values) >= 6))


def _runs(segmentation: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths, given as a list or as COCO's string, in the compressed form; ``ValueError`` for wrong ones."""
    from pycocotools import mask as coco

    height, width = segmentation["size"]
    if (width, height) != size:
        raise ValueError(f"segmentation has size {[height, width]}, the image {[size[1], size[0]]}")
    counts = segmentation["counts"]
    if not isinstance(counts, str):
        if min(counts, default=0) < 0 or sum(counts) != width * height:
            raise ValueError(f"segmentation has counts that do not add up to {width} x {height} pixels")
        return dict(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    # five bits a character, the sixth says that the number goes on: pycocotools reads on past an open end
    if not re.fullmatch(r"([P-o]*[0-O])+", counts):
        raise ValueError(
            f"segmentation has counts {counts[:20]!r}, which are not COCO's compressed run lengths"
        )
    runs: dict[str, Any] = {"size": [height, width], "counts": counts.encode()}
    coco.decode(runs)
    return runs


def read_voc(folder: Path) -> dict[str, Annotation]:
    """Annotations by file name of a folder of Pascal VOC XML files, or of its subfolder ``Annotations``.

    The name is ``<filename>``, or the XML file's own without its ending where that is missing. Boxes are 1-based with both
    ends inside (Everingham et al. 2010), so they become (xmin - 1, ymin - 1, xmax, ymax). Difficult objects count like others.
    Raises ``SlimError`` with the file and the element where something is missing or wrong, where two files name one photo,
    and for a document type declaration: annotations need none, and entities declared there can fill the memory.
    """
    inner = folder / "Annotations"
    files = sorted((inner if inner.is_dir() else folder).glob("*.xml"))
    if not files:
        raise SlimError(f"{folder}: holds no .xml file; give the folder of Pascal VOC annotations")
    annotations: dict[str, Annotation] = {}
    for path in files:
        name, annotation = _voc_file(path)
        if name in annotations:
            raise SlimError(
                f"{path}: filename is {name!r}, as in another file of this folder; name each photo once"
            )
        annotations[name] = annotation
    return annotations


def _voc_file(path: Path) -> tuple[str, Annotation]:
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(path.read_bytes(), forbid_dtd=True)
    except (OSError, ValueError, LookupError, ParseError) as error:
        raise SlimError(f"{path}: not an XML file that can be read ({error})") from error
    place, regions = root.tag, []
    try:
        size = _size(_number(root, "size/width"), _number(root, "size/height"))
        for number, entry in enumerate(root.findall("object")):
            place = f"object[{number}]"
            x0, y0, x1, y1 = (_number(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
            if x1 < x0 or y1 < y0:
                raise ValueError(f"bndbox ends before it begins: {x0:g}, {y0:g} to {x1:g}, {y1:g}")
            regions.append(Region((x0 - 1, y0 - 1, x1, y1), _text(entry, "name")))
    except ValueError as error:
        raise SlimError(f"{path}: {place} is not as in Pascal VOC annotations: {error}") from error
    return (root.findtext("filename") or "").strip() or path.stem, Annotation(size, tuple(regions))


def _text(element: Element, key: str) -> str:
    text = (element.findtext(key) or "").strip()
    if not text:
        raise ValueError(f"{key} is missing")
    return text


def _number(element: Element, key: str) -> float:
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
