"""Contact sheets: pictures in rows with lines of text under each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

GAP, LINE = 6, 15


@dataclass(frozen=True)
class Tile:
    """A picture [H, W, 3] uint8 and the lines of text under it, black unless ``colours`` says otherwise."""

    pixels: NDArray[np.uint8]
    lines: tuple[str, ...] = ("",)
    colours: tuple[str, ...] = ()


def picture_tiles(pictures: Tensor, lines: str | Sequence[str]) -> list[Tile]:
    """Tiles of pictures [B, 3, H, W] in [-1, 1], each with its line, or all with the same."""
    scaled = pictures.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    pixels = scaled.byte().permute(0, 2, 3, 1).cpu().numpy()
    lines = [lines] * len(pixels) if isinstance(lines, str) else lines
    return [Tile(picture, (line,)) for picture, line in zip(pixels, lines, strict=True)]


def map_tiles(maps: Tensor, size: Sequence[int], line: str) -> list[Tile]:
    """Tiles of maps [B, 1, h, w] in 0..1 as grey, at ``size`` (height, width)."""
    greys = maps.detach().float().clamp(0, 1).mul(255).byte()[:, 0].cpu().numpy()
    images = [Image.fromarray(grey).resize((size[1], size[0]), Image.Resampling.NEAREST) for grey in greys]
    return [Tile(np.asarray(image.convert("RGB")), (line,)) for image in images]


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


def contact_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """The tiles in rows on white; a column is as wide as its widest tile, and text is cut to fit."""
    font = ImageFont.load_default(11)
    columns = max(map(len, rows), default=0)
    widths = [max(row[n].pixels.shape[1] for row in rows if n < len(row)) for n in range(columns)]
    heights = [max(tile.pixels.shape[0] + LINE * len(tile.lines) for tile in row) for row in rows]
    size = (sum(widths) + GAP * (columns + 1), sum(heights) + GAP * (len(rows) + 1))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    y = GAP
    for row, height in zip(rows, heights, strict=True):
        x = GAP
        for tile, width in zip(row, widths, strict=False):
            sheet.paste(Image.fromarray(tile.pixels), (x, y))
            for number, line in enumerate(tile.lines):
                colour = tile.colours[number] if tile.colours else "black"
                place = (x, y + tile.pixels.shape[0] + 1 + number * LINE)
                draw.text(place, _fitted(line, width, font), colour, font)
            x += width + GAP
        y += height + GAP
    return sheet


def _fitted(line: str, width: int, font: Any) -> str:
    cuts = (line, *(f"{line[:end]}…" for end in range(len(line) - 1, 0, -1)))
    return next((cut for cut in cuts if font.getlength(cut) <= width), "…")
