"""Results side by side: what may be compared, what must be shown beside it, and by how much curves differ."""

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
from slimcodec.evaluation.bootstrap import ENDS, Values, means
from slimcodec.evaluation.results import (
    Curve,
    Point,
    Result,
    load_result,
    point_values,
    uncompressed_values,
)

PUBLISHED = "slimcodec-published-1"
#: resamples for the intervals of BD-rate: each needs both curves drawn anew
BD_RESAMPLES = 200
#: a value with the ends of its 95 % interval
Interval = tuple[float, float, float]
#: share of resamples that may be undefined before no interval is given
UNDEFINED_SHARE = 0.05


@dataclass(frozen=True)
class Published:
    """Curves from a paper: points (bpp, top-1 in percent), and in what they differ from a measured result."""

    title: str
    source: str
    differs: str
    uncompressed: float
    curves: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]


@dataclass(frozen=True)
class Difference:
    """A comparison of two curves with its 95 % interval over resampled photos, None where it is undefined too often."""

    comparison: Comparison
    interval: tuple[float, float] | None


def load_all(paths: Sequence[str | Path]) -> tuple[Result, list[Published]]:
    """The curves of several result files as one result, and the published ones among the files.

    Raises ``SlimError`` for files without a result, for results of other photos, protocols or classifiers than the first, and
    for enhanced curves of SLIM without their controls.
    """
    results, published = [], []
    for path in map(Path, paths):
        found = _published(path)
        if found is not None:
            published.append(found)
        else:
            results.append((path, load_result(path)))
    if not results:
        raise SlimError("no result of slim bench among these files")
    merged = _merged(results)
    require_controls(merged)
    return merged, published


def require_controls(result: Result) -> None:
    """Raises ``SlimError`` where a curve of SLIM that a caption enhances lacks its controls at the same qualities."""
    ladders = {
        (curve.slim, _bundle(curve)): [point.quality for point in curve.points] for curve in result.curves
    }
    for curve in result.curves:
        if curve.slim is None or not curve.slim.enhanced:
            continue
        missing = [
            control.name
            for control in curve.slim.controls()
            if ladders.get((control, _bundle(curve))) != [point.quality for point in curve.points]
        ]
        missing += [] if "caption" in result.photos else ["caption alone"]
        if missing:
            raise SlimError(
                f"{curve.name}: shown only beside its controls, and these are missing: {', '.join(missing)}; run slim bench "
                "with --codecs slim, which measures them, and give its whole result"
            )


def control_points(result: Result, curve: Curve) -> list[tuple[Point, Point, Point]]:
    """For each quality of an enhanced curve its point, that without caption, and that with a wrong one."""
    assert curve.slim is not None
    by_settings = {(other.slim, _bundle(other)): other for other in result.curves}
    none, wrong = (by_settings[control, _bundle(curve)] for control in curve.slim.controls())
    return list(zip(curve.points, none.points, wrong.points, strict=True))


def anchor_curve(result: Result, name: str | None) -> Curve:
    """The curve that others are compared with: of that name, else AVIF, else the first codec that is not SLIM, else the first."""
    by_name = {curve.name: curve for curve in result.curves}
    if name is not None:
        if name not in by_name:
            raise SlimError(f"no curve {name!r}; there are {', '.join(by_name)}")
        return by_name[name]
    peers = [curve for curve in result.curves if curve.slim is None]
    return by_name.get("avif") or (peers[0] if peers else result.curves[0])


def points_of(
    result: Result, curve: Curve, measure: str, rate: str = "bpp"
) -> tuple[list[float], list[float]]:
    """Mean ``rate`` and mean of a measure at each quality; points where no photo has the measure are left out."""
    known = _known(result, curve, measure, rate)
    return (
        [float(values[rate].mean()) for values in known],
        [float(np.nanmean(values[measure])) for values in known],
    )


def compare(
    method: Callable[[CurvePoints, CurvePoints], Comparison],
    result: Result,
    anchor: Curve,
    test: Curve,
    measure: str,
    draws: Values,
    anchor_rate: str = "bpp",
) -> Difference:
    """``method``, ``bd_rate`` or ``bd_score``, of ``test`` against ``anchor`` in a measure, with a paired interval.

    ``draws`` [B, photos] as of ``bootstrap.resamples``: both curves are drawn anew from the same photos each time.
    ``anchor_rate``: "bpp", or "bpp_less_grey" for an anchor that is given its container.
    """
    sides = ((anchor, anchor_rate), (test, "bpp"))
    whole = method(*(points_of(result, curve, measure, rate) for curve, rate in sides))
    drawn = [_drawn(result, curve, measure, draws, rate) for curve, rate in sides]
    values = [
        method(*((rates[:, b].tolist(), scores[:, b].tolist()) for rates, scores in drawn)).value
        for b in range(len(draws))
    ]
    defined = [value for value in values if value is not None]
    if whole.value is None or len(defined) < (1 - UNDEFINED_SHARE) * len(values):
        return Difference(whole, None)
    low, high = np.percentile(defined, ENDS)
    return Difference(whole, (float(low), float(high)))


def relative_at(result: Result, curve: Curve, judge: str, bpp: float, draws: Values) -> Interval | None:
    """Top-1 at a rate, in percent of uncompressed top-1, with its interval; linear in the logarithm of the rate between points.

    None where the curve does not reach the rate, an interval of NaN where too many resamples do not.
    """
    measure = f"top1 {judge}"
    rates, scores = points_of(result, curve, measure)
    reference = uncompressed_values(result)[measure]
    whole = _at(np.array(rates), np.array(scores), bpp)
    if whole is None:
        return None
    drawn_rates, drawn_scores = _drawn(result, curve, measure, draws)
    found = [
        None if (score := _at(drawn_rates[:, b], drawn_scores[:, b], bpp)) is None else score / total
        for b, total in enumerate(means(reference, draws))
    ]
    known = [100 * value for value in found if value is not None]
    enough = len(known) >= (1 - UNDEFINED_SHARE) * len(found)
    low, high = np.percentile(known, ENDS) if enough else (np.nan, np.nan)
    return float(100 * whole / reference.mean()), float(low), float(high)


def _at(rates: Values, scores: Values, bpp: float) -> float | None:
    order = np.argsort(rates)
    # the same mean may differ in its last bit when it is taken in another order
    if not len(rates) or not rates[order[0]] * (1 - 1e-9) <= bpp <= rates[order[-1]] * (1 + 1e-9):
        return None
    return float(np.interp(np.log(bpp), np.log(rates[order]), scores[order]))


def _known(result: Result, curve: Curve, measure: str, rate: str) -> list[dict[str, Values]]:
    """The values of the points that have a measure, and a rate above 0 on average."""
    columns = [point_values(result, point) for point in curve.points]
    return [
        values
        for values in columns
        if rate in values
        and float(values[rate].mean()) > 0
        and measure in values
        and not np.isnan(values[measure]).all()
    ]


def _drawn(
    result: Result, curve: Curve, measure: str, draws: Values, rate: str = "bpp"
) -> tuple[Values, Values]:
    """Rates and scores of the curve's points in each resample, [points, B] each."""
    known = _known(result, curve, measure, rate)
    if not known:
        return np.zeros((0, len(draws))), np.zeros((0, len(draws)))
    rates = [means(values[rate], draws) for values in known]
    return np.stack(rates), np.stack([means(values[measure], draws) for values in known])


def _bundle(curve: Curve) -> str:
    return str((curve.described.get("bundle") or {}).get("weights_sha256"))


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
    return Result(first.described, photos, tuple(curves))


def _identity(described: Any) -> Any:
    """A data set's hash, or what there is: its file may have another name elsewhere."""
    if isinstance(described, Mapping) and "sha256" in described:
        return described["sha256"]
    return described


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
