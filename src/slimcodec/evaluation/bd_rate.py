"""Two curves in one number: BD-rate and its counterpart on the other axis, over the part where both curves exist.

Bjøntegaard's method (VCEG-M33, 2001) with piecewise cubic Hermite interpolation (PCHIP) in place of one cubic, on the
logarithm of the rate. Curves for machines saturate and sometimes fall, and a rate as a function of accuracy must not: for
BD-rate a curve is reduced to the points that are better than every point of lower rate. The number of points left out is
part of the result. For BD-accuracy all points are used, since accuracy is a function of rate however it moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Values = NDArray[np.float64]
#: a curve: rates (bpp, above 0) and scores (top-1, dB, any measure of which more is better)
CurvePoints = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Comparison:
    """``value``: percent of rate, or points of score, of the second curve against the first; None = undefined.

    ``low``, ``high``: the overlap, in the score for BD-rate and in bpp for BD-accuracy; None where there is none.
    ``share``: the overlap as a share of what the two curves cover together. ``dropped``: points of both curves left out.
    """

    value: float | None
    low: float | None
    high: float | None
    share: float
    dropped: int


def bd_rate(anchor: CurvePoints, test: CurvePoints) -> Comparison:
    """Mean difference of rate at equal score, percent: -30 means that ``test`` needs 30 % fewer bits than ``anchor``."""
    (rate_a, score_a), (rate_b, score_b) = improving(*anchor), improving(*test)
    dropped = len(anchor[0]) + len(test[0]) - len(rate_a) - len(rate_b)
    difference, low, high, share = _mean_difference(score_a, np.log10(rate_a), score_b, np.log10(rate_b))
    value = None if difference is None else float(100 * (10**difference - 1))
    return Comparison(value, low, high, share, dropped)


def bd_score(anchor: CurvePoints, test: CurvePoints) -> Comparison:
    """Mean difference of score at equal rate, in units of the score: +5 means that ``test`` is 5 points better."""
    (rate_a, score_a), (rate_b, score_b) = one_score_per_rate(*anchor), one_score_per_rate(*test)
    dropped = len(anchor[0]) + len(test[0]) - len(rate_a) - len(rate_b)
    difference, low, high, share = _mean_difference(np.log10(rate_a), score_a, np.log10(rate_b), score_b)
    ends = [None if end is None else float(10**end) for end in (low, high)]
    return Comparison(difference, ends[0], ends[1], share, dropped)


def improving(rates: Sequence[float], scores: Sequence[float]) -> tuple[Values, Values]:
    """The points, by rate, that are better than every point of lower or equal rate."""
    rate, score = one_score_per_rate(rates, scores)
    best = np.concatenate([[-np.inf], np.maximum.accumulate(score)[:-1]])
    return rate[score > best], score[score > best]


def one_score_per_rate(rates: Sequence[float], scores: Sequence[float]) -> tuple[Values, Values]:
    """The points sorted by rate; of several at one rate the best."""
    rate, score = np.asarray(rates, np.float64), np.asarray(scores, np.float64)
    order = np.lexsort((score, rate))
    rate, score = rate[order], score[order]
    last = np.append(rate[1:] != rate[:-1], True)[: len(rate)]
    return rate[last], score[last]


def _mean_difference(
    x_a: Values, y_a: Values, x_b: Values, y_b: Values
) -> tuple[float | None, float | None, float | None, float]:
    """Mean of y_b - y_a where both curves have an x, that overlap, and its share of the x that either has."""
    if min(len(x_a), len(x_b)) < 2:
        return None, None, None, 0.0
    low, high = max(x_a[0], x_b[0]), min(x_a[-1], x_b[-1])
    if low >= high:
        return None, None, None, 0.0
    areas = [float(PchipInterpolator(x, y).integrate(low, high)) for x, y in ((x_a, y_a), (x_b, y_b))]
    share = (high - low) / (max(x_a[-1], x_b[-1]) - min(x_a[0], x_b[0]))
    return (areas[1] - areas[0]) / (high - low), float(low), float(high), float(share)
