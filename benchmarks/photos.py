"""Photos for the benchmarks: a folder, parquet files with an ``image`` column, or scikit-image's own."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def photo_options(description: str | None, count: int, out: Path | None = None) -> argparse.ArgumentParser:
    """A parser that knows which photos are measured, and where the report goes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--photos", type=Path, help="folder or parquet file of photos (default: scikit-image's four)"
    )
    parser.add_argument("--count", type=int, default=count, help=f"photos at most (default: {count})")
    parser.add_argument("-o", "--out", type=Path, default=out, help="JSON file to write")
    return parser


def photos(source: Path | None, count: int, side: int = 256) -> list[Image.Image]:
    """The first ``count`` photos of a source, short side scaled to ``side`` and centre-cropped square, RGB."""
    found: list[Image.Image] = []
    for image in scikit_photos() if source is None else _read(source):
        found.append(square(image, side))
        if len(found) == count:
            break
    return found


def square(image: Image.Image, side: int) -> Image.Image:
    """The centre of a photo, RGB, its short side scaled to ``side``."""
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    scaled = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return scaled.crop((left, top, left + side, top + side))


def scikit_photos() -> Iterator[Image.Image]:
    """Scikit-image's photos at their own size, RGB."""
    from skimage import data

    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        yield Image.fromarray(np.asarray(getattr(data, name)()))


def _read(source: Path) -> Iterator[Image.Image]:
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    for path in files:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            for row in parquet.read_table(path, columns=["image"])["image"]:
                yield Image.open(io.BytesIO(row.as_py()["bytes"]))
        else:
            yield Image.open(path)
