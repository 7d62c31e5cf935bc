"""Large pictures in tiles: functions of arrays [B, C, h, w] on pieces that overlap. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: side of a tile in latent positions: 1024 pixels at 16 pixels a position
TILE = 64
Array = NDArray[Any]


def tiled(
    function: Callable[..., Array],
    *inputs: Array,
    margin: int | None,
    cell_in: int = 1,
    cell_out: int = 1,
    tile: int = TILE,
) -> Array:
    """``function(*inputs)`` for a convolutional function, computed on overlapping tiles.

    Inputs are [B, C, rows * cell_in, columns * cell_in]. The function turns a cell of ``cell_in`` into one of ``cell_out``
    and looks at most ``margin`` cells to each side, so every kept value equals that of the untiled call. Without a margin
    the function looks at all of its input: see ``blended``.
    """
    if margin is None:
        return blended(function, *inputs, cell_in=cell_in, cell_out=cell_out, tile=tile)
    rows, columns = (length // cell_in for length in inputs[0].shape[2:])
    if max(rows, columns) <= tile + 2 * margin:
        return function(*inputs)

    def tiles(length: int) -> Iterator[tuple[int, int, int, int]]:
        """First and last cell of each tile, without and with the margin."""
        for start in range(0, length, tile):
            stop = min(start + tile, length)
            yield start, stop, max(start - margin, 0), min(stop + margin, length)

    def cells(start: int, stop: int, cell: int) -> slice:
        return slice(start * cell, stop * cell)

    result: Array | None = None
    for (top, bottom, y0, y1), (left, right, x0, x1) in product(tiles(rows), tiles(columns)):
        piece = function(*(x[..., cells(y0, y1, cell_in), cells(x0, x1, cell_in)] for x in inputs))
        if result is None:
            size = (*piece.shape[:2], rows * cell_out, columns * cell_out)
            result = np.empty(size, piece.dtype)
        inner = piece[..., cells(top - y0, bottom - y0, cell_out), cells(left - x0, right - x0, cell_out)]
        result[..., cells(top, bottom, cell_out), cells(left, right, cell_out)] = inner
    assert result is not None
    return result


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of tiles of ``tile`` that cover ``length`` and overlap by at least ``overlap``, evenly spread."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def blended(
    function: Callable[..., Array],
    *inputs: Array,
    cell_in: int = 1,
    cell_out: int = 1,
    tile: int = TILE,
    overlap: int = 16,
) -> Array:
    """``function(*inputs)`` for a function that looks at the whole tile (attention, normalisation); cells as in ``tiled``.

    Neighbouring tiles are cross-faded over their overlap, so that no seam shows.
    """
    height, width = (length // cell_in for length in inputs[0].shape[2:])
    overlap = min(overlap, tile // 2)
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return function(*inputs)
    total: Array | None = None
    weights = np.zeros((1, 1, height * cell_out, width * cell_out), np.float32)

    def place(top: int, left: int, cell: int) -> tuple[Any, ...]:
        return (..., *(slice(start * cell, (start + tile) * cell) for start in (top, left)))

    def fade(size: int) -> Array:
        ramp = np.arange(1, size + 1, dtype=np.float32)
        return np.minimum(np.minimum(ramp, ramp[::-1]) / (overlap * cell_out), 1)

    for top, left in product(rows, columns):
        piece = function(*(x[place(top, left, cell_in)] for x in inputs))
        weight = fade(piece.shape[2])[:, None] * fade(piece.shape[3])
        if total is None:
            total = np.zeros((*piece.shape[:2], *weights.shape[2:]), np.float32)
            kind = piece.dtype
        total[place(top, left, cell_out)] += piece * weight
        weights[place(top, left, cell_out)] += weight
    assert total is not None
    total /= weights
    return (total if kind == np.float32 else total.round()).astype(kind, copy=False)
