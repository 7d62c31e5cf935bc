"""RoI masks from what annotators drew: a mask picture, or boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: values of a trimap from here up count as object (Oxford-IIIT pets: 255 animal, 127 border)
OBJECT_VALUE = 128


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
