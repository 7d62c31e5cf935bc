"""The real photos of the tests: scikit-image's own, and crops of them at any size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image
from skimage import data

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


@lru_cache
def photo(name: str, width: int = 256, height: int = 256) -> Image.Image:
    """A photo squeezed to a size; the same every time."""
    original = Image.fromarray(np.asarray(getattr(data, name)()))
    return original.resize((width, height), Image.Resampling.LANCZOS)


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio of two pictures of one size, dB."""
    error = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(10 * np.log10(255**2 / max(float((error**2).mean()), 1e-9)))
