"""A map of zeros and ones in the order, and with the guesses, in which it is coded.

A position is guessed from those around it that are known already, from coarse to fine: first every eighth position of every eighth
row, then those amid four known ones, then those between them, at half the distance each time. What is coded is the difference to
the guess, so that a region costs bits along its outline alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from slimcodec.errors import FormatError

#: distance of the positions that are coded first
COARSEST = 8
#: table index of a difference by how many of the neighbours are against the guess, the last for two and for no neighbours
TABLE_OF_DOUBT = np.array([6, 11, 16], np.uint8)
Map = NDArray[np.int32]


@dataclass(frozen=True)
class MapCall:
    """Positions [n] that are coded together, counted in raster order, and the known ones around each [n, 4], -1 outside."""

    positions: NDArray[np.int64]
    neighbours: NDArray[np.int64]

    def guesses(self, values: Map) -> tuple[Map, NDArray[np.uint8]]:
        """Guess and table index [n] at the positions of a map, flat, with -1 where it is not known yet."""
        known = self.neighbours >= 0
        ones = ((values[self.neighbours] == 1) & known).sum(1)
        against = np.minimum(ones, known.sum(1) - ones)
        doubt = np.where(known.any(1), np.minimum(against, 2), 2)
        return (2 * ones > known.sum(1)).astype(np.int32), TABLE_OF_DOUBT[doubt]


@lru_cache(maxsize=64)
def map_calls(height: int, width: int) -> tuple[MapCall, ...]:
    """The calls in which a map of ``height`` x ``width`` is coded."""
    return tuple(call for call in _calls(height, width) if call.positions.size)


def write_map(values: Map) -> Iterator[tuple[Map, NDArray[np.uint8]]]:
    """Symbols and table indices of a map [h, w] of zeros and ones: one that says whether there are ones at all, then its calls."""
    flat = values.reshape(-1)
    yield np.array([flat.any()], np.int32), TABLE_OF_DOUBT[2:]
    if flat.any():
        for call in map_calls(*values.shape):
            guess, index = call.guesses(flat)
            yield flat[call.positions] - guess, index


def read_map(take: Callable[[NDArray[np.uint8]], NDArray[np.int32]], height: int, width: int) -> Map:
    """The map [h, w] that ``write_map`` wrote, or ``FormatError``; ``take`` gives the next symbols for table indices."""
    flat = np.zeros(height * width, np.int32)
    (some,) = take(TABLE_OF_DOUBT[2:]).tolist()
    if some not in (0, 1):
        raise FormatError("the map of steps begins with a symbol that it cannot have")
    for call in map_calls(height, width) if some else ():
        guess, index = call.guesses(flat)
        found = guess + take(index)
        if found.min() < 0 or found.max() > 1:
            raise FormatError("the map of steps holds a value that it cannot have")
        flat[call.positions] = found
    if some and not flat.any():
        raise FormatError("the map of steps is said to have ones, and has none")
    return flat.reshape(height, width)


def _calls(height: int, width: int) -> Iterator[MapCall]:
    rows, columns = np.indices((height, width))

    def call(chosen: NDArray[np.bool_], around: list[tuple[int, int]]) -> MapCall:
        y, x = rows[chosen][:, None], columns[chosen][:, None]
        offsets = np.array(around, np.int64).reshape(-1, 2)
        down, right = y + offsets[:, 0], x + offsets[:, 1]
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        return MapCall((y * width + x)[:, 0], np.where(inside, down * width + right, -1))

    yield call((rows % COARSEST == 0) & (columns % COARSEST == 0), [])
    step = COARSEST
    while step > 1:
        half = step // 2
        across = [(dy, dx) for dy in (-half, half) for dx in (-half, half)]
        yield call((rows % step == half) & (columns % step == half), across)
        grid = (rows % half == 0) & (columns % half == 0)
        beside = [(-half, 0), (0, -half), (0, half), (half, 0)]
        yield call(grid & ((rows + columns) // half % 2 == 1), beside)
        step = half
