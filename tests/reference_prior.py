"""The exact prior again, in plain numpy int64: slow, obvious, and written from docs/format.md, not from the package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from reference_coder import ReferenceDecoder

Ints = NDArray[np.int64]
Tensors = dict[str, NDArray[np.generic]]


def interpolate(table: Ints, quality: int) -> Ints:
    """Rows of a table [levels, n] at a quality, by integer arithmetic."""
    low, weight = divmod((quality - 1) * (len(table) - 1), 99)
    high = min(low + 1, len(table) - 1)
    return (table[low] * (99 - weight) + table[high] * weight) // 99


def layer(tensors: Tensors, name: str, x: Ints, quality: int) -> Ints:
    """One layer on the last axis."""
    weight, bias = tensors[f"{name}.weight"].astype(np.int64), tensors[f"{name}.bias"].astype(np.int64)
    shift, relu = (int(v) for v in tensors[f"{name}.meta"])
    row = interpolate(bias, quality) if len(bias) > 1 else bias[0]
    y = (x @ weight.T + row + (1 << (shift - 1))) >> shift
    return np.clip(y, 0, 2**15 - 1) if relu else y


def window(x: Ints, offsets: list[tuple[int, int]], radius: int) -> Ints:
    """Neighbours of every position of [h, w, C] at the offsets, zero outside."""
    height, width, _ = x.shape
    padded = np.pad(x, ((radius, radius), (radius, radius), (0, 0)))
    return np.concatenate(
        [padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width] for dy, dx in offsets],
        -1,
    )


def spread(x: Ints) -> Ints:
    """[h, w, 4C] to [2h, 2w, C]: channel group 2a+b goes to row a, column b."""
    height, width, channels = x.shape
    x = x.reshape(height, width, 2, 2, channels // 4).transpose(0, 2, 1, 3, 4)
    return x.reshape(2 * height, 2 * width, channels // 4)


def map_of_steps(take: Callable[[Ints], Ints], height: int, width: int) -> Ints:
    """The map [h, w] of zeros and ones before the hyper-latents, position by position."""
    values = np.zeros((height, width), np.int64)
    if not take(np.array([16])).item():
        return values
    sides = [[(row, column) for row in range(0, height, 8) for column in range(0, width, 8)]]
    around: list[list[tuple[int, int]]] = [[]]
    for d in (4, 2, 1):
        inside = [(row, column) for row in range(0, height, d) for column in range(0, width, d)]
        sides.append([(row, column) for row, column in inside if row % (2 * d) == column % (2 * d) == d])
        around.append([(-d, -d), (-d, d), (d, -d), (d, d)])
        sides.append([(row, column) for row, column in inside if row % (2 * d) != column % (2 * d)])
        around.append([(-d, 0), (d, 0), (0, -d), (0, d)])
    for places, offsets in zip(sides, around, strict=True):
        known = [
            [
                int(values[row + dy, column + dx])
                for dy, dx in offsets
                if 0 <= row + dy < height and 0 <= column + dx < width
            ]
            for row, column in places
        ]
        guesses = [int(2 * sum(ones) > len(ones)) for ones in known]
        tables = [(6, 11, 16)[min(sum(ones), len(ones) - sum(ones))] if ones else 16 for ones in known]
        for (row, column), guess, symbol in zip(
            places, guesses, take(np.array(tables, np.int64)).tolist(), strict=True
        ):
            values[row, column] = guess + symbol
    return values


def decode(
    tensors: Tensors, payload: bytes, height: int, width: int, quality: int, steps: bool = False
) -> tuple[list[int], Ints]:
    """All symbols of a payload in coding order, and the decoded values [h, w, C] in sixteenths.

    ``steps``: the last channel is a map of quantisation steps.
    """
    ends = np.cumsum(2 * tensors["tables.radii"].astype(np.int64) + 2)
    tables = [part.tolist() for part in np.split(tensors["tables.frequencies"], ends[:-1])]
    decoder = ReferenceDecoder(tables, payload)
    channel_index = np.clip((interpolate(tensors["hyper_index"].astype(np.int64), quality) + 8) >> 4, 0, 63)
    rows, columns = -(-height // 4), -(-width // 4)
    symbols: list[int] = []

    def take(indices: Ints) -> Ints:
        found = decoder.decode(indices.reshape(-1).tolist())
        symbols.extend(found)
        return np.array(found, np.int64).reshape(indices.shape)

    coded, grid_of_steps = len(tensors["anchor_mean.bias"][0]), None
    if steps:
        coded, grid_of_steps = coded - 1, map_of_steps(take, height, width)
    hyper = take(np.tile(channel_index, (rows, columns, 1)))
    square = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    x = layer(tensors, "hyper_in", hyper, quality)
    x = spread(layer(tensors, "hyper_up1", window(x, square, 1), quality))
    x = spread(layer(tensors, "hyper_up2", window(x, square, 1), quality))
    features = x[:height, :width]

    diamond = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]
    channels = len(tensors["anchor_mean.bias"][0])
    grid = np.zeros((height, width, channels), np.int64)
    if grid_of_steps is not None:
        grid[..., -1] = 16 * grid_of_steps
    even = np.add.outer(np.arange(height), np.arange(width)) % 2 == 0
    for head, at in (("anchor", even), ("rest", ~even)):
        seen = features[at]
        if head == "rest":
            around = layer(tensors, "context", window(grid, diamond, 2)[at], quality)
            seen = np.concatenate([seen, around], -1)
        for part in ("1", "2"):
            seen = layer(tensors, f"{head}_{part}", seen, quality)
        mean = np.clip(layer(tensors, f"{head}_mean", seen, quality), -(2**18), 2**18)
        index = np.clip(layer(tensors, f"{head}_scale", seen, quality), 0, 63)
        inner = grid[at]
        inner[:, :coded] = take(index[:, :coded]) * 16 + mean[:, :coded]
        grid[at] = inner
    return symbols, grid
