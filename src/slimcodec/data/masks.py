"""RoI masks from what annotators drew: a mask picture, boxes, polygons or run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: values of a trimap from here up count as object (Oxford-IIIT pets: 255 animal, 127 border)
OBJECT_VALUE = 128
#: polygons are drawn this much finer than the mask, as long as the drawing stays below ``FINEST_SIDE`` pixels a side
FINER, FINEST_SIDE = 4, 4096


def mask_from_picture(mask: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """The object part of a grey mask picture as [H, W] float32, 0 or 1, at ``size`` (width, height)."""
    scaled = mask.convert("L").resize(size, Image.Resampling.NEAREST)
    return (np.asarray(scaled) >= OBJECT_VALUE).astype(np.float32)


def mask_from_boxes(boxes: Sequence[Sequence[float]], size: tuple[int, int]) -> NDArray[np.float32]:
    """The union of boxes [x0, y0, x1, y1] in pixels as [H, W] float32, 0 or 1; ``size`` is (width, height)."""
    width, height = size
    mask = np.zeros((height, width), np.float32)
    for x0, y0, x1, y1 in boxes:
        rows = slice(max(int(np.floor(y0)), 0), max(int(np.ceil(y1)), 0))
        mask[rows, max(int(np.floor(x0)), 0) : max(int(np.ceil(x1)), 0)] = 1.0
    return mask


def mask_from_polygons(
    polygons: Sequence[NDArray[np.floating]], size: tuple[int, int]
) -> NDArray[np.float32]:
    """The union of polygons as [H, W] float32: the share of each pixel, 0 to 1, that they cover.

    A polygon is [points, 2] of x and y in pixels, pixel k spanning k to k + 1; ``size`` is (width, height).
    """
    width, height = size
    finer = max(1, min(FINER, FINEST_SIDE // max(size)))
    canvas = np.zeros((height * finer, width * finer), np.uint8)
    for polygon in polygons:
        corners = polygon.astype(np.float64) * finer
        # only the polygon's surroundings are worked on, since a photo may have a hundred small ones
        start = np.clip(np.floor(corners.min(0)), 0, canvas.shape[::-1]).astype(int)
        end = np.clip(np.ceil(corners.max(0)), 0, canvas.shape[::-1]).astype(int)
        part = canvas[start[1] : end[1], start[0] : end[0]]
        part |= _filled(corners - start, part.shape)
    # a sum of slices is many times faster than one over two axes
    rows = np.add.reduce([canvas[k::finer] for k in range(finer)], dtype=np.uint8)
    covered = np.add.reduce([rows[:, k::finer] for k in range(finer)], dtype=np.uint8)
    return covered.astype(np.float32) / np.float32(finer**2)


def _filled(polygon: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The pixels, 0 or 1, whose middles lie inside a polygon by the even-odd rule.

    Pillow rounds corners down and draws the outline too, one pixel more than the polygon covers.
    """
    height, width = shape
    (x0, y0), (x1, y1) = polygon.T, np.roll(polygon, -1, 0).T
    # each edge crosses the middles of the rows from low to high, once each
    low, high = np.clip(np.ceil(np.sort([y0, y1], 0) - 0.5), 0, height).astype(int)
    lengths = high - low
    edge = np.repeat(np.arange(len(polygon)), lengths)
    row = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths - low, lengths)
    crossing = x0[edge] + (row + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)
    flips = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(flips, (row, column), 1)
    inside: NDArray[np.uint8] = np.bitwise_xor.accumulate(flips, 1)[:, :width]
    return inside


def mask_from_runs(
    counts: NDArray[np.int64], drawn: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.float32]:
    """COCO's run lengths as [H, W] float32 in [0, 1] at ``size`` (width, height).

    ``counts`` are the lengths of runs of 0 and 1 in turn, down the columns of a mask of the size ``drawn``.
    """
    width, height = drawn
    bits = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8)
    mask = Image.fromarray(np.ascontiguousarray(bits.reshape(width, height).T) * np.uint8(255))
    return np.asarray(mask.resize(size, Image.Resampling.BOX), np.float32) / np.float32(255)


@dataclass(frozen=True, eq=False)
class Region:
    """One annotated object: its box (x0, y0, x1, y1) in pixels, its class name and, where drawn, its outline.

    The outline is ``polygons`` ([points, 2] each) or ``runs`` (see ``mask_from_runs``); without one the box stands for it.
    """

    box: tuple[float, float, float, float]
    label: str
    polygons: tuple[NDArray[np.float32], ...] = ()
    runs: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class Annotation:
    """What is known of one photo; boxes and outlines are in pixels of ``size`` (width, height)."""

    size: tuple[int, int]
    regions: tuple[Region, ...] = ()
    captions: tuple[str, ...] = ()

    @property
    def boxes(self) -> list[tuple[float, float, float, float]]:
        """The objects' boxes (x0, y0, x1, y1)."""
        return [region.box for region in self.regions]

    @property
    def box_labels(self) -> list[str]:
        """The objects' class names, in the order of the boxes."""
        return [region.label for region in self.regions]

    @property
    def label(self) -> str | None:
        """The class of the object with the largest box, or None where there is no object."""
        if not self.regions:
            return None
        return max(self.regions, key=lambda r: (r.box[2] - r.box[0]) * (r.box[3] - r.box[1])).label

    def mask(self, size: tuple[int, int]) -> NDArray[np.float32] | None:
        """The union of all objects as [H, W] float32 in [0, 1] at ``size`` (width, height), or None without objects.

        An object is its outline where one was drawn, else its box. ``size`` may differ from that of the annotation: the
        photo is taken to be the same one, resized.
        """
        if not self.regions:
            return None
        scale = np.array([size[0] / self.size[0], size[1] / self.size[1]])
        outlined = [region for region in self.regions if region.polygons or region.runs is not None]
        boxes = [region.box for region in self.regions if not region.polygons and region.runs is None]
        polygons = [polygon * scale for region in outlined for polygon in region.polygons]
        mask = mask_from_boxes((np.array(boxes).reshape(-1, 4) * np.tile(scale, 2)).tolist(), size)
        if polygons:
            mask = np.maximum(mask, mask_from_polygons(polygons, size))
        for region in outlined:
            if region.runs is not None:
                mask = np.maximum(mask, mask_from_runs(region.runs, self.size, size))
        return mask
