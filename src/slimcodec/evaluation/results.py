"""The long table of a run: a number for every photo, codec, quality, setting and measure, kept as JSON by columns.

A column holds one measure of one curve at one quality, in the order of the photos: a file of as many rows would be thirty
times as large.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimcodec.errors import SlimError
from slimcodec.evaluation.curves import Curve, SlimSettings

FORMAT = "slimcodec-bench-1"
#: measures of a point that are a number a photo
FIDELITY = ("psnr", "psnr_roi", "psnr_background", "ms_ssim", "lpips")
PARTS = ("header", "caption")
#: a measure of every photo, NaN where a photo has none
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A curve at one quality: ``values`` by measure, in the order of the result's photos, and mean ``milliseconds``.

    Measures: bpp (8 x bytes of the file / pixels that were coded), bpp_less_grey (without what a flat grey picture of that
    size costs with the codec), bytes, ``PARTS``, ``FIDELITY``; of each classifier top1 and top5 (100 or 0), change (paired
    difference of top1 to the uncompressed photo), and with a wrong caption kept (true class named) and drawn_in (wrong one).
    ``detections``: of each photo, as ``measures.matched`` gives them.
    """

    quality: int
    values: Mapping[str, Values]
    milliseconds: Mapping[str, float]
    detections: Sequence[Any] | None = None


@dataclass(frozen=True)
class MeasuredCurve(Curve):
    """A curve with what was measured. ``described``: version, settings and bundle of the codec."""

    points: tuple[Point, ...] = ()
    described: Mapping[str, Any] | None = None

    @property
    def bundle(self) -> Mapping[str, Any]:
        """Name and hashes of SLIM's bundle, {} for another codec."""
        return (self.described or {}).get("bundle") or {}


@dataclass(frozen=True)
class Result:
    """A result file.

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

    def __len__(self) -> int:
        return len(self.photos["id"])


def assemble(described: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON of a result, its summaries empty, from what was measured of each photo, in any order.

    ``described``: everything that is not measured; its "curves" get their points here.
    """
    rows = sorted(rows, key=lambda row: str(row["id"]))
    photos: dict[str, Any] = {key: [row[key] for row in rows] for key in ("id", "label", "pixels")}
    photos |= _by_judge([row["reference"] for row in rows])
    if rows and "objects" in rows[0]:
        photos["objects"] = [row["objects"] for row in rows]
    if rows and "caption" in rows[0]:
        photos["caption"] = {key: [row["caption"][key] for row in rows] for key in rows[0]["caption"]}
    curves = [
        {key: value for key, value in curve.items() if key != "qualities"}
        | {
            "points": [
                _stored_point(quality, [row["points"][number][place] for row in rows])
                for place, quality in enumerate(curve["qualities"])
            ]
        }
        for number, curve in enumerate(described["curves"])
    ]
    return {**described, "photos": photos, "curves": curves}


def _by_judge(pairs: Sequence[Sequence[Sequence[int]]]) -> dict[str, list[list[int]]]:
    """[photo][judge] of (guess, rank) as columns by judge."""
    judges = range(len(pairs[0]) if pairs else 0)
    return {
        name: [[photo[judge][place] for photo in pairs] for judge in judges]
        for place, name in enumerate(("guess", "rank"))
    }


def _stored_point(quality: int, measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns: dict[str, Any] = {"bytes": [point["bytes"] for point in measured]}
    columns |= _by_judge([point["judged"] for point in measured])
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
    photos = body["photos"]
    judges = [classifier["name"] for classifier in body["classifiers"]]
    uncompressed = {
        f"top{k} {judge}": _top(photos, number, k) for number, judge in enumerate(judges) for k in (1, 5)
    }
    if photos.get("caption"):
        uncompressed["caption alone"] = 100.0 * np.array(photos["caption"]["right"], np.float64)
        uncompressed["caption bytes"] = np.array(photos["caption"]["bytes"], np.float64)
    curves = tuple(
        MeasuredCurve(
            curve["name"],
            tuple(point["quality"] for point in curve["points"]),
            curve.get("template"),
            SlimSettings(**curve["slim"]) if curve["slim"] else None,
            tuple(_point(point, photos, judges, uncompressed) for point in curve["points"]),
            {key: value for key, value in curve.items() if key != "points"},
        )
        for curve in body["curves"]
    )
    described = {key: value for key, value in body.items() if key not in ("photos", "curves")}
    return Result(described, photos, uncompressed, curves)


def _point(
    stored: Mapping[str, Any],
    photos: Mapping[str, Any],
    judges: Sequence[str],
    uncompressed: Mapping[str, Values],
) -> Point:
    columns = stored["photos"]
    pixels = np.array(photos["pixels"], np.float64)
    sizes = np.array(columns["bytes"], np.float64)
    values = {"bpp": 8 * sizes / pixels, "bytes": sizes}
    if "grey" in columns:
        values["bpp_less_grey"] = values["bpp"] - 8 * np.array(columns["grey"], np.float64) / pixels
    values |= {name: np.array(columns[name], np.float64) for name in PARTS + FIDELITY if name in columns}
    for number, judge in enumerate(judges):
        values[f"top1 {judge}"], values[f"top5 {judge}"] = (_top(columns, number, k) for k in (1, 5))
        values[f"change {judge}"] = values[f"top1 {judge}"] - uncompressed[f"top1 {judge}"]
        if "drawn" in columns:
            values[f"kept {judge}"] = values[f"top1 {judge}"]
            drawn_in = np.array(columns["guess"][number]) == np.array(columns["drawn"])
            values[f"drawn_in {judge}"] = 100.0 * drawn_in
    return Point(stored["quality"], values, stored["milliseconds"], columns.get("detections"))


def _top(columns: Mapping[str, Any], judge: int, k: int) -> Values:
    """For each photo 100 where the true class is among the first ``k`` of a classifier, else 0."""
    hits: Values = (np.array(columns["rank"][judge]) < k).astype(np.float64)
    return 100 * hits


def to_text(value: Any, depth: int = 0) -> str:
    """JSON with one line a column, so that files stay readable and small."""
    space, end = "  " * (depth + 1), "\n" + "  " * depth
    if isinstance(value, Mapping):
        lines = [f"{space}{json.dumps(key)}: {to_text(entry, depth + 1)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(lines) + end + "}" if lines else "{}"
    if isinstance(value, (list, tuple)) and any(isinstance(entry, Mapping) for entry in value):
        return "[\n" + ",\n".join(space + to_text(entry, depth + 1) for entry in value) + end + "]"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
