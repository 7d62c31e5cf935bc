"""The result file: every photo's numbers in columns by photo id, and the summaries that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slimcodec.errors import SlimError
from slimcodec.evaluation.bootstrap import ENDS, RESAMPLES, SEED, Values, interval, resamples
from slimcodec.evaluation.detection import mean_average_precision
from slimcodec.evaluation.slim_curves import SlimSettings

FORMAT = "slimcodec-bench-1"
#: measures of a point that are a number a photo
FIDELITY = ("psnr", "psnr_roi", "psnr_background", "ms_ssim", "lpips")
PARTS = ("header", "caption")


@dataclass(frozen=True)
class Point:
    """One quality of a curve. ``columns``: lists in the order of the result's photos; ``milliseconds``: mean times."""

    quality: int
    columns: Mapping[str, Any]
    milliseconds: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """A codec under fixed settings. ``slim``: how SLIM was run, None for other codecs."""

    name: str
    points: tuple[Point, ...]
    slim: SlimSettings | None
    described: Mapping[str, Any]

    @property
    def control(self) -> bool:
        """Whether the curve is only there to judge another: its caption is wrong."""
        return self.slim is not None and self.slim.caption == "wrong"

    @property
    def headline(self) -> bool:
        """Whether the curve is shown where there is little room: SLIM without steps or caption, and as a caption enhances it."""
        slim = self.slim
        return slim is None or slim.enhanced or (not slim.steps and slim.caption == "none")


@dataclass(frozen=True)
class Result:
    """A result file. ``photos``: columns by photo, sorted by id; ``judges``: names of the classifiers."""

    described: Mapping[str, Any]
    photos: Mapping[str, Any]
    curves: tuple[Curve, ...]

    @property
    def judges(self) -> list[str]:
        """Names of the classifiers, in the order of the columns ``guess`` and ``rank``."""
        return [classifier["name"] for classifier in self.described["classifiers"]]

    def __len__(self) -> int:
        return len(self.photos["id"])


def assemble(described: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON of a result from what was measured of each photo, in any order.

    ``described``: everything that is not measured; its "curves" get their points here.
    """
    rows = sorted(rows, key=lambda row: str(row["id"]))
    photos: dict[str, Any] = {key: [row[key] for row in rows] for key in ("id", "label", "pixels")}
    photos |= _judged([row["reference"] for row in rows])
    if rows and "objects" in rows[0]:
        photos["objects"] = [row["objects"] for row in rows]
    if rows and "caption" in rows[0]:
        photos["caption"] = {key: [row["caption"][key] for row in rows] for key in rows[0]["caption"]}
    curves = []
    for number, curve in enumerate(described["curves"]):
        points = []
        for position, quality in enumerate(curve["qualities"]):
            measured = [row["points"][number][position] for row in rows]
            points.append(_point(quality, measured))
        curves.append({key: value for key, value in curve.items() if key != "qualities"} | {"points": points})
    body = {**described, "photos": photos, "curves": curves}
    result = from_json(body)
    draws = resamples(len(result))
    body["bootstrap"] = {"resamples": RESAMPLES, "seed": SEED, "interval_percent": list(ENDS)}
    body["uncompressed"] = _rounded(summary(uncompressed_values(result), draws))
    for parsed, curve in zip(result.curves, curves, strict=True):
        for point, stored in zip(parsed.points, curve["points"], strict=True):
            stored["summary"] |= _rounded(point_summary(result, point, draws))
    return body


def to_text(body: Mapping[str, Any]) -> str:
    """JSON with one line a column, so that files stay readable and small."""
    return _indented(body, 0) + "\n"


def load_result(path: str | Path) -> Result:
    """The result of a file; ``SlimError`` for a file that is none."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        if body.get("format") != FORMAT:
            raise SlimError(f"{path}: not a result of slim bench in a format that this release reads")
        return from_json(body)
    except OSError as error:
        raise SlimError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SlimError(f"{path}: not a whole result of slim bench; make it again") from error


def from_json(body: Mapping[str, Any]) -> Result:
    """The result that a JSON object describes."""
    curves = tuple(
        Curve(
            name=curve["name"],
            points=tuple(Point(p["quality"], p["photos"], p["milliseconds"]) for p in curve["points"]),
            slim=SlimSettings(**curve["slim"]) if curve["slim"] else None,
            described={key: value for key, value in curve.items() if key != "points"},
        )
        for curve in body["curves"]
    )
    described = {key: value for key, value in body.items() if key not in ("photos", "curves")}
    return Result(described, body["photos"], curves)


def bpp(result: Result, point: Point) -> Values:
    """Bits per pixel of each photo: 8 x file bytes / pixels that the codec was given."""
    bits: Values = 8 * np.array(point.columns["bytes"], np.float64)
    pixels: Values = np.array(result.photos["pixels"], np.float64)
    return bits / pixels


def top(columns: Mapping[str, Any], judge: int, k: int) -> Values:
    """For each photo 100 where the true class is among the first ``k`` of a classifier, else 0."""
    found: Values = (np.array(columns["rank"][judge]) < k).astype(np.float64)
    return 100 * found


def point_values(result: Result, point: Point) -> dict[str, Values]:
    """Every measure of a point, a number a photo, NaN where a photo has none.

    ``bpp_less_grey`` leaves out what a flat grey picture of that size costs with the codec. Accuracies are in percent; ``change`` is the paired difference to the uncompressed photo in percentage points; of a wrong
    caption, ``kept`` is the true class named and ``drawn_in`` the wrong one.
    """
    values = {"bpp": bpp(result, point), "bytes": np.array(point.columns["bytes"], np.float64)}
    if "grey" in point.columns:
        grey = 8 * np.array(point.columns["grey"], np.float64) / np.array(result.photos["pixels"], np.float64)
        values["bpp_less_grey"] = values["bpp"] - grey
    for name in PARTS + FIDELITY:
        if name in point.columns:
            values[name] = np.array(point.columns[name], np.float64)
    for number, judge in enumerate(result.judges):
        values[f"top1 {judge}"] = top(point.columns, number, 1)
        values[f"top5 {judge}"] = top(point.columns, number, 5)
        values[f"change {judge}"] = top(point.columns, number, 1) - top(result.photos, number, 1)
        if "drawn" in point.columns:
            drawn = np.array(point.columns["drawn"])
            values[f"kept {judge}"] = values[f"top1 {judge}"]
            values[f"drawn_in {judge}"] = 100.0 * (np.array(point.columns["guess"][number]) == drawn)
    return values


def uncompressed_values(result: Result) -> dict[str, Values]:
    """Accuracy of the classifiers on the photos themselves, and of the caption without a photo."""
    values = {}
    for number, judge in enumerate(result.judges):
        values[f"top1 {judge}"] = top(result.photos, number, 1)
        values[f"top5 {judge}"] = top(result.photos, number, 5)
    caption = result.photos.get("caption")
    if caption:
        values["caption alone"] = 100.0 * np.array(caption["right"], np.float64)
        values["caption bytes"] = np.array(caption["bytes"], np.float64)
    return values


def summary(values: Mapping[str, Values], draws: Values) -> dict[str, Any]:
    """Mean and 95 % interval of every measure, None where no photo has it."""
    return {name: interval(column, draws) for name, column in values.items()}


def point_summary(result: Result, point: Point, draws: Values) -> dict[str, Any]:
    """The summary of a point; mAP, a number of all photos together, comes without an interval."""
    found = summary(point_values(result, point), draws)
    if "detections" in point.columns:
        found["map50"] = mean_average_precision(point.columns["detections"], result.photos["objects"])
    return found


def _judged(pairs: Sequence[Sequence[Sequence[int]]]) -> dict[str, list[list[int]]]:
    """[photo][judge] of (guess, rank) as columns by judge."""
    judges = range(len(pairs[0]) if pairs else 0)
    return {
        name: [[photo[judge][place] for photo in pairs] for judge in judges]
        for place, name in enumerate(("guess", "rank"))
    }


def _point(quality: int, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns: dict[str, Any] = {"bytes": [point["bytes"] for point in measured]}
    columns |= _judged([point["judged"] for point in measured])
    for name in (*PARTS, "drawn", *FIDELITY, "detections"):
        column = [point.get(name) for point in measured]
        if any(value is not None for value in column):
            columns[name] = column
    if all(point.get("grey") is not None for point in measured):
        columns["grey"] = [point["grey"] for point in measured]
    milliseconds = {
        name: round(float(np.mean([point[f"{name}_ms"] for point in measured])), 2)
        for name in ("encode", "decode")
    }
    return {"quality": quality, "summary": {}, "milliseconds": milliseconds, "photos": columns}


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    def short(value: Any) -> Any:
        if isinstance(value, tuple):
            return [short(entry) for entry in value]
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return {name: short(value) for name, value in values.items()}


def _indented(value: Any, depth: int) -> str:
    space = "  " * (depth + 1)
    if isinstance(value, Mapping):
        entries = [f"{space}{json.dumps(key)}: {_indented(entry, depth + 1)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(entries) + "\n" + "  " * depth + "}" if entries else "{}"
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value):
        entries = [space + _indented(entry, depth + 1) for entry in value]
        return "[\n" + ",\n".join(entries) + "\n" + "  " * depth + "]"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
