"""A sheet of training photos with their masks and captions, to look at before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slimcodec.training.data import words
from slimcodec.training.run import Run
from slimcodec.training.sheets import Tile, overlay, sheet

PHOTOS, COLUMNS, SIDE = 24, 6, 180


def preview(run: Run, seed: int = 0) -> Path:
    """Writes ``<out>/preview.png`` of some photos of a run as its compressor stage will see them, and returns its path.

    The region of interest is bright and outlined; under each photo stand its caption and where its mask comes from.
    """
    pool: Any = run.materials.photos(run.recipe.compressor.optimisation).pool(0)
    rng = np.random.default_rng(seed)
    tiles: list[Tile] = []
    for row in rng.permutation(len(pool)).tolist():
        photo = pool[row]
        if photo is None:
            continue
        photo = run.materials.with_opinion(row, photo)
        small = Image.fromarray(photo.pixels)
        small.thumbnail((SIDE, SIDE))
        pixels = np.asarray(small)
        source = "no mask"
        if photo.mask is not None:
            pixels = overlay(pixels, photo.mask)
            source = "annotated" if photo.annotated else run.recipe.roi.source
        caption = words(photo, rng, run.recipe.data.templates) or "no caption"
        tiles.append(Tile(pixels, f"{caption} ({source})"))
        if len(tiles) == PHOTOS:
            break
    path = run.folder / "preview.png"
    sheet([tiles[n : n + COLUMNS] for n in range(0, len(tiles), COLUMNS)]).save(path)
    return path
