"""The report: plots, tables and examples of one or several results, as HTML, Markdown and PNG files."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from slimcodec.data.contact_sheet import Tile, contact_sheet
from slimcodec.errors import SlimError
from slimcodec.evaluation import figures
from slimcodec.evaluation.bd_rate import Comparison, bd_rate, bd_score, compare, relative_at
from slimcodec.evaluation.measures import FIDELITY
from slimcodec.evaluation.results import Interval, MeasuredCurve, Point, Published, Result, interval
from slimcodec.files import atomic_write
from slimcodec.images import as_file

TITLE = "Accuracy against bits"
#: longest side of a picture on the sheet of examples
THUMBNAIL = 256
#: bits per pixel at which curves are read off
RATES = (0.05, 0.1, 0.2, 0.35)
MEASURES = (
    "Bits per pixel are 8 x bytes of the whole file / pixels of the photo that was coded. Intervals are 95 % bootstrap "
    "intervals over photos."
)
#: what a block is, and its content: a heading or text, a table's headers and rows, a ``Plot``, rows of ``Tile``
Block = tuple[str, Any]
#: header and cell of each column
Row = list[tuple[str, str]]


def report(
    result: Result,
    published: Sequence[Published],
    anchor: str | None = None,
    sheet: Sequence[Sequence[Tile]] = (),
) -> list[Block]:
    """The blocks of a report on a result whose controls are there (``results.load_all`` sees to that).

    ``anchor``: the curve that BD-rates refer to, by default AVIF, else the first codec that is not SLIM. ``sheet``: example
    photos, a row of tiles each. Raises ``SlimError`` where there is no such ``anchor``.
    """
    anchor_curve = _anchor(result, anchor)
    judges, points = result.judges, [point for curve in result.curves for point in curve.points]
    fidelity = [name for name in FIDELITY if any(point.summary.get(name) for point in points)]
    blocks: list[Block] = [*_setting(result), ("heading", "Accuracy")]
    blocks += [("plot", figures.rate_accuracy(result, judge)) for judge in judges]
    blocks += _at_rates(result) + _bd_tables(result, anchor_curve) + _controls(result)
    blocks += [("heading", "Beside published points")] if published else []
    blocks += [("plot", figures.beside_published(result, j, one)) for one in published for j in judges]
    blocks.append(("heading", "Fidelity"))
    blocks += [("plot", figures.rate_distortion(result, name, FIDELITY[name][0])) for name in fidelity]
    if sheet:
        text = (
            "The first photos by a hash of their bytes, chosen by nobody. Every codec shows its best quality that fits in "
            "the same bytes, or its smallest file where none does. The bit map shows where the bits of SLIM's file went."
        )
        blocks += [("heading", "Examples"), ("text", text), ("sheet", sheet)]
    return [*blocks, ("heading", "Every point"), _points_table(result, fidelity)]


def write_report(folder: Path, blocks: Sequence[Block]) -> list[Path]:
    """Writes ``report.html``, ``report.md`` and the PNG files into a folder, which is made if needed; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    pages = jinja2.Environment(
        loader=loader, autoescape=jinja2.select_autoescape(["html"]), trim_blocks=True, lstrip_blocks=True
    )
    pages.filters["inline"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    pages.filters["png"] = partial(as_file, optimize=True)
    files = {
        name: pages.get_template(name).render(title=TITLE, blocks=blocks).encode()
        for name in ("report.html", "report.md")
    }
    for kind, content in blocks:
        if kind == "plot":
            files |= {f"{content.name}.png": content.wide, f"{content.name}-narrow.png": content.narrow}
        elif kind == "sheet":
            tiles = [[_thumbnail(tile) for tile in row] for row in content]
            files["examples.png"] = as_file(contact_sheet(tiles), optimize=True)
    for name, data in files.items():
        atomic_write(folder / name, data)
    return [folder / name for name in files]


def _thumbnail(tile: Tile) -> Tile:
    picture = Image.fromarray(tile.pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return replace(tile, pixels=np.asarray(picture))


def _anchor(result: Result, name: str | None) -> MeasuredCurve:
    by_name = {curve.name: curve for curve in result.curves}
    if name is not None and name not in by_name:
        raise SlimError(f"no curve {name!r}; there are {', '.join(by_name)}")
    # False comes first: of the curves without SLIM's settings the first
    return by_name.get(name or "avif") or min(result.curves, key=lambda curve: curve.slim is not None)


def _setting(result: Result) -> list[Block]:
    dataset, protocol = result.described["dataset"], result.described["protocol"]
    judges = "; ".join(
        f"{c['name']} (SHA-256 {c['sha256'][:12]}…, input {c['preprocessing']['side'] or 'as coded'})"
        for c in result.described["classifiers"]
    )
    known = [curve.bundle for curve in result.curves if curve.bundle]
    bundles = {f"{b['name']} ({b['id']}, weights {b['weights_sha256'][:12]}…)" for b in known}
    photos = f"{len(result)} photos of {dataset['name']} (SHA-256 {dataset['sha256'][:12]}…)"
    bundle = f" SLIM's bundle: {', '.join(sorted(bundles))}." if bundles else ""
    lines = [
        f"{photos}, protocol {protocol['name']}: {protocol['description']}.",
        f"Classifiers: {judges}.{bundle}",
        MEASURES,
    ]
    rows = [
        [
            f"uncompressed, {judge}",
            *(_with_interval(interval(result.uncompressed[f"top{k} {judge}"])) for k in (1, 5)),
        ]
        for judge in result.judges
    ]
    return [*(("text", line) for line in lines), ("table", (["", "top-1, %", "top-5, %"], rows))]


def _at_rates(result: Result) -> list[Block]:
    blocks: list[Block] = [("heading", "At equal bits")]
    for judge in result.judges:
        rows = [
            [curve.name, *(_with_interval(relative_at(result, curve, judge, bpp)) or "–" for bpp in RATES)]
            for curve in result.shown
        ]
        headers = [f"top-1 to uncompressed, %, by {judge}", *(f"{bpp:.2f} bpp" for bpp in RATES)]
        blocks.append(("table", (headers, rows)))
    text = "Between measured points, linear in the logarithm of the rate; – where a codec's files do not reach the rate."
    return [*blocks, ("text", text)]


def _bd_tables(result: Result, anchor: MeasuredCurve) -> list[Block]:
    with_grey = any("bpp_less_grey" in point.values for point in anchor.points)
    blocks: list[Block] = []
    for judge in result.judges:
        top1 = f"top1 {judge}"
        rows = [
            [
                curve.name,
                *_compared(compare(bd_rate, anchor, curve, top1), " %", "{:.1f}..{:.1f} %"),
                _compared(compare(bd_rate, anchor, curve, top1, "bpp_less_grey"), " %")[0]
                if with_grey
                else "",
                *_compared(compare(bd_score, anchor, curve, top1), "", "{:.3f}..{:.3f} bpp"),
                *_compared(compare(bd_rate, anchor, curve, "psnr"), " %", "{:.1f}..{:.1f} dB"),
            ]
            for curve in result.shown
            if curve is not anchor
        ]
        headers = [
            "curve", "BD-rate at equal top-1", "over", f"without container overhead of {anchor.name}", "BD-top-1, points", "over", "BD-rate at equal PSNR", "over",
        ]  # fmt: skip
        blocks += [("heading", f"Against {anchor.name}, judged by {judge}"), ("table", (headers, rows))]
    text = (
        "Negative BD-rate: fewer bits for the same. PCHIP on the logarithm of the rate, over the part of the axis that both "
        "curves cover, which is given with its share of what either covers; without one, and with fewer than two points, "
        "it is undefined. For BD-rate, points that are no better than one of lower rate are left out (how many of both curves is in brackets). "
        "Intervals from the same resampled photos for both curves; none where more than 5 % of resamples are undefined. "
        f"Container overhead of {anchor.name}: its bytes for a flat grey picture of the same size and quality. They are "
        "subtracted from its files, so that no codec wins by the anchor's container. The other codec's files count in full."
    )
    return [*blocks, ("text", text)]


def _controls(result: Result) -> list[Block]:
    enhanced = [curve for curve in result.curves if curve.slim and curve.slim.enhanced]
    if not enhanced:
        return []
    bits = 8 * result.uncompressed["caption bytes"]
    pixels = np.array(result.photos["pixels"], np.float64)
    text = (
        f"The caption alone, without any picture, names the class of {_with_interval(interval(result.uncompressed['caption alone']))} % of the "
        f"photos, in {bits.mean():.1f} bits ({(bits / pixels).mean():.5f} bpp, the file's header not counted). Accuracy "
        "near that line may come from the caption and not from the picture. A wrong caption names a class drawn at random: the more "
        "often it is seen in the picture, the more the caption paints."
    )
    blocks: list[Block] = [("heading", "What the caption does: controls"), ("text", text)]
    for curve in enhanced:
        blocks += [("plot", figures.controls(result, curve, judge)) for judge in result.judges]
        blocks += [_controls_table(result, curve, judge) for judge in result.judges]
    return blocks


def _controls_table(result: Result, curve: MeasuredCurve, judge: str) -> Block:
    top1 = f"top1 {judge}"
    points = zip(curve.points, *(control.points for control in result.controls(curve)), strict=True)
    return _table(
        [
            (f"judged by {judge}", f"{curve.name}, quality {point.quality}"),
            ("bpp", _mean(point.summary["bpp"], ".3f")),
            ("top-1, %", _with_interval(point.summary[top1])),
            ("no caption", _with_interval(none.summary[top1])),
            ("difference, paired", _with_interval(interval(point.values[top1] - none.values[top1]), "+.1f")),
            ("wrong caption: true kept", _with_interval(wrong.summary[f"kept {judge}"])),
            ("wrong drawn in", _with_interval(wrong.summary[f"drawn_in {judge}"])),
        ]
        for point, none, wrong in points
    )


def _points_table(result: Result, fidelity: Sequence[str]) -> Block:
    return _table(
        _point_row(result, curve, point, fidelity)
        for curve in result.curves
        for point in sorted(curve.points, key=lambda point: float(np.mean(point.values["bytes"])))
    )


def _point_row(result: Result, curve: MeasuredCurve, point: Point, fidelity: Sequence[str]) -> Row:
    summary = point.summary
    parts = _mean(summary.get("header"), ".0f"), _mean(summary.get("caption"), ".1f")
    row = [
        ("curve, quality", f"{curve.name}, {point.quality}"),
        ("bpp", _mean(summary["bpp"], ".4f")),
        ("bytes", _mean(summary["bytes"], ",.0f")),
        ("of these header + caption", " + ".join(filter(None, parts))),
    ]
    for judge in result.judges:
        row += [
            (f"top-1, % ({judge})", _with_interval(summary[f"top1 {judge}"])),
            ("top-5, %", _mean(summary[f"top5 {judge}"])),
            ("top-1 to uncompressed", _with_interval(summary[f"change {judge}"], "+.1f")),
        ]
    for name in fidelity:
        label, digits, _ = FIDELITY[name]
        row.append((label, _mean(summary.get(name), f".{digits}f")))
    if result.described.get("detector"):
        precision = summary.get("map50")
        row.append(("mAP@0.5", f"{100 * precision[0]:.1f}" if precision else ""))
    return [*row, *((f"{name}, ms", f"{point.milliseconds[name]:.0f}") for name in ("encode", "decode"))]


def _table(rows: Iterable[Row]) -> Block:
    rows = list(rows)
    return "table", ([header for header, _ in rows[0]], [[cell for _, cell in row] for row in rows])


def _mean(found: Interval | None, form: str = ".1f") -> str:
    return format(found[0], form) if found else ""


def _with_interval(found: Interval | None, form: str = ".1f") -> str:
    """A mean with its interval, if it has one."""
    if found is None or np.isnan(found[1]):
        return _mean(found, form)
    mean, low, high = (format(value, form) for value in found)
    return f"{mean} [{low}, {high}]"


def _compared(comparison: Comparison, unit: str, overlap: str = "") -> tuple[str, str]:
    """The value with its interval, and the part of the axis that it was taken over, written as in ``overlap``."""
    ends, dropped = comparison.interval, comparison.dropped
    value = "undefined" if comparison.value is None else f"{comparison.value:+.1f}{unit}"
    over = "no overlap"
    if comparison.value is not None:
        over = f"{overlap.format(comparison.low, comparison.high)}, {100 * comparison.share:.0f} % of both"
    return (
        value + (f" [{ends[0]:+.1f}, {ends[1]:+.1f}]" if ends else ""),
        over + (f" ({dropped} left out)" if dropped else ""),
    )
