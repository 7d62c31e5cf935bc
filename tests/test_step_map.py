"""The map of quantisation steps: every map comes back, a region costs bits along its outline alone, nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slimcodec import FormatError
from slimcodec.entropy.coder import SymbolDecoder, SymbolEncoder
from slimcodec.entropy.step_map import map_calls, read_map, write_map
from slimcodec.training.compression_model import gaussian_tables

TABLES = gaussian_tables()


def coded(values: NDArray[np.int32]) -> bytes:
    encoder = SymbolEncoder(TABLES)
    for symbols, indices in write_map(values):
        encoder.encode(symbols, indices)
    return encoder.finish()


def decoded(data: bytes, height: int, width: int) -> NDArray[np.int32]:
    decoder = SymbolDecoder(TABLES, data)
    values = read_map(decoder.decode, height, width)
    decoder.finish()
    return values


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5, 1.0])
)
def test_every_map_comes_back(height: int, width: int, seed: int, share: float) -> None:
    values = (np.random.default_rng(seed).random((height, width)) < share).astype(np.int32)
    assert np.array_equal(decoded(coded(values), height, width), values)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (16, 16), (13, 30)])
def test_every_position_is_coded_once(height: int, width: int) -> None:
    positions = np.concatenate([call.positions for call in map_calls(height, width)])
    assert sorted(positions.tolist()) == list(range(height * width))


def test_a_region_costs_bits_along_its_outline() -> None:
    assert len(coded(np.zeros((64, 64), np.int32))) <= 1
    rows, columns = np.indices((64, 64))
    disc = ((rows - 30) ** 2 + (columns - 33) ** 2 > 15**2).astype(np.int32)
    small = disc[::4, ::4]
    assert len(coded(small)) <= 12
    # four times the outline, sixteen times the area
    assert len(coded(disc)) < 8 * len(coded(small))


def test_nonsense_is_refused() -> None:
    def written(*calls: tuple[list[int], list[int]]) -> bytes:
        encoder = SymbolEncoder(TABLES)
        for symbols, indices in calls:
            encoder.encode(np.array(symbols, np.int32), np.array(indices, np.uint8))
        return encoder.finish()

    with pytest.raises(FormatError, match="begins"):
        decoded(written(([-1], [16])), 4, 4)
    with pytest.raises(FormatError, match="value"):
        decoded(written(([1], [16]), ([2], [16])), 1, 1)
    with pytest.raises(FormatError, match="has none"):
        decoded(written(([1], [16]), ([0], [16])), 1, 1)
