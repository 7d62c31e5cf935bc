"""What enhancement of any kind rests on: seeded noise, tiles."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from slimcodec.models.enhancer import seeded_noise
from slimcodec.models.tiles import blended, tile_starts, tiled


def test_noise_is_a_function_of_the_seed_alone() -> None:
    noise = seeded_noise((1, 2, 3, 4), 123)
    assert torch.equal(noise, seeded_noise((1, 2, 3, 4), 123))
    assert not torch.equal(noise, seeded_noise((1, 2, 3, 4), 124))
    # frozen: a file's picture must not change with a library's release
    frozen = [-0.504012942314148, 0.8471679091453552, -0.8139004111289978]
    assert np.allclose(noise.flatten()[:3], frozen, rtol=1e-6)
    large = seeded_noise((200_000,), 5)
    assert abs(float(large.mean())) < 0.01 and abs(float(large.std()) - 1) < 0.01


@pytest.mark.parametrize(("height", "width"), [(5, 7), (20, 9), (33, 41)])
def test_tiles_of_a_convolution_equal_the_whole(height: int, width: int) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.PixelShuffle(2),
    )

    def run(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            result: np.ndarray[Any, Any] = network(torch.from_numpy(part)).numpy()
        return result

    x = np.random.default_rng(0).standard_normal((1, 2, height, width), dtype=np.float32)
    whole = run(x)
    pieces = tiled(run, x, margin=3, cell_out=2, tile=8)
    short = tiled(run, x, margin=1, cell_out=2, tile=8)
    assert np.allclose(whole, pieces, atol=1e-6)
    assert whole.shape == short.shape
    if max(height, width) > 10:
        assert not np.allclose(whole, short, atol=1e-6)  # the margin matters


def test_blended_tiles_cover_and_keep_what_a_pointwise_function_gives() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 50, 37), dtype=np.float32)
    assert np.allclose(blended(lambda part: 2 * part, x, tile=20, overlap=6), 2 * x, atol=1e-5)
    # a function with another offset on every tile has no jump larger than a step of the cross-fade
    offsets = iter(range(100))
    steps = blended(lambda part: np.zeros_like(part) + next(offsets) % 2, x, tile=20, overlap=6)
    assert float(np.abs(np.diff(steps, axis=3)).max()) < 0.5
    for length, tile, overlap in ((100, 20, 6), (21, 20, 6), (64, 64, 16)):
        starts = tile_starts(length, tile, overlap)
        assert starts[0] == 0 and starts[-1] + tile >= length
        assert all(b - a <= tile - overlap for a, b in pairwise(starts))
