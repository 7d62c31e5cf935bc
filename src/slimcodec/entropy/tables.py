"""Integer frequency tables of the range coder: one per scale index, exactly what is coded and what a bundle stores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import ceil, erf, erfc, sqrt
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

PRECISION = 24
TOTAL = 1 << PRECISION
MAX_TABLES = 256
MAX_SYMBOL = 32767
ESCAPE_BITS = 16
ESCAPE_PROBABILITY = 2.0**-19


class SymbolTables:
    """Frequency tables of integer symbols, each over ``-R..R`` and an escape, and the coder's models made of them.

    ``frequencies``: uint32, all tables one after another, each ``2R + 2`` entries long in the order ``-R..R``, escape;
    every entry is at least 1 and every table sums to 2**24. ``radii``: int32 ``[tables]``, the ``R`` of each table.
    Both arrays are read-only. Raises ``ValueError`` when they break these rules.
    """

    def __init__(self, frequencies: NDArray[np.integer[Any]], radii: NDArray[np.integer[Any]]) -> None:
        if radii.ndim != 1 or radii.dtype.kind not in "iu" or not 1 <= radii.size <= MAX_TABLES:
            raise ValueError(f"radii must be 1 to {MAX_TABLES} integers in one dimension")
        if radii.min() < 0 or radii.max() > MAX_SYMBOL:
            raise ValueError(f"radii must lie in 0..{MAX_SYMBOL}")
        sizes = 2 * radii.astype(np.int64) + 2
        if frequencies.dtype.kind not in "iu" or frequencies.shape != (int(sizes.sum()),):
            raise ValueError(f"frequencies must be {int(sizes.sum())} integers in one dimension")
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        if frequencies.min() < 1 or frequencies.max() >= TOTAL:
            raise ValueError("every frequency must be at least 1")
        if np.any(np.add.reduceat(frequencies.astype(np.int64), offsets[:-1]) != TOTAL):
            raise ValueError(f"the frequencies of every table must sum to {TOTAL}")
        self.frequencies: NDArray[np.uint32] = frequencies.astype(np.uint32)
        self.radii: NDArray[np.int32] = radii.astype(np.int32)
        self.frequencies.flags.writeable = False
        self.radii.flags.writeable = False
        self._offsets = offsets
        self._models: list[Any] = [None] * radii.size

    @classmethod
    def gaussian(cls, scales: Sequence[float] | NDArray[np.float64]) -> SymbolTables:
        """Return the tables of zero-mean Gaussians discretised to integers.

        ``scales``: 1 to 256 positive standard deviations in symbol units. Table ``i`` reaches ``R = ceil(6 scale) + 2``.
        Raises ``ValueError`` for scales that are not positive or too large.
        """
        values = [float(scale) for scale in scales]
        if not all(0 < scale <= MAX_SYMBOL / 8 for scale in values):
            raise ValueError(f"scales must be positive and at most {MAX_SYMBOL / 8:.0f}")
        halves = [_gaussian_half(scale) for scale in values]
        return cls._from_halves(halves, [ESCAPE_PROBABILITY] * len(halves))

    @classmethod
    def from_counts(
        cls,
        scales: Sequence[float] | NDArray[np.float64],
        counts: NDArray[np.integer[Any]],
        strength: float = 16.0,
    ) -> SymbolTables:
        """Return tables fitted to counted symbols: the Gaussian tables mixed with the counts, made symmetric.

        ``counts``: those of ``count`` by ``SymbolTables.gaussian(scales)``, or sums of them. ``strength`` > 0: the Gaussian
        weighs as much as ``strength`` counted symbols per table entry, so that a rarely used table stays close to its Gaussian.
        """
        prior = cls.gaussian(scales)
        halves, escapes = [], []
        for index, radius in enumerate(prior.radii.tolist()):
            entries = slice(prior._offsets[index], prior._offsets[index + 1])
            gaussian = prior.frequencies[entries] / TOTAL
            mixed = counts[entries].astype(np.float64) + strength * gaussian.size * gaussian
            mixed /= mixed.sum()
            halves.append(0.5 * (mixed[radius:-1] + mixed[radius::-1]))
            escapes.append(float(mixed[-1]))
        return cls._from_halves(halves, escapes)

    @classmethod
    def _from_halves(cls, halves: Sequence[NDArray[np.float64]], escapes: Sequence[float]) -> SymbolTables:
        tables = [_quantise(half, escape) for half, escape in zip(halves, escapes, strict=True)]
        return cls(np.concatenate(tables), np.array([half.size - 1 for half in halves], dtype=np.int32))

    def __len__(self) -> int:
        return int(self.radii.size)

    def __reduce__(self) -> tuple[Any, ...]:
        # The cached models are Rust objects that cannot be pickled; the two arrays are everything.
        return (SymbolTables, (self.frequencies, self.radii))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the tables as a bundle stores them, beside the other tensors of its prior."""
        return {"tables.frequencies": self.frequencies, "tables.radii": self.radii}

    def bits(self, symbols: NDArray[np.int32], indices: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the ideal cost of every symbol under its table, escapes included.

        ``symbols``: int32 ``[n]`` in -32767..32767; ``indices``: uint8 ``[n]``, table of each symbol. Returns float64
        ``[n]`` in bits; a whole payload is at most about a byte longer than the sum. Raises as ``check_indices``.
        """
        slots = self.slots(symbols, indices)
        escaped = slots > 2 * self.radii[indices]
        return self._costs[self._offsets[indices] + slots] + ESCAPE_BITS * escaped

    def count(self, symbols: NDArray[np.int32], indices: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return how often every table entry occurs, int64, in the layout of ``frequencies``; arguments as for ``bits``."""
        flat = self._offsets[indices] + self.slots(symbols, indices)
        return np.bincount(flat, minlength=self.frequencies.size)

    def slots(self, symbols: NDArray[np.int32], indices: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return each symbol's position in its table: ``symbol + R``, or ``2R + 1`` (the escape) outside ``-R..R``."""
        self.check_indices(indices)
        radii = self.radii[indices]
        return np.where(np.abs(symbols) <= radii, symbols + radii, 2 * radii + 1)

    def check_indices(self, indices: NDArray[np.uint8]) -> None:
        """Raise ``ValueError`` unless ``indices``, which a bundle's graphs give, are below ``len(self)``."""
        if indices.size and indices.max() >= len(self):
            raise ValueError(f"table index {indices.max()} is out of range: there are {len(self)} tables")

    def model(self, index: int) -> Any:
        """Return constriction's model of table ``index``, built on first use and kept."""
        model = self._models[index]
        if model is None:
            entries = self.frequencies[self._offsets[index] : self._offsets[index + 1]]
            # Categorical(perfect=False) gives entry k the cumulative floor(sum(p[:k]) * (2**24 - K) / sum(p)) + k, with
            # K entries. Passing frequencies less one makes the quotient exactly 1 and every float an exact integer,
            # so that the cumulatives are our own, to the last unit.
            model = constriction.stream.model.Categorical(entries.astype(np.float64) - 1.0, perfect=False)
            self._models[index] = model
        return model

    @cached_property
    def _costs(self) -> NDArray[np.float64]:
        return PRECISION - np.log2(self.frequencies)


def _gaussian_half(scale: float) -> NDArray[np.float64]:
    """Return P(0..R) of the discretised Gaussian; tails through erfc, which keeps its digits where 1 - erf loses them."""
    radius = ceil(6 * scale) + 2
    unit = scale * sqrt(2.0)
    tails = np.array([0.5 * erfc((k + 0.5) / unit) for k in range(radius + 1)])
    return np.concatenate([[erf(0.5 / unit)], tails[:-1] - tails[1:]])


def _quantise(half: NDArray[np.float64], escape: float) -> NDArray[np.uint32]:
    """Return integer frequencies of -R..R and the escape from P(0..R) and P(escape), summing to 2**24, all at least 1.

    Differences of floored tail sums leave less than three units of rounding in all, and those go to symbol 0.
    """
    radius = half.size - 1
    free = TOTAL - (2 * radius + 2)
    half = half * ((1.0 - escape) / (half[0] + 2.0 * half[1:].sum()))
    tails = np.append(np.floor(free * np.cumsum(half[::-1])[::-1]), 0.0).astype(np.int64)
    side = 1 + tails[1:-1] - tails[2:]
    last = 1 + int(free * escape)
    zero = TOTAL - last - 2 * int(side.sum())
    return np.concatenate([side[::-1], [zero], side, [last]]).astype(np.uint32)
