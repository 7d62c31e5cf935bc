"""Pictures of pictures: contact sheets with lines of text, masks over photos, and maps of where the bits went."""

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
#: colours of few bits to many, dark to light, so that their order can be read in grey as well
HEAT = ((0, 0, 30), (90, 20, 110), (190, 55, 85), (245, 125, 20), (252, 255, 165))
#: contour of a mask
EDGE = (255, 220, 0)
#: share of the colours over the grey photo, and the side up to which a bit map is enlarged
HEAT_SHARE, BIT_MAP_SIDE = 0.6, 256


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
    shown[_edge(full >= 0.5)] = EDGE
    return shown.astype(np.uint8)


def _edge(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels [H, W] on the contour of a region."""
    edge = np.zeros_like(inside)
    edge[1:] |= inside[1:] != inside[:-1]
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    return edge


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


def heat_map(
    pixels: NDArray[np.uint8],
    bits: NDArray[np.float32],
    cell: int,
    region: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Heat colours of ``bits`` over the grey photo [H, W, 3] uint8, with the contour of a region in white.

    ``bits``, at least 0, and ``region`` have a value for ``cell`` x ``cell`` pixels; their last row and column may reach beyond
    the photo.
    """

    def full(values: NDArray[Any]) -> NDArray[Any]:
        return values.repeat(cell, 0).repeat(cell, 1)[: pixels.shape[0], : pixels.shape[1]]

    most = float(bits.max())
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)[:, :, None]
    drawn = grey * (1 - HEAT_SHARE) + full(_heat(bits / most if most > 0 else bits)) * HEAT_SHARE
    if region is not None:
        drawn[_edge(full(region))] = 255
    return np.rint(drawn).astype(np.uint8)


def _heat(shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """The colours [..., 3] of shares of the most bits."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(shares, stops, channel) for channel in zip(*HEAT, strict=True)]
    return np.stack(channels, axis=-1).astype(np.float32)


def draw_bits(pixels: NDArray[np.uint8], bits: NDArray[np.float32], cell: int) -> Image.Image:
    """The ``heat_map`` of a photo, RGB, with a scale below it; a small photo is enlarged by a whole factor."""
    height, width = pixels.shape[:2]
    factor = max(1, BIT_MAP_SIDE // max(width, height))
    size = (width * factor, height * factor)
    drawn = Image.fromarray(heat_map(pixels, bits, cell)).resize(size, Image.Resampling.NEAREST)

    margin, bar, font = 8, 10, ImageFont.load_default()
    canvas = Image.new("RGB", (max(drawn.width, BIT_MAP_SIDE), drawn.height + 44), "white")
    canvas.paste(drawn, (0, 0))
    scale = np.rint(_heat(np.linspace(0, 1, canvas.width - 2 * margin, dtype=np.float32))).astype(np.uint8)
    canvas.paste(Image.fromarray(scale[None].repeat(bar, 0)), (margin, drawn.height + margin))
    draw, y = ImageDraw.Draw(canvas), drawn.height + margin + bar + 4
    draw.text((margin, y), "0", "black", font)
    draw.text(
        (canvas.width - margin, y), f"{bits.max():.1f} bits in {cell}x{cell} px", "black", font, anchor="ra"
    )
    return canvas
