"""Sheets of pictures with a line of text under each: what a run sees before training, and what it makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP, LINE = 6, 15


@dataclass(frozen=True)
class Tile:
    """A picture [H, W, 3] uint8 and the words under it."""

    pixels: NDArray[np.uint8]
    words: str = ""

    @classmethod
    def of(cls, picture: Tensor, words: str = "") -> Tile:
        """A tile of a picture [3, H, W] in [-1, 1]."""
        scaled = picture.detach().float().add(1).mul(127.5).round().clamp(0, 255)
        return cls(scaled.to(torch.uint8).permute(1, 2, 0).cpu().numpy(), words)

    @classmethod
    def heat(cls, values: Tensor, size: tuple[int, int], words: str = "") -> Tile:
        """A tile of a map [h, w] in 0..1 as grey, at ``size`` (width, height)."""
        levels = values.detach().float().clamp(0, 1).mul(255).to(torch.uint8).cpu().numpy()
        grey = Image.fromarray(levels)
        return cls(np.asarray(grey.resize(size, Image.Resampling.NEAREST).convert("RGB")), words)


def overlay(pixels: NDArray[np.uint8], mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A photo [H, W, 3] darkened outside its mask [h, w] in [0, 1], with the mask's 0.5 contour in yellow."""
    height, width = pixels.shape[:2]
    full = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))
    shown = pixels * (0.35 + 0.65 * full[..., None])
    inside = full >= 0.5
    edge = np.zeros_like(inside)
    edge[1:] |= inside[1:] != inside[:-1]
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    shown[edge] = (255, 220, 0)
    return shown.astype(np.uint8)


def sheet(rows: list[list[Tile]]) -> Image.Image:
    """The tiles in rows on white; each column is as wide as its widest tile, words are cut to fit."""
    font = ImageFont.load_default(11)
    columns = max(map(len, rows))
    widths = [max(row[n].pixels.shape[1] for row in rows if n < len(row)) for n in range(columns)]
    heights = [max(tile.pixels.shape[0] for tile in row) + LINE for row in rows]
    picture = Image.new(
        "RGB", (sum(widths) + GAP * (columns + 1), sum(heights) + GAP * (len(rows) + 1)), "white"
    )
    draw = ImageDraw.Draw(picture)
    y = GAP
    for row, height in zip(rows, heights, strict=True):
        x = GAP
        for tile, width in zip(row, widths, strict=False):
            picture.paste(Image.fromarray(tile.pixels), (x, y))
            draw.text((x, y + tile.pixels.shape[0] + 1), _fitted(tile.words, width, font), "black", font)
            x += width + GAP
        y += height + GAP
    return picture


def _fitted(words: str, width: int, font: Any) -> str:
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "…") > width:
        words = words[:-1]
    return words + "…"
