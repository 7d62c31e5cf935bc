"""RoI masks: from mask pictures, boxes, COCO's JSON files, Pascal VOC's XML files, and segmentation models of transformers."""

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
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from slimcodec.errors import SlimError
from slimcodec.images import Pixels
from slimcodec.models.pretrained import hub
from slimcodec.models.pretrained.part_files import read_json

Mask = NDArray[np.float32]
#: polygons are drawn this much finer than the mask, as long as the drawing stays below ``FINEST_SIDE`` pixels a side
FINER, FINEST_SIDE = 4, 4096
#: segmentation models that answer with queries, a class and a mask each, in place of a class for each pixel
QUERY_MODELS = ("maskformer", "mask2former")


def mask_from_boxes(boxes: NDArray[np.float64] | Sequence[Sequence[float]], size: tuple[int, int]) -> Mask:
    """The union of boxes [x0, y0, x1, y1] in pixels as [H, W] float32, 0 or 1; ``size`` is (width, height)."""
    width, height = size
    mask = np.zeros((height, width), np.float32)
    for x0, y0, x1, y1 in np.maximum(boxes, 0.0).tolist():
        mask[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)] = 1.0
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
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (region.box for region in self.regions)]
        return self.regions[areas.index(max(areas))].label if areas else None

    def mask(self, size: tuple[int, int]) -> Mask | None:
        """The union of all objects as [H, W] float32 in [0, 1] at ``size`` (width, height), or None without objects.

        An object is its outline where one was drawn, else its box. ``size`` may be another: the photo was resized.
        """
        if not self.regions:
            return None
        scale = np.array([size[0] / self.size[0], size[1] / self.size[1]])
        boxes = [region.box for region in self.regions if not region.polygons and region.runs is None]
        polygons = [polygon * scale for region in self.regions for polygon in region.polygons]
        masks = [mask_from_boxes(np.array(boxes).reshape(-1, 4) * np.tile(scale, 2), size)]
        if polygons:
            masks.append(mask_from_polygons(polygons, size))
        masks += [mask_from_runs(region.runs, size) for region in self.regions if region.runs is not None]
        return np.asarray(np.maximum.reduce(masks))


def read_annotations(path: str | Path) -> dict[str, Annotation]:
    """Annotations by file name as of ``read_coco`` for a .json file, of ``read_voc`` for a folder; ``SlimError`` for others."""
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
    if any(values.ndim != 1 or values.size % 2 or not np.isfinite(values).all() for values in polygons):
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
        raise ValueError(f"segmentation has counts {counts[:20]!r}, no compressed run lengths of COCO")
    runs: dict[str, Any] = {"size": [height, width], "counts": counts.encode()}
    coco.decode(runs)
    return runs


def read_voc(folder: Path) -> dict[str, Annotation]:
    """Annotations by file name of a folder of Pascal VOC XML files, or of its subfolder ``Annotations``.

    The name is ``<filename>``, or the XML file's own without its ending where that is missing. Boxes are 1-based with both
    ends inside (Everingham et al. 2010), so they become (xmin - 1, ymin - 1, xmax, ymax). Difficult objects count like others.
    Raises ``SlimError`` with the file and the element where something is missing or wrong, where two files name one photo,
    and for a document type declaration, whose entities can fill the memory.
    """
    files = sorted(folder.glob("Annotations/*.xml")) or sorted(folder.glob("*.xml"))
    if not files:
        raise SlimError(f"{folder}: holds no .xml file; give the folder of Pascal VOC annotations")
    annotations: dict[str, Annotation] = {}
    for path in files:
        name, annotation = _voc_file(path)
        if name in annotations:
            raise SlimError(f"{path}: filename is {name!r}, as in another file; name each photo once")
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


def class_numbers(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Numbers of the classes to look for: those named in ``classes``, or all but a class 0 called background.

    Case does not count, and of a name like "person, individual" each part will do. Raises ``SlimError`` with the known names
    where one is unknown, or where no class is named and the model has no background.
    """
    known = f"the model knows {', '.join(names) or 'numbered labels only'}"
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        for alias in (name, *name.split(",")):
            numbers.setdefault(alias.strip().lower(), number)
    if not classes:
        if numbers.get("background") != 0:
            raise SlimError(f"no class is called background: name the classes to look for; {known}")
        return list(range(1, len(names)))
    if unknown := [name for name in classes if name.strip().lower() not in numbers]:
        raise SlimError(f"unknown class {', '.join(map(repr, unknown))}; {known}")
    return sorted({numbers[name.strip().lower()] for name in classes})


def query_probabilities(classes: Tensor, masks: Tensor) -> Tensor:
    """Probability of each class at each pixel [B, K, h, w] by queries' logits: classes [B, Q, K + 1], masks [B, Q, h, w].

    The last class of a query is "nothing". ``sum_q softmax(classes)_qk sigmoid(masks)_q`` (Cheng et al. 2021, section 3.4)
    divided by its sum over k.
    """
    scores = torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    return scores / scores.sum(1, keepdim=True).clamp(min=1e-6)


class Segmenter:
    """Finds the pixels of wanted classes with a semantic (SegFormer and kin) or query (MaskFormer, Mask2Former) model.

    ``source`` is a folder or hub id, ``classes`` and errors are as in ``class_numbers``. The whole photo is seen, scaled.
    """

    def __init__(self, source: str, classes: Sequence[str] = (), device: str = "cpu") -> None:
        from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

        folder = hub.pretrained_folder(source)
        self.queries = read_json(folder / "config.json").get("model_type") in QUERY_MODELS
        kind = AutoModelForUniversalSegmentation if self.queries else AutoModelForSemanticSegmentation
        self.model = hub.load_model(kind, folder, device)
        self.preprocessing = hub.read_preprocessing(folder)
        try:
            self.classes = class_numbers(hub.class_names(self.model), classes)
        except SlimError as error:
            raise SlimError(f"{source}: {error}") from error
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, pixels: Pixels) -> Mask:
        """Probability that each pixel is of a wanted class, [H, W] float32 in [0, 1], for a photo [H, W, 3] uint8."""
        height, width = pixels.shape[:2]
        outputs = self.model(pixel_values=self.preprocessing.network_input(pixels).to(self.device))
        if self.queries:
            probabilities = query_probabilities(outputs.class_queries_logits, outputs.masks_queries_logits)
        else:
            probabilities = outputs.logits.softmax(1)
        share = probabilities[:, self.classes].sum(1, keepdim=True)
        mask = F.interpolate(share, (height, width), mode="bilinear")[0, 0].clamp(0, 1)
        return np.asarray(mask.float().cpu())
