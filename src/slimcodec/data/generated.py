"""Drawn pictures with true masks and labels: something to try a training run on without any data."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

#: what is drawn, by a tag of the embedded vocabulary
SHAPES = ("balloon", "envelope", "obelisk", "honeycomb")
SIDE = 160


def generated_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows ``image`` and ``mask`` (PNG bytes) and ``label`` of ``count`` pictures of 160x160 pixels, a shape on a blurred ground."""
    return [_row(np.random.default_rng([seed, number]), number) for number in range(count)]


def _row(rng: np.random.Generator, number: int) -> dict[str, Any]:
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mask = Image.new("L", (SIDE, SIDE))
    label = SHAPES[number % len(SHAPES)]
    size = int(rng.integers(SIDE // 4, SIDE // 2))
    x, y = (int(v) for v in rng.integers(0, SIDE - size, 2))
    draw = ImageDraw.Draw(mask)
    if label == "balloon":
        draw.ellipse((x, y, x + size, y + size), fill=255)
    elif label == "envelope":
        draw.rectangle((x, y + size // 4, x + size, y + size), fill=255)
    elif label == "obelisk":
        draw.polygon([(x + size // 2, y), (x + size, y + size), (x, y + size)], fill=255)
    else:
        draw.regular_polygon((x + size // 2, y + size // 2, size // 2), 6, fill=255)
    grain = rng.normal(0, 18, (SIDE, SIDE, 3)) + rng.integers(40, 216, 3)
    surface = Image.fromarray(grain.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
    picture.paste(surface, mask=mask)
    return {"image": _png(picture), "mask": _png(mask), "label": label}


def _png(picture: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
