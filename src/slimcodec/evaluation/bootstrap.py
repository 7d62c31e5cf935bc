"""Intervals by resampling photos, with the same resamples for every curve, so that differences are paired."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 20251218
#: ends of the interval, in percent
ENDS = (2.5, 97.5)
Values = NDArray[np.float64]


def resamples(photos: int, count: int = RESAMPLES, seed: int = SEED) -> Values:
    """How often each photo is drawn in each resample: [count, photos], rows summing to ``photos`` (Efron 1979)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(photos, np.full(photos, 1 / photos), size=count).astype(np.float64)


def means(values: Values, draws: Values) -> Values:
    """The mean of ``values`` [photos] in each resample, [count]; NaN values are left out."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Values = draws @ np.where(known, values, 0.0) / (draws @ known.astype(np.float64))
    return result


def interval(values: Values, draws: Values) -> tuple[float, float, float] | None:
    """Mean and 95 % percentile interval of ``values`` [photos] over photos; None where all are NaN."""
    if np.isnan(values).all():
        return None
    low, high = np.nanpercentile(means(values, draws), ENDS)
    return float(np.nanmean(values)), float(low), float(high)
