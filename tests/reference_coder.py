"""The payload of docs/format.md in plain Python integers: slow, and independent of numpy and constriction."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

TOTAL_BITS = 24
TOTAL = 1 << TOTAL_BITS
ESCAPE_BIAS = 1 << 15

Table = Sequence[int]  # frequencies of -R..R, then of the escape
Call = tuple[Sequence[int], Sequence[int]]  # symbols and table indices of one call


class NoSymbol(Exception):
    """The payload stands for no symbols."""


def _order(indices: Sequence[int]) -> list[int]:
    return sorted(range(len(indices)), key=lambda place: indices[place])


def encode(tables: Sequence[Table], calls: Sequence[Call]) -> bytes:
    """Return the payload of several calls; the interval's lower end is one unbounded integer, so carries need no care."""
    low, width, words = 0, (1 << 64) - 1, 0

    def put(cumulative: int, frequency: int) -> None:
        nonlocal low, width, words
        unit = width >> TOTAL_BITS
        low += unit * cumulative
        width = unit * frequency
        if width < 1 << 32:
            low, width, words = low << 32, width << 32, words + 1

    for symbols, indices in calls:
        escaped = []
        for place in _order(indices):
            table, symbol = tables[indices[place]], symbols[place]
            radius = len(table) // 2 - 1
            slot = symbol + radius
            if abs(symbol) > radius:
                slot = 2 * radius + 1
                escaped.append(symbol)
            put(sum(table[:slot]), table[slot])
        for symbol in escaped:
            put((symbol + ESCAPE_BIAS) << 8, 1 << 8)

    digits = 64 + 32 * words
    for size in range(digits // 8 + 1):
        unit = 1 << (digits - 8 * size)
        number = (low + unit - 1) // unit
        if number * unit < low + width:
            return number.to_bytes(size, "big")
    raise AssertionError


class ReferenceDecoder:
    """Reads a payload call by call; only the distance of its number from the interval's lower end is kept."""

    def __init__(self, tables: Sequence[Table], payload: bytes) -> None:
        self.tables, self.payload = tables, payload
        self.cumulatives = [list(accumulate(table, initial=0)) for table in tables]
        self.position, self.width = 8, (1 << 64) - 1
        self.distance = int.from_bytes(payload[:8].ljust(8, b"\0"), "big")

    def decode(self, indices: Sequence[int]) -> list[int]:
        """Return the symbols of one call."""
        symbols = [0] * len(indices)
        escaped = []
        for place in _order(indices):
            table, cumulative = self.tables[indices[place]], self.cumulatives[indices[place]]
            radius = len(table) // 2 - 1
            slot = bisect_right(cumulative, self._target()) - 1
            self._take(cumulative[slot], table[slot])
            symbols[place] = slot - radius
            if symbols[place] > radius:
                escaped.append((place, radius))
        for place, radius in escaped:
            number = self._target() >> 8
            self._take(number << 8, 1 << 8)
            symbols[place] = number - ESCAPE_BIAS
            if symbols[place] == -ESCAPE_BIAS or abs(symbols[place]) <= radius:
                raise NoSymbol
        return symbols

    def _target(self) -> int:
        value = self.distance // (self.width >> TOTAL_BITS)
        if value >= TOTAL:
            raise NoSymbol
        return value

    def _take(self, cumulative: int, frequency: int) -> None:
        unit = self.width >> TOTAL_BITS
        self.distance -= unit * cumulative
        self.width = unit * frequency
        if self.width < 1 << 32:
            word = int.from_bytes(self.payload[self.position : self.position + 4].ljust(4, b"\0"), "big")
            self.distance, self.width, self.position = (
                self.distance << 32 | word,
                self.width << 32,
                self.position + 4,
            )


def decode(tables: Sequence[Table], payload: bytes, calls: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the symbols of each call's indices."""
    decoder = ReferenceDecoder(tables, payload)
    return [decoder.decode(indices) for indices in calls]
