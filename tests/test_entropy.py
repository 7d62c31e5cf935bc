"""Symbol tables and range coder: lossless, exactly the documented bytes, close to the ideal size, sturdy."""

import copy
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import reference_coder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slimcodec.entropy.coder import SymbolDecoder, SymbolEncoder
from slimcodec.entropy.tables import TOTAL, SymbolTables
from slimcodec.errors import FormatError

Call = tuple[list[int], list[int]]

SCALES = np.geomspace(0.04, 256.0, 64)
GAUSSIAN = SymbolTables.gaussian(SCALES)
SMALL_SCALES = [0.04, 0.3, 0.9, 4.0]
SMALL = SymbolTables.gaussian(SMALL_SCALES)


def int32(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def uint8(values: Sequence[int]) -> NDArray[np.uint8]:
    return np.array(values, dtype=np.uint8)


def lists(tables: SymbolTables) -> list[list[int]]:
    ends = np.cumsum(2 * tables.radii + 2)
    return [part.tolist() for part in np.split(tables.frequencies, ends[:-1])]


def encode(tables: SymbolTables, calls: Sequence[Call]) -> bytes:
    encoder = SymbolEncoder(tables)
    for symbols, indices in calls:
        encoder.encode(int32(symbols), uint8(indices))
    return encoder.finish()


def decode(
    tables: SymbolTables, payload: bytes, calls: Sequence[Call], finish: bool = True
) -> list[list[int]]:
    decoder = SymbolDecoder(tables, payload)
    symbols = [decoder.decode(uint8(indices)).tolist() for _, indices in calls]
    if finish:
        decoder.finish()
    return symbols


def decodes_to(tables: SymbolTables, payload: bytes, calls: Sequence[Call]) -> bool:
    try:
        return decode(tables, payload, calls, finish=False) == [symbols for symbols, _ in calls]
    except FormatError:
        return False


def random_tables(rng: np.random.Generator) -> SymbolTables:
    """Return tables of every shape: flat, peaked, and nearly certain symbols anywhere, the escape too."""
    radii = rng.integers(0, 6, size=rng.integers(1, 8))
    parts = []
    for radius in radii:
        weights = rng.exponential(size=2 * radius + 2) ** rng.choice([0.2, 1.0, 30.0])
        frequencies = 1 + np.floor(weights / weights.sum() * (TOTAL - 2 * radius - 2)).astype(np.int64)
        frequencies[rng.integers(frequencies.size)] += TOTAL - frequencies.sum()
        parts.append(frequencies)
    return SymbolTables(np.concatenate(parts), radii)


def random_calls(rng: np.random.Generator, tables: SymbolTables) -> list[Call]:
    calls = []
    for _ in range(rng.integers(1, 4)):
        count = int(rng.choice([0, 1, 5, 40]))
        indices = rng.integers(0, len(tables), size=count)
        symbols = np.rint(rng.normal(0, rng.choice([0.1, 1.0, 4.0, 9000.0]), size=count))
        calls.append((np.clip(symbols, -32767, 32767).astype(int).tolist(), indices.tolist()))
    return calls


streams = st.lists(
    st.lists(
        st.tuples(st.one_of(st.integers(-3, 3), st.integers(-32767, 32767)), st.integers(0, len(SMALL) - 1)),
        max_size=30,
    ).map(lambda pairs: ([symbol for symbol, _ in pairs], [index for _, index in pairs])),
    max_size=4,
)


# Tables


@pytest.mark.parametrize("tables", [GAUSSIAN, SMALL])
def test_gaussian_tables_are_symmetric_and_complete(tables: SymbolTables) -> None:
    for frequencies, radius in zip(lists(tables), tables.radii, strict=True):
        assert sum(frequencies) == TOTAL and min(frequencies) >= 1
        assert len(frequencies) == 2 * radius + 2
        assert frequencies[:-1] == frequencies[-2::-1]
        assert frequencies[radius] == max(frequencies)


def test_gaussian_tables_cost_no_more_than_the_gaussian() -> None:
    for scale, frequencies, radius in zip(SCALES, lists(GAUSSIAN), GAUSSIAN.radii, strict=True):
        density = np.exp(-0.5 * (np.arange(-50 * radius, 50 * radius + 1) / 50 / scale) ** 2)
        if scale >= 1:  # below, the density at the integers says little about the bin around them
            wanted = density[::50] / density[::50].sum()
            assert np.sum(wanted * np.log2(wanted / (np.array(frequencies[:-1]) / TOTAL))) < 0.01
        else:
            variance = np.sum(np.arange(-radius, radius + 1) ** 2 * np.array(frequencies[:-1])) / TOTAL
            assert variance < scale**2 + 0.09
    assert GAUSSIAN.frequencies[GAUSSIAN.radii[0]] > TOTAL - 64
    assert len(GAUSSIAN) == 64 and GAUSSIAN.frequencies.nbytes < 150_000


def test_gaussian_table_of_scale_one_has_the_known_probabilities() -> None:
    frequencies = np.array(lists(SymbolTables.gaussian([1.0]))[0]) / TOTAL
    centre = int(SymbolTables.gaussian([1.0]).radii[0])
    np.testing.assert_allclose(
        frequencies[centre : centre + 4], [0.382925, 0.241730, 0.060598, 0.005977], atol=2e-6
    )


@pytest.mark.parametrize("scales", [[0.0], [-1.0], [float("nan")], [1e9], [], [1.0] * 257])
def test_gaussian_rejects_bad_scales(scales: list[float]) -> None:
    with pytest.raises(ValueError):
        SymbolTables.gaussian(scales)


def test_tables_survive_arrays_pickle_and_copy() -> None:
    payload = encode(SMALL, [([0, 1, -300], [0, 1, 2])])
    frequencies, radii = SMALL.frequencies.copy(), SMALL.radii.copy()
    assert frequencies.dtype == np.uint32 and radii.dtype == np.int32
    made = SymbolTables(frequencies, radii)
    for other in (made, pickle.loads(pickle.dumps(SMALL)), copy.deepcopy(SMALL)):
        assert encode(other, [([0, 1, -300], [0, 1, 2])]) == payload
    frequencies[0] += 1
    assert made.frequencies[0] != frequencies[0]
    with pytest.raises(ValueError):
        SMALL.frequencies[0] = 5


@pytest.mark.parametrize(
    "frequencies, radii",
    [
        ([TOTAL - 3, 1, 1, 2], [1]),  # sum
        ([0, TOTAL - 2, 1, 1], [1]),  # zero
        ([-1, TOTAL - 1, 1, 1], [1]),
        ([1, TOTAL - 3, 1], [1]),  # length
        ([1, TOTAL - 3, 1, 1], [-1]),
        ([], []),
        ([1.0, TOTAL - 3.0, 1.0, 1.0], [1]),
        ([1, TOTAL - 3, 1, 1], [[1]]),
    ],
)
def test_tables_reject_bad_arrays(frequencies: list[int], radii: list[int]) -> None:
    with pytest.raises(ValueError):
        SymbolTables(np.array(frequencies), np.array(radii))
    SymbolTables(np.array([1, TOTAL - 3, 1, 1]), np.array([1]))


def test_counts_fit_the_tables_to_the_symbols() -> None:
    rng = np.random.default_rng(3)
    indices = rng.integers(0, len(SMALL), 40_000).astype(np.uint8)
    heavy = np.rint(rng.laplace(0, np.array(SMALL_SCALES)[indices])).astype(np.int32)
    seen, unseen = slice(0, 30_000), slice(30_000, None)
    counts = SMALL.count(heavy[seen], indices[seen])
    assert counts.sum() == 30_000
    fitted = SymbolTables.from_counts(SMALL_SCALES, counts)
    np.testing.assert_array_equal(fitted.radii, SMALL.radii)
    for frequencies in lists(fitted):
        assert frequencies[:-1] == frequencies[-2::-1]
    before = SMALL.bits(heavy[unseen], indices[unseen]).sum()
    after = fitted.bits(heavy[unseen], indices[unseen]).sum()
    assert after < 0.97 * before
    calls = [(heavy[unseen].tolist(), indices[unseen].tolist())]
    assert decodes_to(fitted, encode(fitted, calls), calls)


def test_fitting_takes_a_symbol_and_its_negative_for_the_same() -> None:
    symbols, indices = int32([1, 2, -2, 3, 0, -1, -1]), uint8([0, 1, 2, 3, 1, 1, 3])
    plain, mirrored = (
        SymbolTables.from_counts(SMALL_SCALES, SMALL.count(sign * symbols, indices), 0.1) for sign in (1, -1)
    )
    np.testing.assert_array_equal(plain.frequencies, mirrored.frequencies)


def test_counts_count_symbols_and_escapes_of_their_table() -> None:
    counts = SMALL.count(int32([0, 0, 2, -2, 30_000, -9]), uint8([0, 0, 3, 3, 1, 1]))
    per_table = np.split(counts, np.cumsum(2 * SMALL.radii + 2)[:-1])
    radii = SMALL.radii.tolist()
    assert per_table[0][radii[0]] == 2 and per_table[0].sum() == 2
    assert per_table[3][radii[3] + 2] == 1 and per_table[3][radii[3] - 2] == 1
    assert per_table[1][-1] == 2 and per_table[1].sum() == 2


def test_no_counts_leave_the_gaussian_and_strength_pulls_to_it() -> None:
    none = np.zeros(SMALL.frequencies.size, dtype=np.int64)
    kept = SymbolTables.from_counts(SMALL_SCALES, none)
    np.testing.assert_allclose(kept.frequencies, SMALL.frequencies.astype(np.int64), rtol=0, atol=200)
    ones = SMALL.count(int32([1] * 100), uint8([0] * 100))
    chance = [
        lists(SymbolTables.from_counts(SMALL_SCALES, ones, strength))[0][SMALL.radii[0] + 1] / TOTAL
        for strength in (0.01, 1.0, 100.0)
    ]
    assert 0.5 > chance[0] > 0.49 and chance[0] > chance[1] > chance[2] > 0.01


# Coder


def test_bytes_equal_the_reference_on_thousands_of_random_streams() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3000):
        tables = random_tables(rng)
        calls = random_calls(rng, tables)
        payload = encode(tables, calls)
        assert payload == reference_coder.encode(lists(tables), calls)
        assert decode(tables, payload, calls) == [symbols for symbols, _ in calls]
        assert reference_coder.decode(lists(tables), payload, [i for _, i in calls]) == [s for s, _ in calls]


@settings(max_examples=200, deadline=None)
@given(streams)
def test_bytes_equal_the_reference(calls: list[Call]) -> None:
    payload = encode(SMALL, calls)
    assert payload == reference_coder.encode(lists(SMALL), calls)
    assert decode(SMALL, payload, calls) == [symbols for symbols, _ in calls]
    assert reference_coder.decode(lists(SMALL), payload, [i for _, i in calls]) == [s for s, _ in calls]


@pytest.mark.parametrize("start", [b"\x7f", b"\x80", b"\xa4\xff", b""])
@pytest.mark.parametrize("filling", [b"\x00", b"\xff"])
@pytest.mark.parametrize("ending", [b"", b"\x01", b"\x80"])
def test_long_carries_equal_the_reference(start: bytes, filling: bytes, ending: bytes) -> None:
    # Symbols decoded from 7FFF... or 8000... keep the interval across a carry boundary for many words.
    data = start + filling * 30 + ending
    indices = [[3] * 90, [2, 3, 1] * 40]
    try:
        symbols = decode(SMALL, data, [([], call) for call in indices], finish=False)
    except FormatError:
        # FFFF... lies behind the last interval.
        assert data.startswith(b"\xff")
        return
    calls = list(zip(symbols, indices, strict=True))
    payload = encode(SMALL, calls)
    assert payload == reference_coder.encode(lists(SMALL), calls)
    assert decode(SMALL, payload, calls) == symbols


def test_gaussian_picture_equals_the_reference() -> None:
    rng = np.random.default_rng(4)
    indices = rng.integers(0, 64, 1500)
    symbols = np.rint(rng.normal(0, SCALES[indices])).astype(int)
    calls = [
        (symbols[:700].tolist(), indices[:700].tolist()),
        (symbols[700:].tolist(), indices[700:].tolist()),
    ]
    payload = encode(GAUSSIAN, calls)
    assert payload == reference_coder.encode(lists(GAUSSIAN), calls)
    assert decode(GAUSSIAN, payload, calls) == [part for part, _ in calls]


@settings(max_examples=200, deadline=None)
@given(streams)
def test_payload_is_the_shortest(calls: list[Call]) -> None:
    payload = encode(SMALL, calls)
    assert not payload.endswith(b"\0")
    if payload:
        # Numbers of one byte less below and above the payload's: if neither decodes, no shorter payload does.
        below = int.from_bytes(payload[:-1], "big")
        size = len(payload) - 1
        assert not decodes_to(SMALL, payload[:-1], calls)
        if below + 1 < 256**size:
            assert not decodes_to(SMALL, (below + 1).to_bytes(size, "big"), calls)


@settings(max_examples=100, deadline=None)
@given(streams, st.integers(1, 20), st.binary(min_size=1, max_size=12))
def test_zeros_that_follow_do_not_matter_but_finish_sees_what_is_left(
    calls: list[Call], zeros: int, junk: bytes
) -> None:
    payload = encode(SMALL, calls)
    assert decodes_to(SMALL, payload + bytes(zeros), calls)
    for more in (bytes(zeros), junk, bytes(zeros) + junk):
        if decodes_to(SMALL, payload + more, calls):
            with pytest.raises(FormatError):
                decode(SMALL, payload + more, calls)


def test_empty_streams_are_empty() -> None:
    assert encode(SMALL, []) == b""
    assert encode(SMALL, [([], []), ([], [])]) == b""
    assert decode(SMALL, b"", [([], []), ([], [])]) == [[], []]
    around: list[Call] = [([], []), ([7], [1]), ([], [])]
    assert decode(SMALL, encode(SMALL, around), around) == [[], [7], []]
    empty = SMALL.bits(int32([]), uint8([]))
    assert empty.dtype == np.float64 and empty.shape == (0,)
    assert SMALL.count(int32([]), uint8([])).sum() == 0


@pytest.mark.parametrize("symbol", [-32767, -300, 300, 32767])
def test_escapes_keep_order_and_cost_sixteen_more_bits(symbol: int) -> None:
    symbols, indices = [1, symbol, -1, -symbol, 0, 32767], [3, 1, 0, 1, 1, 0]
    assert decode(SMALL, encode(SMALL, [(symbols, indices)]), [(symbols, indices)]) == [symbols]
    escape = lists(SMALL)[1][-1]
    bits = SMALL.bits(int32(symbols), uint8(indices))
    np.testing.assert_allclose(bits[1], -np.log2(escape / TOTAL) + 16)
    zero = lists(SMALL)[1][SMALL.radii[1]]
    np.testing.assert_allclose(bits[4], -np.log2(zero / TOTAL))


@pytest.mark.parametrize("scale", [0.4, 3.0])
def test_payload_is_within_twelve_bits_of_ideal(scale: float) -> None:
    rng = np.random.default_rng(5)
    excess = []
    for _ in range(200):
        # As in a picture: most symbols are nearly certain, some are not.
        indices = np.where(
            rng.random(4000) < 0.05, rng.integers(0, 50, 4000), rng.integers(0, 4, 4000)
        ).astype(np.uint8)
        symbols = np.rint(rng.normal(0, SCALES[indices] * scale)).astype(np.int32)
        encoder = SymbolEncoder(GAUSSIAN)
        encoder.encode(symbols, indices)
        excess.append(8 * len(encoder.finish()) - GAUSSIAN.bits(symbols, indices).sum())
    assert np.mean(excess) < 12
    assert max(excess) < 24


def test_nearly_certain_symbols_cost_almost_nothing() -> None:
    zeros, indices = [0] * 32768, [0] * 32768
    assert len(encode(GAUSSIAN, [(zeros, indices)])) <= 1
    zeros[20_000] = 2
    payload = encode(GAUSSIAN, [(zeros, indices)])
    assert len(payload) < 6
    assert decode(GAUSSIAN, payload, [(zeros, indices)]) == [zeros]


# Errors


def test_encoder_rejects_bad_indices_and_writes_nothing() -> None:
    encoder = SymbolEncoder(SMALL)
    with pytest.raises(ValueError):
        encoder.encode(int32([0]), uint8([len(SMALL)]))
    assert encoder.finish() == b""


def test_decoder_rejects_bad_indices() -> None:
    with pytest.raises(ValueError):
        SymbolDecoder(SMALL, b"abc").decode(uint8([len(SMALL)]))


def test_decoder_rejects_numbers_behind_the_last_symbol() -> None:
    with pytest.raises(FormatError):
        decode(SMALL, b"\xff" * 40, [([], [3] * 40)], finish=False)


@pytest.mark.parametrize("symbol", [-1, 1, -32768])
def test_decoder_rejects_needless_escapes(symbol: int) -> None:
    # The escapes of both tables take the same interval, but the wider table reaches the symbols -1 and 1 without one.
    narrow = [TOTAL // 2, TOTAL // 2]
    wide = SymbolTables(np.array([1, TOTAL // 2 - 2, 1, TOTAL // 2]), np.array([1]))
    payload = reference_coder.encode([narrow], [([symbol], [0])])
    with pytest.raises(FormatError):
        decode(wide, payload, [([], [0])], finish=False)
    with pytest.raises(reference_coder.NoSymbol):
        reference_coder.decode(lists(wide), payload, [[0]])
    assert decode(wide, reference_coder.encode([narrow], [([2], [0])]), [([], [0])]) == [[2]]


def test_random_payloads_raise_format_error_or_agree_with_the_reference() -> None:
    rng = np.random.default_rng(6)
    outcomes = set()
    for _ in range(2000):
        tables = random_tables(rng)
        calls = random_calls(rng, tables)
        data = rng.bytes(int(rng.choice([0, 1, 3, 4, 7, 9, 30, 200])))
        if rng.random() < 0.1:
            data = b"\xff" * 9 + data
        try:
            symbols = decode(tables, data, calls, finish=False)
        except FormatError:
            symbols = None
        try:
            expected = reference_coder.decode(lists(tables), data, [indices for _, indices in calls])
        except reference_coder.NoSymbol:
            expected = None
        assert symbols == expected
        outcomes.add(symbols is None)
    assert outcomes == {True, False}


def test_truncated_payloads_never_crash() -> None:
    rng = np.random.default_rng(7)
    indices = rng.integers(0, 64, 500).astype(np.uint8)
    symbols = np.rint(rng.normal(0, SCALES[indices])).astype(np.int32)
    encoder = SymbolEncoder(GAUSSIAN)
    encoder.encode(symbols, indices)
    payload = encoder.finish()
    for size in range(len(payload)):
        try:
            cut = SymbolDecoder(GAUSSIAN, payload[:size]).decode(indices)
        except FormatError:
            continue
        assert not np.array_equal(cut, symbols)
