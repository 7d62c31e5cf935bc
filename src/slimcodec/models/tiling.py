"""Large pictures piece by piece, with the result of the whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: side of a tile in latent positions: 1024 pixels at 16 pixels a position
TILE = 64


def tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    margin: int | None,
    cell_in: int = 1,
    cell_out: int = 1,
    tile: int = TILE,
) -> Tensor:
    """``function(x)`` for a convolutional function, computed on overlapping tiles.

    ``x`` is [B, C, rows * cell_in, columns * cell_in]; the function turns a cell of ``cell_in`` into one of ``cell_out``
    and looks at most ``margin`` cells to each side, so every kept value equals that of the untiled call. Without a margin the
    function is left to divide its input itself.
    """
    if margin is None:
        return function(x)
    rows, columns = x.shape[2] // cell_in, x.shape[3] // cell_in
    if rows <= tile + 2 * margin and columns <= tile + 2 * margin:
        return function(x)
    result: Tensor | None = None
    for top in range(0, rows, tile):
        for left in range(0, columns, tile):
            bottom, right = min(top + tile, rows), min(left + tile, columns)
            y0, x0 = max(top - margin, 0), max(left - margin, 0)
            y1, x1 = min(bottom + margin, rows), min(right + margin, columns)
            piece = function(x[:, :, y0 * cell_in : y1 * cell_in, x0 * cell_in : x1 * cell_in])
            if result is None:
                result = piece.new_empty(x.shape[0], piece.shape[1], rows * cell_out, columns * cell_out)
            inner = piece[
                :,
                :,
                (top - y0) * cell_out : (bottom - y0) * cell_out,
                (left - x0) * cell_out : (right - x0) * cell_out,
            ]
            result[:, :, top * cell_out : bottom * cell_out, left * cell_out : right * cell_out] = inner
    assert result is not None
    return result


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of tiles of ``tile`` that cover ``length`` and overlap by at least ``overlap``, evenly spread."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def blended(function: Callable[..., Tensor], *inputs: Tensor, tile: int = TILE, overlap: int = 16) -> Tensor:
    """``function`` of latents of one size, for a function that looks at the whole tile (attention, normalisation).

    Neighbouring tiles are cross-faded over their overlap, so that no seam shows.
    """
    height, width = inputs[0].shape[2:]
    overlap = min(overlap, tile // 2)
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return function(*inputs)
    total = torch.zeros_like(inputs[0])
    weights = inputs[0].new_zeros(1, 1, height, width)

    def fade(size: int) -> Tensor:
        ramp = torch.arange(1, size + 1, dtype=torch.float32)
        return torch.minimum(ramp, ramp.flip(0)).clamp(max=overlap) / overlap

    for top in rows:
        for left in columns:
            place = (..., slice(top, min(top + tile, height)), slice(left, min(left + tile, width)))
            piece = function(*(x[place] for x in inputs))
            weight = (fade(piece.shape[2])[:, None] * fade(piece.shape[3])).to(piece.device)
            total[place] += piece * weight
            weights[place] += weight
    return total / weights
