"""Symbols to bytes and back with a range coder, byte for byte as docs/format.md says (section Payload)."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from slimcodec.entropy.tables import ESCAPE_BITS, MAX_SYMBOL, SymbolTables
from slimcodec.errors import FormatError

_ESCAPED = constriction.stream.model.Uniform(1 << ESCAPE_BITS)
_ESCAPE_BIAS = 1 << (ESCAPE_BITS - 1)
#: no symbol takes more: 24 bits at the smallest frequency, 16 of an escape, and what the coder's rounding loses
MAX_SYMBOL_BYTES = 6
_WORD_BITS = 32
_STATE_BITS = 64


class SymbolEncoder:
    """Writes symbols to one range-coded stream; ``encode`` may be called many times, then ``finish``.

    Range coding after Martin (1979), through constriction, with 32-bit words, a 64-bit state and 24-bit frequencies.
    """

    def __init__(self, tables: SymbolTables) -> None:
        self._tables = tables
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: NDArray[np.int32], indices: NDArray[np.uint8]) -> None:
        """Append symbols, each coded with the table of its index.

        ``symbols``: int32 ``[n]`` in -32767..32767; ``indices``: uint8 ``[n]`` below ``len(tables)``; ``n`` may be 0.
        Raises ``ValueError`` for an index beyond the tables; nothing is written then.
        """
        tables = self._tables
        slots = tables.slots(symbols, indices)
        order = np.argsort(indices, kind="stable")
        slots = slots[order]
        escaped = []
        for index, begin, end in _groups(indices):
            group = slots[begin:end]
            self._coder.encode(group, tables.model(index))
            outside = group > 2 * tables.radii[index]
            if outside.any():
                escaped.append(symbols[order[begin:end][outside]])
        if escaped:
            self._coder.encode(np.concatenate(escaped) + np.int32(_ESCAPE_BIAS), _ESCAPED)

    def finish(self) -> bytes:
        """Return the payload: the shortest bytes that decode to the symbols written (none at all if that suffices)."""
        return _seal(self._coder)


class SymbolDecoder:
    """Reads symbols from a payload; ``decode`` calls must repeat the indices of the ``encode`` calls, in order."""

    def __init__(self, tables: SymbolTables, data: bytes) -> None:
        self._tables = tables
        self._data = bytes(data)
        padded = self._data + bytes(-len(data) % 4)
        self._coder = constriction.stream.queue.RangeDecoder(
            np.frombuffer(padded, dtype=">u4").astype(np.uint32)
        )
        self._read: list[tuple[Any, Any]] = []

    def decode(self, indices: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return the next symbols.

        Shapes, ranges and ``ValueError`` as for ``SymbolEncoder.encode``. Raises ``FormatError`` when no symbol matches the
        data; wrong data may as well decode to other symbols, which a checksum must catch.
        """
        tables = self._tables
        tables.check_indices(indices)
        order = np.argsort(indices, kind="stable")
        values = np.empty(indices.size, dtype=np.int32)
        escaped = []
        for index, begin, end in _groups(indices):
            slots = self._next(tables.model(index), end - begin)
            radius = tables.radii[index]
            np.subtract(slots, radius, out=values[begin:end])
            if slots.max() > 2 * radius:
                escaped.append(begin + np.flatnonzero(slots > 2 * radius))
        if escaped:
            places = np.concatenate(escaped)
            outside = self._next(_ESCAPED, places.size) - np.int32(_ESCAPE_BIAS)
            reach = tables.radii[indices[order[places]]]
            if outside.min() < -MAX_SYMBOL or np.any(np.abs(outside) <= reach):
                raise FormatError("an escape stands for a symbol that needs none")
            values[places] = outside
        symbols = np.empty_like(values)
        symbols[order] = values
        return symbols

    def finish(self) -> None:
        """Check that the payload is exactly what ``SymbolEncoder`` writes for the symbols read.

        Raises ``FormatError`` when bytes are left over. A payload cut short can't be told apart: it is the payload of
        other symbols.
        """
        coder = constriction.stream.queue.RangeEncoder()
        for model, slots in self._read:
            coder.encode(slots, model)
        if _seal(coder) != self._data:
            raise FormatError("the payload does not end with its last symbol")

    def _next(self, model: Any, count: int) -> Any:
        try:
            slots = self._coder.decode(model, count)
        except AssertionError as error:
            raise FormatError("the payload holds a number that stands for no symbol") from error
        self._read.append((model, slots))
        return slots


def _groups(indices: NDArray[np.uint8]) -> list[tuple[int, int, int]]:
    """Return (table index, begin, end) of each run of equal indices once they are sorted."""
    counts = np.bincount(indices)
    present = np.flatnonzero(counts)
    ends = np.cumsum(counts[present])
    return list(zip(present.tolist(), (ends - counts[present]).tolist(), ends.tolist(), strict=True))


def _seal(coder: Any) -> bytes:
    """Return the shortest bytes whose number, continued with zeros, lies in the encoder's final interval.

    Of the numbers with that many bytes it is the smallest.
    """
    words: bytes = coder.get_compressed().astype(">u4").tobytes()
    position, (lower, width) = coder.pos()
    # ``pos`` gives the last 64 bits of the interval's lower end, while carries into the words before it may still be
    # pending. constriction's own sealed number lies in the interval, and that settles them.
    digits = position * _WORD_BITS + _STATE_BITS
    inside = int.from_bytes(words, "big") << (digits - 8 * len(words))
    low = inside - (inside - lower) % (1 << _STATE_BITS)
    for zeros in range(_STATE_BITS, -1, -8):
        number = -(-low >> zeros) << zeros
        if number < low + width:
            payload: bytes = number.to_bytes(digits // 8, "big")
            return payload.rstrip(b"\0")
    raise AssertionError("the interval of a range coder is never empty")
