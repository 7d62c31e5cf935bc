"""Drawn pictures that are hard on a codec made for photos, by kind; the same every time.

``benchmarks/stress.py`` measures all of them, and tests take some by name.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

#: side of every picture, pixels
SIDE = 192
Picture = NDArray[np.uint8]
#: levels 0..1 of a grey picture [SIDE, SIDE], or of a coloured one [SIDE, SIDE, 3]
Levels = NDArray[np.float64]
Colour = tuple[int, int, int]
BLACK, WHITE, RED, GREEN, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
YELLOW, CYAN, MAGENTA = (255, 255, 0), (0, 255, 255), (255, 0, 255)
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64)
WORDS = "The quick brown fox jumps over 13 lazy dogs; 42 jars of liquid glue & wax, (pack my box)."


def drawn() -> dict[str, Picture]:
    """All pictures [SIDE, SIDE, 3] by "kind/variant"."""
    return {f"{kind}/{name}": picture for kind, draw in KINDS.items() for name, picture in draw()}


def stripes(angle: float, period: float, contrast: float = 1.0, square: bool = True) -> Levels:
    """Stripes of a period in pixels across an angle in degrees, hard or sinusoidal."""
    turned = np.deg2rad(angle)
    phase = (COLUMNS * np.cos(turned) + ROWS * np.sin(turned)) / period
    # a little off the zero crossing, so that rounding decides nothing
    wave = np.sin(2 * np.pi * (phase + 1e-3))
    return 0.5 + 0.5 * contrast * (np.sign(wave) if square else wave)


def _picture(levels: Levels, low: Colour = BLACK, high: Colour = WHITE) -> Picture:
    """Levels as pixels; grey ones run between two colours."""
    if levels.ndim == 2:
        levels = levels[..., None]
    mixed = np.array(low) + levels * (np.array(high, np.float64) - low)
    return mixed.round().clip(0, 255).astype(np.uint8)


Drawn = Iterator[tuple[str, Picture]]


def _stripes() -> Drawn:
    for angle, period in product((0, 22.5, 45, 60, 90), (2, 3, 4, 6, 8, 16)):
        yield f"{angle:g}-degrees-period-{period}", _picture(stripes(angle, period))
    for angle, period in product((0, 45), (2, 4, 8)):
        yield f"{angle}-degrees-period-{period}-faint", _picture(stripes(angle, period, 0.25))
    for angle, length in product((20, 45), (2.83, 4, 5.66, 8)):
        yield f"{angle}-degrees-period-{length}-sine", _picture(stripes(angle, length, square=False))
    for (low, high), period in product(((RED, CYAN), (BLUE, YELLOW)), (2, 4, 8)):
        yield f"45-degrees-period-{period}-{low}-{high}", _picture(stripes(45, period), low, high)


def _stripes_beside() -> Drawn:
    for angle, period in product((45, 90), (3, 4, 6)):
        levels = 0.2 + 0.6 * ROWS / SIDE
        levels[:, SIDE // 2 :] = stripes(angle, period)[:, SIDE // 2 :]
        yield f"{angle}-degrees-period-{period}", _picture(levels)


def _checkerboards() -> Drawn:
    for cell, contrast in product((1, 2, 3, 4, 5, 8, 16), (1.0, 0.3)):
        board = (ROWS // cell + COLUMNS // cell) % 2 - 0.5
        yield f"cell-{cell}-contrast-{contrast}", _picture(0.5 + contrast * board)
    for cell in (1, 2, 4):
        yield f"cell-{cell}-magenta", _picture((ROWS // cell + COLUMNS // cell) % 2, GREEN, MAGENTA)


def _chirps() -> Drawn:
    along = COLUMNS / SIDE
    diagonal = (ROWS + COLUMNS) / (2 * SIDE)
    radius = np.hypot(ROWS - SIDE / 2, COLUMNS - SIDE / 2) / (SIDE / 2)
    for name, place in (("across", along), ("diagonal", diagonal), ("zone-plate", radius)):
        for contrast in (1.0, 0.3):
            # up to half a cycle a pixel at the far end
            wave = np.cos(np.pi * SIDE / 2 * place**2)
            yield f"{name}-contrast-{contrast}", _picture(0.5 + 0.5 * contrast * wave)
    yield "zone-plate-coloured", _picture(0.5 + 0.5 * np.cos(np.pi * SIDE / 2 * radius**2), BLUE, YELLOW)


def _colour_bars() -> Drawn:
    bars = np.array([WHITE, YELLOW, CYAN, GREEN, MAGENTA, RED, BLUE, BLACK], np.float64) / 255
    for name, place in (
        ("vertical", COLUMNS * 8 // SIDE),
        ("horizontal", ROWS * 8 // SIDE),
        ("diagonal", (ROWS + COLUMNS) * 4 // SIDE),
        ("of-4-pixels", COLUMNS // 4 % 8),
        ("of-1-pixel", COLUMNS % 8),
    ):
        yield name, _picture(bars[place.astype(int)])
    yield "at-75-per-cent", _picture(0.75 * bars[(COLUMNS * 8 // SIDE).astype(int)])
    yield "squares", _picture(bars[((COLUMNS // 12 + 3 * (ROWS // 12)) % 8).astype(int)])


def _noise() -> Drawn:
    random = np.random.default_rng(0)
    grey, coloured = (SIDE, SIDE), (SIDE, SIDE, 3)
    yield "uniform-grey", _picture(random.random(grey))
    yield "uniform-coloured", _picture(random.random(coloured))
    yield "black-and-white", _picture(random.integers(0, 2, grey).astype(np.float64))
    yield "eight-colours", _picture(random.integers(0, 2, coloured).astype(np.float64))
    for deviation in (0.02, 0.08, 0.2):
        yield f"gaussian-{deviation}", _picture(0.5 + deviation * random.standard_normal(coloured))
    salt = random.random(grey)
    yield "salt-and-pepper", _picture(np.where(salt < 0.05, 0.0, np.where(salt > 0.95, 1.0, 0.5)))
    for cell in (2, 4, 16):
        cells = random.random((SIDE // cell, SIDE // cell, 3)).repeat(cell, 0).repeat(cell, 1)
        yield f"blocks-of-{cell}", _picture(cells)


def _page(ground: Colour = WHITE) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (SIDE, SIDE), ground)
    return page, ImageDraw.Draw(page)


def _write(draw: ImageDraw.ImageDraw, size: int, ink: Colour, top: int = 2, bottom: int = SIDE) -> None:
    font = ImageFont.load_default(size)
    for line, y in enumerate(range(top, bottom, round(1.25 * size))):
        start = 7 * line % len(WORDS)
        draw.text((3, y), WORDS[start:] + " " + WORDS[:start], ink, font)


def _text() -> Drawn:
    for size, (ink, ground) in product((8, 12, 20), ((BLACK, WHITE), (WHITE, BLACK), (RED, BLUE))):
        page, draw = _page(ground)
        _write(draw, size, ink)
        yield f"{size}-pixels-{ink}-on-{ground}", np.asarray(page)


def _screenshots() -> Drawn:
    for seed in range(6):
        random = np.random.default_rng(seed)
        page, draw = _page(WHITE if seed % 2 else (32, 34, 40))
        draw.rectangle((0, 0, SIDE, 14), (60, 90, 160))
        _write(draw, 9, WHITE, top=2, bottom=12)
        _write(draw, (9, 11)[seed // 2 % 2], (40, 40, 40) if seed % 2 else (200, 210, 200), top=20)
        for _ in range(6):
            left, top = (int(value) for value in random.integers(0, SIDE - 50, 2))
            right, bottom = left + int(random.integers(24, 50)), top + int(random.integers(10, 30))
            fill = tuple(int(value) for value in random.integers(0, 256, 3))
            draw.rectangle((left, top + 16, right, bottom + 16), fill, outline=(128, 128, 128))
        yield f"windows-{seed}", np.asarray(page)


def _charts() -> Drawn:
    random = np.random.default_rng(1)
    colours = [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)]
    for kind in ("bars", "lines", "points", "pie", "hatched", "grid"):
        page, draw = _page()
        draw.line((16, 8, 16, SIDE - 16, SIDE - 8, SIDE - 16), BLACK)
        heights = [int(value) for value in random.integers(20, SIDE - 40, 16)]
        points = [(20 + 10 * number, SIDE - 16 - height) for number, height in enumerate(heights)]
        for number, (x, y) in enumerate(points):
            colour = colours[number % 4]
            if kind in ("bars", "hatched"):
                draw.rectangle((x, y, x + 7, SIDE - 17), colour if kind == "bars" else None, outline=colour)
            if kind == "hatched":
                for row in range(y, SIDE - 17, 3):
                    draw.line((x, row, x + 7, row), colour)
            if kind == "points":
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), colour)
            if kind == "pie" and number < 8:
                draw.pieslice((24, 12, 170, 158), 45 * number, 45 * number + 45, colour, outline=WHITE)
            if kind == "grid":
                draw.line((x, 8, x, SIDE - 16), (200, 200, 200))
                draw.line((16, 8 + 10 * number, SIDE - 8, 8 + 10 * number), (200, 200, 200))
        if kind in ("lines", "grid"):
            draw.line(points, colours[0], 2)
            draw.line([(x, SIDE - y) for x, y in points], colours[3])
        yield kind, np.asarray(page)


def _codes() -> Drawn:
    random = np.random.default_rng(2)
    for module in (1, 2, 3, 4, 6):
        count = SIDE // module
        modules = random.integers(0, 2, (count, count)).astype(np.float64)
        # the three squares by which readers find a code
        for top, left in ((0, 0), (0, count - 8), (count - 8, 0)):
            modules[top : top + 8, left : left + 8] = 1
            ring = np.ones((7, 7))
            ring[1:6, 1:6] = 0
            ring[2:5, 2:5] = 1
            modules[top : top + 7, left : left + 7] = 1 - ring
        yield f"squares-of-{module}", _picture(modules.repeat(module, 0).repeat(module, 1))
    for module in (1, 2, 3):
        lines = random.integers(0, 2, SIDE // module).astype(np.float64).repeat(module)
        yield f"bars-of-{module}", _picture(np.tile(lines, (SIDE, 1)))


def _single_pixels() -> Drawn:
    for ink, ground in ((WHITE, BLACK), (BLACK, WHITE), (RED, GREEN)):
        for gap in (SIDE, 16, 6):
            picture = np.full((SIDE, SIDE, 3), ground, np.uint8)
            picture[gap // 2 :: gap, gap // 2 :: gap] = ink
            yield f"{ink}-on-{ground}-every-{gap}", picture
    line = np.full((SIDE, SIDE, 3), WHITE, np.uint8)
    line[SIDE // 2] = BLACK
    yield "one-line", line


def _gradients() -> Drawn:
    across, down = COLUMNS / (SIDE - 1), ROWS / (SIDE - 1)
    yield "across", _picture(across)
    yield "down-coloured", _picture(down, BLUE, YELLOW)
    yield "diagonal", _picture((across + down) / 2)
    yield "radial", _picture(np.hypot(across - 0.5, down - 0.5).clip(0, 1))
    yield "faint", _picture(0.5 + 0.02 * across)
    yield "bands", _picture((across * 8).round() / 8)
    yield "sawtooth", _picture(across * 6 % 1)
    hues = np.array([colorsys.hsv_to_rgb(hue, 1, 1) for hue in np.linspace(0, 1, SIDE)])
    yield "hues", _picture(np.tile(hues, (SIDE, 1, 1)))
    yield "hues-to-black", _picture(hues[None] * down[..., None])


def _flat() -> Drawn:
    for colour in (BLACK, WHITE, (128, 128, 128), RED, GREEN, BLUE, YELLOW, CYAN, MAGENTA):
        yield str(colour), np.full((SIDE, SIDE, 3), colour, np.uint8)


KINDS: dict[str, Callable[[], Drawn]] = {
    "stripes": _stripes,
    "stripes beside a gradient": _stripes_beside,
    "checkerboards": _checkerboards,
    "chirps": _chirps,
    "colour bars": _colour_bars,
    "noise": _noise,
    "text": _text,
    "screenshots": _screenshots,
    "charts": _charts,
    "codes": _codes,
    "single pixels": _single_pixels,
    "gradients": _gradients,
    "flat": _flat,
}
