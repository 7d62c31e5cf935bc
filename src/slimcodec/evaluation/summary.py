"""Results summarised: means with bootstrap intervals, curves compared, and what must be shown beside each other.

Photos are resampled, the same for every curve, so that differences are paired.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slimcodec.errors import SlimError
from slimcodec.evaluation.bd_rate import Comparison, CurvePoints
from slimcodec.evaluation.measures import mean_average_precision
from slimcodec.evaluation.results import MeasuredCurve, Point, Result, Values, load_result

PUBLISHED = "slimcodec-published-1"
RESAMPLES, SEED = 1000, 20251218
#: resamples for the intervals of BD-rate: each needs both curves drawn anew
BD_RESAMPLES = 200
#: ends of the interval, in percent
ENDS = (2.5, 97.5)
#: share of resamples that may be undefined before no interval is given
UNDEFINED_SHARE = 0.05
#: a mean with the ends of its 95 % interval, which are NaN where there is none
Interval = tuple[float, float, float]


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


def interval(values: Values, draws: Values) -> Interval | None:
    """Mean and 95 % percentile interval of ``values`` [photos] over photos; None where all are NaN."""
    if np.isnan(values).all():
        return None
    low, high = np.nanpercentile(means(values, draws), ENDS)
    return float(np.nanmean(values)), float(low), float(high)


@dataclass(frozen=True)
class Summary:
    """A result with the mean and interval of every measure, computed once; None where no photo has the measure.

    ``points``: by curve name and quality, measures as in ``results.Point`` and map50, which has no interval; ``draws``: the
    resamples.
    """

    result: Result
    uncompressed: Mapping[str, Interval | None]
    points: Mapping[tuple[str, int], Mapping[str, Interval | None]]
    draws: Values

    def has(self, measure: str) -> bool:
        """Whether any point has a measure."""
        return any(point.get(measure) for point in self.points.values())


def summarise(result: Result) -> Summary:
    """The summary of a result."""
    draws = resamples(len(result))

    def of(values: Mapping[str, Values]) -> dict[str, Interval | None]:
        return {name: interval(column, draws) for name, column in values.items()}

    points = {}
    for curve in result.curves:
        for point in curve.points:
            points[curve.name, point.quality] = of(point.values)
            if point.detections is not None:
                precision = mean_average_precision(point.detections, result.photos["objects"])
                points[curve.name, point.quality]["map50"] = (
                    None if precision is None else (precision, np.nan, np.nan)
                )
    return Summary(result, of(result.uncompressed), points, draws)


@dataclass(frozen=True)
class Published:
    """Curves from a paper: points (bpp, top-1 in percent), and in what they differ from a measured result."""

    title: str
    source: str
    differs: str
    uncompressed: float
    curves: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]


def load_all(paths: Sequence[str | Path]) -> tuple[Result, list[Published]]:
    """The curves of several result files as one result, and the published ones among the files.

    Raises ``SlimError`` for files without a result, for results of other photos, protocols or classifiers than the first, and
    for enhanced curves of SLIM without their controls.
    """
    results, published = [], []
    for path in map(Path, paths):
        curves = _published(path)
        if curves is not None:
            published.append(curves)
        else:
            results.append((path, load_result(path)))
    if not results:
        raise SlimError("no result of slim bench among these files")
    merged = _merged(results)
    require_controls(merged)
    return merged, published


def require_controls(result: Result) -> None:
    """Raises ``SlimError`` where a curve of SLIM that a caption enhances lacks its controls at the same qualities."""
    qualities = {(curve.slim, _weights(curve)): curve.qualities for curve in result.curves}
    for curve in result.curves:
        if curve.slim is None or not curve.slim.enhanced:
            continue
        missing = [
            control.name
            for control in curve.slim.controls()
            if qualities.get((control, _weights(curve))) != curve.qualities
        ]
        missing += [] if "caption" in result.photos else ["caption alone"]
        if missing:
            raise SlimError(
                f"{curve.name}: shown only beside its controls, and these are missing: {', '.join(missing)}; run slim bench "
                "with --codecs slim, which measures them, and give its whole result"
            )


def control_curves(result: Result, curve: MeasuredCurve) -> tuple[MeasuredCurve, MeasuredCurve]:
    """The controls of an enhanced curve: without caption, and with a wrong one."""
    assert curve.slim is not None
    by_settings = {(other.slim, _weights(other)): other for other in result.curves}
    none, wrong = (by_settings[control, _weights(curve)] for control in curve.slim.controls())
    return none, wrong


def anchor_curve(result: Result, name: str | None) -> MeasuredCurve:
    """The curve that others are compared with: of that name, else AVIF, else the first codec that is not SLIM, else the first."""
    by_name = {curve.name: curve for curve in result.curves}
    if name is not None:
        if name not in by_name:
            raise SlimError(f"no curve {name!r}; there are {', '.join(by_name)}")
        return by_name[name]
    peers = [curve for curve in result.curves if curve.slim is None]
    return by_name.get("avif") or (peers[0] if peers else result.curves[0])


@dataclass(frozen=True)
class Difference:
    """A comparison of two curves with its 95 % interval over resampled photos, None where it is undefined too often."""

    comparison: Comparison
    interval: tuple[float, float] | None


def compare(
    method: Callable[[CurvePoints, CurvePoints], Comparison],
    anchor: MeasuredCurve,
    test: MeasuredCurve,
    measure: str,
    draws: Values,
    anchor_rate: str = "bpp",
) -> Difference:
    """``method``, ``bd_rate`` or ``bd_score``, of ``test`` against ``anchor`` in a measure, with a paired interval.

    ``draws`` [B, photos] as of ``resamples``: both curves are drawn anew from the same photos each time.
    ``anchor_rate``: "bpp", or "bpp_less_grey" for an anchor that is given its container.
    """
    sides = ((anchor, anchor_rate), (test, "bpp"))
    whole = method(*(_means_of(curve, measure, rate) for curve, rate in sides))
    drawn = [_drawn(curve, measure, draws, rate) for curve, rate in sides]
    values = [
        method(*((rates[:, b].tolist(), scores[:, b].tolist()) for rates, scores in drawn)).value
        for b in range(len(draws))
    ]
    defined = [value for value in values if value is not None]
    if whole.value is None or len(defined) < (1 - UNDEFINED_SHARE) * len(values):
        return Difference(whole, None)
    low, high = np.percentile(defined, ENDS)
    return Difference(whole, (float(low), float(high)))


def relative_at(
    result: Result, curve: MeasuredCurve, judge: str, bpp: float, draws: Values
) -> Interval | None:
    """Top-1 at a rate, in percent of uncompressed top-1, with its interval; linear in the logarithm of the rate between points.

    None where the curve does not reach the rate, an interval of NaN where too many resamples do not.
    """
    measure = f"top1 {judge}"
    reference = result.uncompressed[measure]
    rates, scores = map(np.array, _means_of(curve, measure))
    whole = _at(rates, scores, bpp)
    if whole is None:
        return None
    rates, scores = _drawn(curve, measure, draws)
    drawn = [_at(rates[:, b], scores[:, b], bpp) for b in range(len(draws))]
    totals = means(reference, draws)
    known = [100 * (score / total) for score, total in zip(drawn, totals, strict=True) if score is not None]
    enough = len(known) >= (1 - UNDEFINED_SHARE) * len(drawn)
    low, high = np.percentile(known, ENDS) if enough else (np.nan, np.nan)
    return float(100 * whole / reference.mean()), float(low), float(high)


def _at(rates: Values, scores: Values, bpp: float) -> float | None:
    order = np.argsort(rates)
    # the same mean may differ in its last bit when it is taken in another order
    if not len(rates) or not rates[order[0]] * (1 - 1e-9) <= bpp <= rates[order[-1]] * (1 + 1e-9):
        return None
    return float(np.interp(np.log(bpp), np.log(rates[order]), scores[order]))


def _known(curve: MeasuredCurve, measure: str, rate: str) -> list[Point]:
    """The points that have a measure, and a rate above 0 on average."""
    return [
        point
        for point in curve.points
        if rate in point.values
        and float(point.values[rate].mean()) > 0
        and measure in point.values
        and not np.isnan(point.values[measure]).all()
    ]


def _means_of(curve: MeasuredCurve, measure: str, rate: str = "bpp") -> CurvePoints:
    """Mean ``rate`` and mean of a measure at each quality; points where no photo has the measure are left out."""
    points = _known(curve, measure, rate)
    return (
        [float(point.values[rate].mean()) for point in points],
        [float(np.nanmean(point.values[measure])) for point in points],
    )


def _drawn(curve: MeasuredCurve, measure: str, draws: Values, rate: str = "bpp") -> tuple[Values, Values]:
    """Rates and scores of the curve's points in each resample, [points, B] each."""
    points = _known(curve, measure, rate)
    if not points:
        return np.zeros((0, len(draws))), np.zeros((0, len(draws)))
    rates, scores = (
        np.stack([means(point.values[name], draws) for point in points]) for name in (rate, measure)
    )
    return rates, scores


def _weights(curve: MeasuredCurve) -> str:
    return str(curve.bundle.get("weights_sha256"))


def _merged(results: Sequence[tuple[Path, Result]]) -> Result:
    first_path, first = results[0]
    for path, result in results[1:]:
        for what, key in (("photos", "dataset"), ("protocol", "protocol"), ("classifiers", "classifiers")):
            if _identity(result.described[key]) != _identity(first.described[key]):
                raise SlimError(f"{path} and {first_path} have other {what}: report them apart")
    times = Counter(curve.name for _, result in results for curve in result.curves)
    curves = [
        replace(curve, name=f"{curve.name} ({path.stem})") if times[curve.name] > 1 else curve
        for path, result in results
        for curve in result.curves
    ]
    if len({curve.name for curve in curves}) < len(curves):
        raise SlimError("a result was given twice, or two files have one name and the same curves")
    photos = {key: value for _, result in reversed(results) for key, value in result.photos.items()}
    uncompressed = {k: v for _, result in reversed(results) for k, v in result.uncompressed.items()}
    return Result(first.described, photos, uncompressed, tuple(curves))


def _identity(described: Any) -> Any:
    """A data set's hash, or what there is: its file may have another name elsewhere."""
    return described["sha256"] if isinstance(described, Mapping) and "sha256" in described else described


def _published(path: Path) -> Published | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SlimError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SlimError(f"{path}: no JSON; give results of slim bench") from error
    if not isinstance(body, dict) or body.get("format") != PUBLISHED:
        return None
    try:
        return Published(
            body["title"],
            body["source"],
            body["differs"],
            float(body["uncompressed"]),
            tuple((c["name"], tuple((float(x), float(y)) for x, y in c["points"])) for c in body["curves"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SlimError(
            f"{path}: published points need title, source, differs, uncompressed, curves"
        ) from error
