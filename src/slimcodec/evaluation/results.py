"""The long table of a run: a number for every photo, codec, quality, setting and measure, kept as JSON by columns.

A column holds one measure of one curve at one quality, in the order of the photos: a file of as many rows would be thirty
times as large. Means have bootstrap intervals over photos, which are resampled alike for every curve: differences are paired.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimcodec.errors import SlimError
from slimcodec.evaluation.curves import Curve, SlimSettings
from slimcodec.evaluation.measures import FIDELITY, mean_average_precision

FORMAT, PUBLISHED = "slimcodec-bench-1", "slimcodec-published-1"
PARTS = ("header", "caption")
RESAMPLES, SEED = 1000, 20251218
#: ends of the interval, in percent
ENDS = (2.5, 97.5)
#: a measure of every photo, NaN where a photo has none
Values = NDArray[np.float64]
#: a mean with the ends of its 95 % interval, which are NaN where there is none
Interval = tuple[float, float, float]


@lru_cache(maxsize=2)
def resamples(photos: int, count: int = RESAMPLES) -> Values:
    """How often each photo is drawn in each resample: [count, photos], rows summing to ``photos`` (Efron 1979)."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(photos, np.full(photos, 1 / photos), size=count).astype(np.float64)


def means(values: Values, draws: Values) -> Values:
    """The mean of ``values`` [photos] in each resample, [count]; NaN values are left out."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Values = draws @ np.where(known, values, 0.0) / (draws @ known.astype(np.float64))
    return result


def interval(values: Values) -> Interval | None:
    """Mean and 95 % percentile interval of ``values`` [photos] over photos; None where all are NaN."""
    if np.isnan(values).all():
        return None
    low, high = np.nanpercentile(means(values, resamples(len(values))), ENDS)
    return float(np.nanmean(values)), float(low), float(high)


@dataclass(frozen=True)
class Point:
    """A curve at one quality: ``values`` by measure, in the order of the result's photos, and mean ``milliseconds``.

    Measures: bpp (8 x bytes of the file / pixels that were coded), bpp_less_grey (without what a flat grey picture of that
    size costs with the codec), bytes, ``PARTS``, ``FIDELITY``; of each classifier top1 and top5 (100 or 0), change (paired
    difference of top1 to the uncompressed photo), and with a wrong caption kept (true class named) and drawn_in (wrong one).
    ``pooled``: measures of all photos together, which have no interval: map50 of a detector's boxes.
    """

    quality: int
    values: Mapping[str, Values]
    milliseconds: Mapping[str, float]
    pooled: Mapping[str, Interval | None]

    @cached_property
    def summary(self) -> dict[str, Interval | None]:
        """Mean and interval of every measure, None where no photo has it."""
        return {name: interval(column) for name, column in self.values.items()} | dict(self.pooled)


@dataclass(frozen=True)
class MeasuredCurve(Curve):
    """A curve with its points. ``bundle``: name and hashes of SLIM's bundle, {} for another codec."""

    points: tuple[Point, ...] = ()
    bundle: Mapping[str, Any] | None = None

    @property
    def weights(self) -> str:
        """The hash of the weights of SLIM's bundle."""
        return str((self.bundle or {}).get("weights_sha256"))


@dataclass(frozen=True)
class Result:
    """One or several result files of the same photos.

    ``described``: protocol, data set and classifiers; ``photos``: id, label, pixels and judgements by photo, sorted by id;
    ``uncompressed``: top1 and top5 of the photos themselves, and what their captions say alone.
    """

    described: Mapping[str, Any]
    photos: Mapping[str, Any]
    uncompressed: Mapping[str, Values]
    curves: tuple[MeasuredCurve, ...]

    @property
    def judges(self) -> list[str]:
        """Names of the classifiers."""
        return [classifier["name"] for classifier in self.described["classifiers"]]

    @property
    def shown(self) -> list[MeasuredCurve]:
        """The curves but those that are only there to judge another."""
        return [curve for curve in self.curves if not curve.control]

    def __len__(self) -> int:
        return len(self.photos["id"])

    def controls(self, curve: MeasuredCurve) -> tuple[MeasuredCurve, MeasuredCurve]:
        """The controls of a curve that a caption enhances: without caption, and with a wrong one.

        Raises ``SlimError`` where one is missing, has other qualities, or what the captions say alone was not measured.
        """
        assert curve.slim is not None
        alike = {
            other.slim: other
            for other in self.curves
            if (other.weights, other.qualities) == (curve.weights, curve.qualities)
        }
        missing = [settings.name for settings in curve.slim.controls() if settings not in alike]
        missing += [] if "caption" in self.photos else ["caption alone"]
        if missing:
            raise SlimError(
                f"{curve.name}: shown only beside its controls, and these are missing: {', '.join(missing)}; run slim bench "
                "with --codecs slim, which measures them, and give its whole result"
            )
        none, wrong = (alike[settings] for settings in curve.slim.controls())
        return none, wrong


@dataclass(frozen=True)
class Published:
    """Curves from a paper: points (bpp, top-1 in percent), and in what they differ from a measured result."""

    title: str
    source: str
    differs: str
    uncompressed: float
    curves: tuple[tuple[str, list[tuple[float, float]]], ...]


def assemble(described: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON of a result from what was measured of each photo (``bench.Worker.row``), in any order.

    ``described``: everything that is not measured; its "curves" get their points here.
    """
    rows = sorted(rows, key=lambda row: str(row["id"]))
    photos = _columns(rows, ("id", "label", "pixels", "guess", "rank", "objects"))
    if rows[0]["caption"] is not None:
        photos["caption"] = {key: [row["caption"][key] for row in rows] for key in rows[0]["caption"]}
    curves = []
    for number, curve in enumerate(described["curves"]):
        points = [
            _stored_point(quality, [row["points"][number][place] for row in rows])
            for place, quality in enumerate(curve["qualities"])
        ]
        curves.append({key: curve[key] for key in curve if key != "qualities"} | {"points": points})
    body = {**described, "photos": photos, "curves": curves}
    result = from_json(body)
    body["bootstrap"] = {"resamples": RESAMPLES, "seed": SEED, "interval_percent": list(ENDS)}
    body["uncompressed"] = {name: _stored(interval(column)) for name, column in result.uncompressed.items()}
    for curve, measured in zip(curves, result.curves, strict=True):
        for stored, point in zip(curve["points"], measured.points, strict=True):
            stored["summary"] = {name: _stored(ends) for name, ends in point.summary.items()}
    return body


def _stored_point(quality: int, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [name for name in measured[0] if name not in ("grey", "encode_ms", "decode_ms")]
    if all(point.get("grey") is not None for point in measured):
        names.append("grey")
    milliseconds = {
        name: round(float(np.mean([point[f"{name}_ms"] for point in measured])), 2)
        for name in ("encode", "decode")
    }
    columns = _columns(measured, names)
    return {"quality": quality, "summary": {}, "milliseconds": milliseconds, "photos": columns}


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Columns by name, of what classifiers said one for each; those that no row has are left out."""
    columns = {name: [row[name] for row in rows] for name in names}
    columns |= {name: np.transpose(columns[name]).tolist() for name in ("guess", "rank")}
    return {name: column for name, column in columns.items() if any(value is not None for value in column)}


def _stored(ends: Interval | None) -> Any:
    """A mean and its interval to six digits, a mean alone where it has no interval."""
    if ends is None:
        return None
    values = [float(f"{value:.6g}") for value in ends]
    return values[0] if np.isnan(ends[1]) else values


def from_json(body: Mapping[str, Any]) -> Result:
    """The result that a JSON object describes."""
    photos = body["photos"]
    uncompressed = {
        f"top{k} {judge['name']}": _top(photos, number, k)
        for number, judge in enumerate(body["classifiers"])
        for k in (1, 5)
    }
    if photos.get("caption"):
        uncompressed["caption alone"] = 100.0 * np.array(photos["caption"]["right"], np.float64)
        uncompressed["caption bytes"] = np.array(photos["caption"]["bytes"], np.float64)
    described = {key: value for key, value in body.items() if key not in ("photos", "curves")}
    result = Result(described, photos, uncompressed, ())
    curves = [
        MeasuredCurve(
            curve["name"],
            tuple(point["quality"] for point in curve["points"]),
            curve.get("template"),
            SlimSettings(**curve["slim"]) if curve["slim"] else None,
            tuple(_point(point, result) for point in curve["points"]),
            curve.get("bundle"),
        )
        for curve in body["curves"]
    ]
    return replace(result, curves=tuple(curves))


def _point(stored: Mapping[str, Any], result: Result) -> Point:
    columns = stored["photos"]
    pixels = np.array(result.photos["pixels"], np.float64)
    sizes = np.array(columns["bytes"], np.float64)
    values = {"bpp": 8 * sizes / pixels, "bytes": sizes}
    if "grey" in columns:
        values["bpp_less_grey"] = values["bpp"] - 8 * np.array(columns["grey"], np.float64) / pixels
    values |= {name: np.array(columns[name], np.float64) for name in (*PARTS, *FIDELITY) if name in columns}
    for number, judge in enumerate(result.judges):
        values[f"top1 {judge}"], values[f"top5 {judge}"] = (_top(columns, number, k) for k in (1, 5))
        values[f"change {judge}"] = values[f"top1 {judge}"] - result.uncompressed[f"top1 {judge}"]
        if "drawn" in columns:
            values[f"kept {judge}"] = values[f"top1 {judge}"]
            values[f"drawn_in {judge}"] = 100.0 * np.equal(columns["guess"][number], columns["drawn"])
    pooled: dict[str, Interval | None] = {}
    if "detections" in columns:
        precision = mean_average_precision(columns["detections"], result.photos["objects"])
        pooled["map50"] = None if precision is None else (precision, np.nan, np.nan)
    return Point(stored["quality"], values, stored["milliseconds"], pooled)


def _top(columns: Mapping[str, Any], judge: int, k: int) -> Values:
    """For each photo 100 where the true class is among the first ``k`` of a classifier, else 0."""
    return np.where(np.array(columns["rank"][judge]) < k, 100.0, 0.0)


def _published(body: Mapping[str, Any]) -> Published:
    curves = tuple((c["name"], [(float(x), float(y)) for x, y in c["points"]]) for c in body["curves"])
    return Published(body["title"], body["source"], body["differs"], float(body["uncompressed"]), curves)


READERS: dict[str, tuple[Callable[[Mapping[str, Any]], Result | Published], str]] = {
    FORMAT: (from_json, "not a whole result of slim bench; make it again"),
    PUBLISHED: (_published, "published points need title, source, differs, uncompressed, curves"),
}


def _load(path: Path) -> Result | Published:
    """The result or the published points of a file; ``SlimError`` for a file that is neither."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SlimError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SlimError(f"{path}: no JSON; give results of slim bench") from error
    kind = str(body.get("format")) if isinstance(body, dict) else ""
    if kind not in READERS:
        raise SlimError(f"{path}: not a result of slim bench in a format that this release reads")
    read, problem = READERS[kind]
    try:
        return read(body)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SlimError(f"{path}: {problem}") from error


def load_all(paths: Sequence[str | Path]) -> tuple[Result, list[Published]]:
    """The curves of several result files as one result, and the published ones among the files.

    Raises ``SlimError`` for files without a result, for results of other photos, protocols or classifiers than the first, and
    for enhanced curves of SLIM without their controls.
    """
    loaded = [(path, _load(path)) for path in map(Path, paths)]
    results = [(path, one) for path, one in loaded if isinstance(one, Result)]
    if not results:
        raise SlimError("no result of slim bench among these files")
    first_path, first = results[0]
    for path, result in results[1:]:
        for what, value in _identity(result).items():
            if value != _identity(first)[what]:
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
    merged = Result(first.described, photos, uncompressed, tuple(curves))
    for curve in curves:
        if curve.slim is not None and curve.slim.enhanced:
            merged.controls(curve)
    return merged, [one for _, one in loaded if isinstance(one, Published)]


def _identity(result: Result) -> dict[str, Any]:
    """What results must have in common to be shown together; a data set's file may have another name elsewhere."""
    known = result.described
    photos = known["dataset"]["sha256"]
    return {"photos": photos, "protocol": known["protocol"], "classifiers": known["classifiers"]}


def to_text(value: Any, depth: int = 0) -> str:
    """JSON with one line a column, so that files stay readable and small."""
    space, end = "  " * (depth + 1), "\n" + "  " * depth
    if isinstance(value, Mapping) and value:
        lines = [f"{space}{json.dumps(key)}: {to_text(entry, depth + 1)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(lines) + end + "}"
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value):
        return "[\n" + ",\n".join(space + to_text(entry, depth + 1) for entry in value) + end + "]"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
