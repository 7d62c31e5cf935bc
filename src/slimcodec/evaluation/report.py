"""The report: plots, tables and examples of one or several results, as HTML, Markdown and PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slimcodec.evaluation import plots
from slimcodec.evaluation.bd_rate import bd_rate, bd_score
from slimcodec.evaluation.bootstrap import Values, interval, resamples
from slimcodec.evaluation.comparison import (
    BD_RESAMPLES,
    Difference,
    Published,
    anchor_curve,
    compare,
    control_points,
    relative_at,
)
from slimcodec.evaluation.document import Block, Heading, Sheet, Table, Text, pictures, to_html, to_markdown
from slimcodec.evaluation.results import (
    FIDELITY,
    Curve,
    Result,
    point_summary,
    summary,
    top,
    uncompressed_values,
)
from slimcodec.files import atomic_write

TITLE = "Accuracy against bits"
LABELS = {
    "psnr": "PSNR, dB",
    "psnr_roi": "PSNR of the RoI, dB",
    "psnr_background": "PSNR of the background, dB",
    "ms_ssim": "MS-SSIM",
    "lpips": "LPIPS",
}
UNDEFINED = "undefined"
#: bits per pixel at which curves are read off
RATES = (0.05, 0.1, 0.2, 0.35)


def report(
    result: Result, published: Sequence[Published], anchor: str | None = None, sheet: Sheet | None = None
) -> list[Block]:
    """The blocks of a report on a result whose controls are there (``comparison.load_all`` sees to that).

    ``anchor``: the curve that BD-rates refer to, by default AVIF. ``sheet``: example photos, or None for a report without.
    """
    draws = resamples(len(result))
    compared = anchor_curve(result, anchor)
    blocks: list[Block] = [Heading(TITLE, 1), *_setting(result, draws)]
    blocks.append(Heading("Accuracy"))
    blocks += [plots.rate_accuracy(result, judge, draws) for judge in result.judges]
    blocks += _at_rates(result)
    blocks += _bd_tables(result, compared)
    blocks += _controls(result, draws)
    if published:
        blocks.append(Heading("Beside published points"))
        blocks += [
            plots.beside_published(result, judge, one, draws) for one in published for judge in result.judges
        ]
    blocks.append(Heading("Fidelity"))
    blocks += [
        plots.rate_distortion(result, measure, LABELS[measure], draws)
        for measure in FIDELITY
        if any(measure in point.columns for curve in result.curves for point in curve.points)
    ]
    if sheet is not None:
        blocks.append(Heading("Examples"))
        blocks.append(
            Text(
                "The first photos by a hash of their bytes, chosen by nobody. Every codec shows its best quality that fits in "
                "the same bytes, or its smallest file where none does. The bit map shows where the bits of SLIM's file went."
            )
        )
        blocks.append(sheet)
    blocks += [Heading("Every point"), _points_table(result, draws)]
    return blocks


def write_report(folder: Path, blocks: Sequence[Block]) -> list[Path]:
    """Writes ``report.html``, ``report.md`` and the PNG files into a folder, which is made if needed; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"report.html": to_html(TITLE, blocks).encode(), "report.md": to_markdown(blocks).encode()}
    files |= pictures(blocks)
    for name, data in files.items():
        atomic_write(folder / name, data)
    return [folder / name for name in files]


def _setting(result: Result, draws: Values) -> list[Block]:
    described = result.described
    dataset, preset = described["dataset"], described["protocol"]
    reference = summary(uncompressed_values(result), draws)
    judges = "; ".join(
        f"{c['name']} (SHA-256 {c['sha256'][:12]}…, input {c['preprocessing']['side'] or 'as coded'})"
        for c in described["classifiers"]
    )
    bundles = {
        f"{b['name']} ({b['id']}, weights {b['weights_sha256'][:12]}…)"
        for curve in result.curves
        if (b := curve.described.get("bundle"))
    }
    lines = [
        (
            f"{len(result)} photos of {dataset['name']} (SHA-256 {dataset['sha256'][:12]}…), protocol {preset['name']}: "
            f"{preset['description']}."
        ),
        f"Classifiers: {judges}." + (f" SLIM's bundle: {', '.join(sorted(bundles))}." if bundles else ""),
        (
            "Bits per pixel are 8 x bytes of the whole file / pixels of the photo that was coded. Intervals are 95 % bootstrap "
            "intervals over photos."
        ),
    ]
    rows = [
        [f"uncompressed, {judge}", _with_interval(reference[f"top1 {judge}"]), _with_interval(reference[f"top5 {judge}"])]
        for judge in result.judges
    ]  # fmt: skip
    return [*map(Text, lines), Table(["", "top-1, %", "top-5, %"], rows)]


def _at_rates(result: Result) -> list[Block]:
    draws = resamples(len(result), BD_RESAMPLES)
    blocks: list[Block] = [Heading("At equal bits")]
    for judge in result.judges:
        rows = [
            [
                curve.name,
                *(_with_interval(relative_at(result, curve, judge, bpp, draws)) or "–" for bpp in RATES),
            ]
            for curve in result.curves
            if not curve.control
        ]
        blocks.append(
            Table([f"top-1 to uncompressed, %, by {judge}", *(f"{bpp:.2f} bpp" for bpp in RATES)], rows)
        )
    blocks.append(
        Text(
            "Between measured points, linear in the logarithm of the rate; – where a codec's files do not reach the rate."
        )
    )
    return blocks


def _bd_tables(result: Result, anchor: Curve) -> list[Block]:
    draws = resamples(len(result), BD_RESAMPLES)
    blocks: list[Block] = []
    for judge in result.judges:
        blocks.append(Heading(f"Against {anchor.name}, judged by {judge}"))
        rows = []
        for curve in result.curves:
            if curve is anchor or curve.control:
                continue
            rate = compare(bd_rate, result, anchor, curve, f"top1 {judge}", draws)
            points = compare(bd_score, result, anchor, curve, f"top1 {judge}", draws)
            psnr = compare(bd_rate, result, anchor, curve, "psnr", draws)
            less_grey = _bare(result, anchor, curve, judge, draws)
            rows.append(
                [
                    curve.name,
                    _difference(rate, "%"),
                    _overlap(rate, "{:.1f}..{:.1f} %"),
                    "" if less_grey is None else _difference(less_grey, "%"),
                    _difference(points, ""),
                    _overlap(points, "{:.3f}..{:.3f} bpp"),
                    _difference(psnr, "%"),
                    _overlap(psnr, "{:.1f}..{:.1f} dB"),
                ]
            )
        headers = [
            "curve", "BD-rate at equal top-1", "over", f"with {anchor.name} less grey", "BD-top-1, points", "over", "BD-rate at equal PSNR", "over",
        ]  # fmt: skip
        blocks.append(Table(headers, rows))
    blocks.append(
        Text(
            "Negative BD-rate: fewer bits for the same. PCHIP on the logarithm of the rate, over the part of the axis that both "
            "curves cover, which is given with its share of what either covers; without one, and with fewer than two points, "
            "it is undefined. For BD-rate, points that are no better than one of lower rate are left out (how many of both curves is in brackets). "
            "Intervals from the same resampled photos for both curves; none where more than 5 % of resamples are undefined. "
            f"\u201cWith {anchor.name} less grey\u201d: its files are counted less the bytes that it spends on a flat grey picture of the same size and "
            "quality, those of the other codec in full, so that the other does not win by the anchor's container."
        )
    )
    return blocks


def _bare(result: Result, anchor: Curve, test: Curve, judge: str, draws: Values) -> Difference | None:
    """BD-rate in top-1 against an anchor that is given its container, None where that was not measured."""
    if not any("grey" in point.columns for point in anchor.points):
        return None
    return compare(bd_rate, result, anchor, test, f"top1 {judge}", draws, "bpp_less_grey")


def _controls(result: Result, draws: Values) -> list[Block]:
    enhanced = [curve for curve in result.curves if curve.slim and curve.slim.enhanced]
    if not enhanced:
        return []
    blocks: list[Block] = [Heading("What the caption does: controls")]
    alone = summary(uncompressed_values(result), draws)
    pixels = np.array(result.photos["pixels"], np.float64)
    bits = 8 * np.array(result.photos["caption"]["bytes"], np.float64)
    blocks.append(
        Text(
            f"The caption alone, without any picture, names the class of {_with_interval(alone['caption alone'])} % of the "
            f"photos, in {bits.mean():.1f} bits ({(bits / pixels).mean():.5f} bpp, the file's header not counted). Accuracy "
            "near that line may come from the caption and not from the picture. A wrong caption names a class drawn at random: the more "
            "often it is seen in the picture, the more the caption paints."
        )
    )
    for curve in enhanced:
        blocks += [plots.controls(result, curve, judge, draws) for judge in result.judges]
        blocks += [
            _controls_table(result, curve, judge, number, draws) for number, judge in enumerate(result.judges)
        ]
    return blocks


def _controls_table(result: Result, curve: Curve, judge: str, number: int, draws: Values) -> Table:
    rows = []
    for point, none, wrong in control_points(result, curve):
        own, bare, misled = (point_summary(result, p, draws) for p in (point, none, wrong))
        gain = interval(top(point.columns, number, 1) - top(none.columns, number, 1), draws)
        rows.append(
            [
                f"{curve.name}, quality {point.quality}",
                f"{own['bpp'][0]:.3f}",
                _with_interval(own[f"top1 {judge}"]),
                _with_interval(bare[f"top1 {judge}"]),
                _signed(gain),
                _with_interval(misled[f"kept {judge}"]),
                _with_interval(misled[f"drawn_in {judge}"]),
            ]
        )
    headers = [
        f"judged by {judge}", "bpp", "top-1, %", "no caption", "difference, paired", "wrong caption: true kept", "wrong drawn in",
    ]  # fmt: skip
    return Table(headers, rows)


def _points_table(result: Result, draws: Values) -> Table:
    extra = [
        (name, LABELS[name], digits)
        for name, digits in zip(FIDELITY, (2, 2, 2, 4, 4), strict=True)
        if any(name in point.columns for curve in result.curves for point in curve.points)
    ]
    detected = "detector" in result.described and result.described["detector"]
    headers = ["curve, quality", "bpp", "bytes", "of these header + caption"]
    for judge in result.judges:
        headers += [f"top-1, % ({judge})", "top-5, %", "top-1 to uncompressed"]
    headers += [label for _, label, _ in extra] + (["mAP@0.5"] if detected else [])
    rows = []
    for curve in result.curves:
        for point in sorted(curve.points, key=lambda p: float(np.mean(p.columns["bytes"]))):
            found = point_summary(result, point, draws)
            parts = f"{found['header'][0]:.0f} + {found['caption'][0]:.1f}" if "header" in found else ""
            row = [
                f"{curve.name}, {point.quality}", f"{found['bpp'][0]:.4f}", f"{found['bytes'][0]:,.0f}", parts,
            ]  # fmt: skip
            for judge in result.judges:
                row += [
                    _with_interval(found[f"top1 {judge}"]),
                    f"{found[f'top5 {judge}'][0]:.1f}",
                    _signed(found[f"change {judge}"]),
                ]
            row += [f"{found[name][0]:.{digits}f}" if found.get(name) else "" for name, _, digits in extra]
            if detected:
                row.append("" if found.get("map50") is None else f"{100 * found['map50']:.1f}")
            rows.append([*row, *_times(point.milliseconds)])
    return Table([*headers, "encode, ms", "decode, ms"], rows)


def _times(milliseconds: Mapping[str, Any]) -> list[str]:
    return [f"{milliseconds[name]:.0f}" for name in ("encode", "decode")]


def _with_interval(found: Sequence[float] | None) -> str:
    if found is None:
        return ""
    return f"{found[0]:.1f}" if np.isnan(found[1]) else f"{found[0]:.1f} [{found[1]:.1f}, {found[2]:.1f}]"


def _signed(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[0]:+.1f} [{found[1]:+.1f}, {found[2]:+.1f}]"


def _difference(difference: Difference, unit: str) -> str:
    value = difference.comparison.value
    if value is None:
        return UNDEFINED
    text = f"{value:+.1f}{unit and ' '}{unit}"
    if difference.interval is None:
        return text
    return f"{text} [{difference.interval[0]:+.1f}, {difference.interval[1]:+.1f}]"


def _overlap(difference: Difference, form: str) -> str:
    found = difference.comparison
    dropped = f" ({found.dropped} left out)" if found.dropped else ""
    if found.low is None or found.high is None:
        return f"no overlap{dropped}"
    return f"{form.format(found.low, found.high)}, {100 * found.share:.0f} % of both{dropped}"
