"""The report: plots, tables and examples of one or several results, as HTML, Markdown and PNG files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jinja2
import numpy as np

from slimcodec.evaluation import plots
from slimcodec.evaluation.bd_rate import bd_rate, bd_score
from slimcodec.evaluation.plots import Plot
from slimcodec.evaluation.results import FIDELITY, MeasuredCurve
from slimcodec.evaluation.sheet import Sheet
from slimcodec.evaluation.summary import (
    BD_RESAMPLES,
    Difference,
    Interval,
    Published,
    Summary,
    anchor_curve,
    compare,
    control_curves,
    interval,
    relative_at,
    resamples,
)
from slimcodec.files import atomic_write

TITLE = "Accuracy against bits"
#: label and digits of each fidelity measure
LABELS = {
    "psnr": ("PSNR, dB", 2),
    "psnr_roi": ("PSNR of the RoI, dB", 2),
    "psnr_background": ("PSNR of the background, dB", 2),
    "ms_ssim": ("MS-SSIM", 4),
    "lpips": ("LPIPS", 4),
}
#: bits per pixel at which curves are read off
RATES = (0.05, 0.1, 0.2, 0.35)


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 or 2."""

    kind: ClassVar[str] = "heading"
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers; the first column names the row."""

    kind: ClassVar[str] = "table"
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


Block = Heading | Text | Table | Plot | Sheet


def report(
    summary: Summary, published: Sequence[Published], anchor: str | None = None, sheet: Sheet | None = None
) -> list[Block]:
    """The blocks of a report on a result whose controls are there (``summary.load_all`` sees to that).

    ``anchor``: the curve that BD-rates refer to, by default AVIF. ``sheet``: example photos, or None for a report without.
    """
    result = summary.result
    anchor_of_all = anchor_curve(result, anchor)
    blocks: list[Block] = [Heading(TITLE, 1), *_setting(summary), Heading("Accuracy")]
    blocks += [plots.rate_accuracy(summary, judge) for judge in result.judges]
    blocks += _at_rates(summary)
    blocks += _bd_tables(summary, anchor_of_all)
    blocks += _controls(summary)
    if published:
        blocks.append(Heading("Beside published points"))
        blocks += [
            plots.beside_published(summary, judge, one) for one in published for judge in result.judges
        ]
    blocks.append(Heading("Fidelity"))
    blocks += [
        plots.rate_distortion(summary, name, LABELS[name][0]) for name in FIDELITY if summary.has(name)
    ]
    if sheet is not None:
        text = (
            "The first photos by a hash of their bytes, chosen by nobody. Every codec shows its best quality that fits in "
            "the same bytes, or its smallest file where none does. The bit map shows where the bits of SLIM's file went."
        )
        blocks += [Heading("Examples"), Text(text), sheet]
    return [*blocks, Heading("Every point"), _points_table(summary)]


def write_report(folder: Path, blocks: Sequence[Block]) -> list[Path]:
    """Writes ``report.html``, ``report.md`` and the PNG files into a folder, which is made if needed; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    pages = jinja2.Environment(
        loader=loader, autoescape=jinja2.select_autoescape(["html"]), trim_blocks=True, lstrip_blocks=True
    )
    pages.filters["inline"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    files = {
        f"report.{kind}": pages.get_template(f"report.{kind}").render(title=TITLE, blocks=blocks).encode()
        for kind in ("html", "md")
    }
    for block in blocks:
        if isinstance(block, Plot):
            files |= {f"{block.name}.png": block.wide, f"{block.name}-narrow.png": block.narrow}
        elif isinstance(block, Sheet):
            files["examples.png"] = block.picture
    for name, data in files.items():
        atomic_write(folder / name, data)
    return [folder / name for name in files]


def _setting(summary: Summary) -> list[Block]:
    result = summary.result
    dataset, protocol = result.described["dataset"], result.described["protocol"]
    judges = "; ".join(
        f"{c['name']} (SHA-256 {c['sha256'][:12]}…, input {c['preprocessing']['side'] or 'as coded'})"
        for c in result.described["classifiers"]
    )
    bundles = {
        f"{b['name']} ({b['id']}, weights {b['weights_sha256'][:12]}…)"
        for curve in result.curves
        if (b := curve.bundle)
    }
    lines = [
        (
            f"{len(result)} photos of {dataset['name']} (SHA-256 {dataset['sha256'][:12]}…), protocol {protocol['name']}: "
            f"{protocol['description']}."
        ),
        f"Classifiers: {judges}." + (f" SLIM's bundle: {', '.join(sorted(bundles))}." if bundles else ""),
        (
            "Bits per pixel are 8 x bytes of the whole file / pixels of the photo that was coded. Intervals are 95 % bootstrap "
            "intervals over photos."
        ),
    ]
    rows = [
        [f"uncompressed, {judge}", *(_with_interval(summary.uncompressed[f"{top} {judge}"]) for top in ("top1", "top5"))]
        for judge in result.judges
    ]  # fmt: skip
    return [*map(Text, lines), Table(["", "top-1, %", "top-5, %"], rows)]


def _at_rates(summary: Summary) -> list[Block]:
    result = summary.result
    draws = resamples(len(result), BD_RESAMPLES)
    blocks: list[Block] = [Heading("At equal bits")]
    for judge in result.judges:
        rows = [
            [curve.name, *(_with_interval(relative_at(result, curve, judge, bpp, draws)) or "–" for bpp in RATES)]
            for curve in result.curves
            if not curve.control
        ]  # fmt: skip
        headers = [f"top-1 to uncompressed, %, by {judge}", *(f"{bpp:.2f} bpp" for bpp in RATES)]
        blocks.append(Table(headers, rows))
    text = "Between measured points, linear in the logarithm of the rate; – where a codec's files do not reach the rate."
    return [*blocks, Text(text)]


def _bd_tables(summary: Summary, anchor: MeasuredCurve) -> list[Block]:
    draws = resamples(len(summary.result), BD_RESAMPLES)
    with_grey = any("bpp_less_grey" in point.values for point in anchor.points)
    blocks: list[Block] = []
    for judge in summary.result.judges:
        rows = []
        for curve in summary.result.curves:
            if curve is anchor or curve.control:
                continue
            top1 = f"top1 {judge}"
            rate, points, psnr, less_grey = (
                compare(method, anchor, curve, measure, draws, anchor_rate)
                for method, measure, anchor_rate in (
                    (bd_rate, top1, "bpp"),
                    (bd_score, top1, "bpp"),
                    (bd_rate, "psnr", "bpp"),
                    (bd_rate, top1, "bpp_less_grey"),
                )
            )
            rows.append(
                [
                    curve.name,
                    _difference(rate, " %"),
                    _overlap(rate, "{:.1f}..{:.1f} %"),
                    _difference(less_grey, " %") if with_grey else "",
                    _difference(points, ""),
                    _overlap(points, "{:.3f}..{:.3f} bpp"),
                    _difference(psnr, " %"),
                    _overlap(psnr, "{:.1f}..{:.1f} dB"),
                ]
            )
        headers = [
            "curve", "BD-rate at equal top-1", "over", f"without container overhead of {anchor.name}", "BD-top-1, points", "over", "BD-rate at equal PSNR", "over",
        ]  # fmt: skip
        blocks += [Heading(f"Against {anchor.name}, judged by {judge}"), Table(headers, rows)]
    text = (
        "Negative BD-rate: fewer bits for the same. PCHIP on the logarithm of the rate, over the part of the axis that both "
        "curves cover, which is given with its share of what either covers; without one, and with fewer than two points, "
        "it is undefined. For BD-rate, points that are no better than one of lower rate are left out (how many of both curves is in brackets). "
        "Intervals from the same resampled photos for both curves; none where more than 5 % of resamples are undefined. "
        f"Container overhead of {anchor.name}: its bytes for a flat grey picture of the same size and quality. They are "
        "subtracted from its files, so that no codec wins by the anchor's container. The other codec's files count in full."
    )
    return [*blocks, Text(text)]


def _controls(summary: Summary) -> list[Block]:
    result = summary.result
    enhanced = [curve for curve in result.curves if curve.slim and curve.slim.enhanced]
    if not enhanced:
        return []
    bits = 8 * result.uncompressed["caption bytes"]
    pixels = np.array(result.photos["pixels"], np.float64)
    text = (
        f"The caption alone, without any picture, names the class of {_with_interval(summary.uncompressed['caption alone'])} % of the "
        f"photos, in {bits.mean():.1f} bits ({(bits / pixels).mean():.5f} bpp, the file's header not counted). Accuracy "
        "near that line may come from the caption and not from the picture. A wrong caption names a class drawn at random: the more "
        "often it is seen in the picture, the more the caption paints."
    )
    blocks: list[Block] = [Heading("What the caption does: controls"), Text(text)]
    for curve in enhanced:
        blocks += [plots.controls(summary, curve, judge) for judge in result.judges]
        blocks += [_controls_table(summary, curve, judge) for judge in result.judges]
    return blocks


def _controls_table(summary: Summary, curve: MeasuredCurve, judge: str) -> Table:
    none, wrong = control_curves(summary.result, curve)
    top1, rows = f"top1 {judge}", []
    for point, other in zip(curve.points, none.points, strict=True):
        captioned, bare, misled = (summary.points[c.name, point.quality] for c in (curve, none, wrong))
        gain = interval(point.values[top1] - other.values[top1], summary.draws)
        rows.append(
            [
                f"{curve.name}, quality {point.quality}",
                _mean(captioned["bpp"], 3),
                _with_interval(captioned[top1]),
                _with_interval(bare[top1]),
                _signed(gain),
                _with_interval(misled[f"kept {judge}"]),
                _with_interval(misled[f"drawn_in {judge}"]),
            ]
        )
    headers = [
        f"judged by {judge}", "bpp", "top-1, %", "no caption", "difference, paired", "wrong caption: true kept", "wrong drawn in",
    ]  # fmt: skip
    return Table(headers, rows)


def _points_table(summary: Summary) -> Table:
    result = summary.result
    fidelity = [name for name in FIDELITY if summary.has(name)]
    detected = bool(result.described.get("detector"))
    headers = ["curve, quality", "bpp", "bytes", "of these header + caption"]
    for judge in result.judges:
        headers += [f"top-1, % ({judge})", "top-5, %", "top-1 to uncompressed"]
    headers += [LABELS[name][0] for name in fidelity] + (["mAP@0.5"] if detected else [])
    rows = []
    for curve in result.curves:
        for point in sorted(curve.points, key=lambda p: float(np.mean(p.values["bytes"]))):
            point_means = summary.points[curve.name, point.quality]
            parts = (
                f"{_mean(point_means['header'], 0)} + {_mean(point_means['caption'], 1)}"
                if "header" in point_means
                else ""
            )
            row = [
                f"{curve.name}, {point.quality}",
                _mean(point_means["bpp"], 4),
                _mean(point_means["bytes"], 0, ","),
                parts,
            ]
            for judge in result.judges:
                row += [
                    _with_interval(point_means[f"top1 {judge}"]),
                    _mean(point_means[f"top5 {judge}"], 1),
                    _signed(point_means[f"change {judge}"]),
                ]
            row += [_mean(point_means.get(name), LABELS[name][1]) for name in fidelity]
            if detected:
                precision = point_means.get("map50")
                row.append(f"{100 * precision[0]:.1f}" if precision else "")
            rows.append([*row, *(f"{point.milliseconds[name]:.0f}" for name in ("encode", "decode"))])
    return Table([*headers, "encode, ms", "decode, ms"], rows)


def _mean(interval: Interval | None, digits: int, group: str = "") -> str:
    return f"{interval[0]:{group}.{digits}f}" if interval else ""


def _with_interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    mean, low, high = interval
    return f"{mean:.1f}" if np.isnan(low) else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _signed(interval: Interval | None) -> str:
    return "" if interval is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval)


def _difference(difference: Difference, unit: str) -> str:
    value = difference.comparison.value
    if value is None:
        return "undefined"
    ends = difference.interval
    return f"{value:+.1f}{unit}" + (f" [{ends[0]:+.1f}, {ends[1]:+.1f}]" if ends else "")


def _overlap(difference: Difference, form: str) -> str:
    comparison = difference.comparison
    dropped = f" ({comparison.dropped} left out)" if comparison.dropped else ""
    if comparison.low is None or comparison.high is None:
        return f"no overlap{dropped}"
    overlap = form.format(comparison.low, comparison.high)
    return f"{overlap}, {100 * comparison.share:.0f} % of both{dropped}"
