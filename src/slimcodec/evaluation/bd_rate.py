"""Two curves in one number: BD-rate and its counterpart on the other axis, over the part where both curves exist.

Bjøntegaard's method (VCEG-M33, 2001) with piecewise cubic Hermite interpolation (PCHIP) in place of one cubic, on the
logarithm of the rate. Curves for machines saturate and sometimes fall, and a rate as a function of accuracy must not: for
BD-rate a curve is reduced to the points that are better than every point of lower rate. The number of points left out is
part of the result. For BD-accuracy all points are used, since accuracy is a function of rate however it moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator

from slimcodec.evaluation.results import ENDS, Interval, MeasuredCurve, Result, Values, means, resamples

#: a curve: rates (bpp, above 0) and scores (top-1, dB, any measure of which more is better)
CurvePoints = tuple[ArrayLike, ArrayLike]
#: resamples for the intervals: each needs both curves drawn anew
BD_RESAMPLES = 200
#: share of resamples that may be undefined before no interval is given
UNDEFINED_SHARE = 0.05


@dataclass(frozen=True)
class Comparison:
    """``value``: percent of rate, or points of score, of the second curve against the first; None = undefined.

    ``low``, ``high``: the overlap, in the score for BD-rate and in bpp for BD-accuracy; None where there is none.
    ``share``: the overlap as a share of what the two curves cover together. ``dropped``: points of both curves left out.
    ``interval``: 95 % interval of the value over resampled photos, None where it is undefined too often.
    """

    value: float | None
    low: float | None
    high: float | None
    share: float
    dropped: int
    interval: tuple[float, float] | None = None


def bd_rate(anchor: CurvePoints, test: CurvePoints) -> Comparison:
    """Mean difference of rate at equal score, percent: -30 means that ``test`` needs 30 % fewer bits than ``anchor``."""
    curves = [improving(*curve) for curve in (anchor, test)]
    found = _mean_difference([(score, np.log10(rate)) for rate, score in curves], anchor, test)
    return replace(found, value=None if found.value is None else 100 * (10**found.value - 1))


def bd_score(anchor: CurvePoints, test: CurvePoints) -> Comparison:
    """Mean difference of score at equal rate, in units of the score: +5 means that ``test`` is 5 points better."""
    curves = [one_score_per_rate(*curve) for curve in (anchor, test)]
    found = _mean_difference([(np.log10(rate), score) for rate, score in curves], anchor, test)
    low, high = (None if end is None else 10**end for end in (found.low, found.high))
    return replace(found, low=low, high=high)


def improving(rates: ArrayLike, scores: ArrayLike) -> tuple[Values, Values]:
    """The points, by rate, that are better than every point of lower or equal rate."""
    rate, score = one_score_per_rate(rates, scores)
    best = np.concatenate([[-np.inf], np.maximum.accumulate(score)[:-1]])
    return rate[score > best], score[score > best]


def one_score_per_rate(rates: ArrayLike, scores: ArrayLike) -> tuple[Values, Values]:
    """The points sorted by rate; of several at one rate the best."""
    rate, score = np.asarray(rates, np.float64), np.asarray(scores, np.float64)
    order = np.lexsort((score, rate))
    rate, score = rate[order], score[order]
    last = np.append(rate[1:] != rate[:-1], True)[: len(rate)]
    return rate[last], score[last]


def _mean_difference(
    curves: Sequence[tuple[Values, Values]], anchor: CurvePoints, test: CurvePoints
) -> Comparison:
    """Mean difference in y of two ``curves`` (x, y) where both have an x, that overlap, and its share of the x of either."""
    x_a, x_b = (x for x, _ in curves)
    dropped = np.size(anchor[0]) + np.size(test[0]) - len(x_a) - len(x_b)
    if min(len(x_a), len(x_b)) < 2 or max(x_a[0], x_b[0]) >= min(x_a[-1], x_b[-1]):
        return Comparison(None, None, None, 0.0, dropped)
    low, high = float(max(x_a[0], x_b[0])), float(min(x_a[-1], x_b[-1]))
    area_a, area_b = (float(PchipInterpolator(x, y).integrate(low, high)) for x, y in curves)
    share = (high - low) / float(max(x_a[-1], x_b[-1]) - min(x_a[0], x_b[0]))
    return Comparison((area_b - area_a) / (high - low), low, high, share, dropped)


def compare(
    method: Callable[[CurvePoints, CurvePoints], Comparison],
    anchor: MeasuredCurve,
    test: MeasuredCurve,
    measure: str,
    anchor_rate: str = "bpp",
) -> Comparison:
    """``method``, ``bd_rate`` or ``bd_score``, of ``test`` against ``anchor`` in a measure, with a paired interval.

    ``anchor_rate``: "bpp", or "bpp_less_grey" for an anchor that is given its container.
    """
    pairs = zip(_resampled(anchor, measure, anchor_rate), _resampled(test, measure), strict=True)
    whole, *drawn = (method(*pair) for pair in pairs)
    ends = _ends([one.value for one in drawn])
    return whole if whole.value is None or ends is None else replace(whole, interval=ends)


def relative_at(result: Result, curve: MeasuredCurve, judge: str, bpp: float) -> Interval | None:
    """Top-1 at a rate, in percent of uncompressed top-1, with its interval; linear in the logarithm of the rate between points.

    None where the curve does not reach the rate, or no uncompressed photo is right; an interval of NaN where too many resamples do not.
    """
    measure = f"top1 {judge}"
    totals = means(result.uncompressed[measure], _draws(len(result)))
    scores = [_at(rates, scores, bpp) for rates, scores in _resampled(curve, measure)]
    whole, *drawn = (
        None if score is None or not total else float(100 * (score / total))
        for score, total in zip(scores, totals, strict=True)
    )
    return None if whole is None else (whole, *(_ends(drawn) or (np.nan, np.nan)))


def _ends(values: Sequence[float | None]) -> tuple[float, float] | None:
    """The interval of a value in resamples, None where too many are undefined."""
    defined = [value for value in values if value is not None]
    if len(defined) < (1 - UNDEFINED_SHARE) * len(values):
        return None
    low, high = np.percentile(defined, ENDS)
    return float(low), float(high)


def _at(rates: Values, scores: Values, bpp: float) -> float | None:
    order = np.argsort(rates)
    # the same mean may differ in its last bit when it is taken in another order
    if not len(rates) or not rates[order[0]] * (1 - 1e-9) <= bpp <= rates[order[-1]] * (1 + 1e-9):
        return None
    return float(np.interp(np.log(bpp), np.log(rates[order]), scores[order]))


def _draws(photos: int) -> Values:
    """How often each photo counts: once each, then in every resample."""
    return np.vstack([np.ones(photos), resamples(photos, BD_RESAMPLES)])


def _resampled(curve: MeasuredCurve, measure: str, rate: str = "bpp") -> list[tuple[Values, Values]]:
    """The curve's rates and scores over all photos, then in each resample, without points that lack one of them."""
    known = [
        point.values
        for point in curve.points
        if point.summary.get(measure) and rate in point.values and point.values[rate].mean() > 0
    ]
    if not known:
        return [(np.zeros(0), np.zeros(0))] * (1 + BD_RESAMPLES)
    draws = _draws(len(known[0][rate]))
    rates, scores = (
        np.stack([means(values[name], draws) for values in known], 1) for name in (rate, measure)
    )
    return list(zip(rates, scores, strict=True))
