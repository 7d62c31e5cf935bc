"""Plots of a report: a wide version for a page and a narrow one for a telephone, each as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from slimcodec.evaluation.curves import Curve
from slimcodec.evaluation.results import MeasuredCurve, Result
from slimcodec.evaluation.summary import Published, Summary, control_curves

#: Okabe & Ito's palette, which eyes of every kind of colour vision tell apart; black is for guidance
BLUE, VERMILLION, ORANGE, GREEN = "#0072B2", "#D55E00", "#E69F00", "#009E73"
SKY, PURPLE, YELLOW, GREY, BLACK = "#56B4E9", "#CC79A7", "#B8A600", "#808080", "#000000"
PEER_STYLES = {
    "jpeg": (GREY, "s"),
    "jpeg2000": (SKY, "D"),
    "webp": (GREEN, "^"),
    "avif": (ORANGE, "v"),
    "jxl": (PURPLE, "P"),
    "heic": (YELLOW, "X"),
}
OTHER_COLOURS = (SKY, GREEN, PURPLE, ORANGE, GREY, YELLOW)
BYTE_TICKS = (100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.5))
Draw = Callable[[Any], None]


@dataclass(frozen=True)
class Plot:
    """A plot as PNG bytes: ``wide``, 1920 pixels for 1280 on a page, and ``narrow``, 800 for 400."""

    kind: ClassVar[str] = "plot"
    name: str
    caption: str
    wide: bytes
    narrow: bytes


def style(curve: Curve, number: int) -> dict[str, Any]:
    """Colour, marker and line of a curve: SLIM strong, a caption that acts solid, peers thin."""
    slim = curve.slim
    if slim is None:
        colour, marker = PEER_STYLES.get(curve.name, (OTHER_COLOURS[number % len(OTHER_COLOURS)], "*"))
        return {"color": colour, "marker": marker, "linewidth": 1.4, "markersize": 5, "zorder": 2}
    return {
        "color": BLUE if not slim.steps else BLACK if slim.guidance else VERMILLION,
        "marker": "o" if slim.caption == "auto" else "h",
        "linestyle": "-" if curve.headline else DASHED,
        "linewidth": 2.4,
        "markersize": 6,
        "zorder": 3,
    }


def rate_accuracy(summary: Summary, judge: str) -> Plot:
    """Top-1 of a classifier against bits per pixel, every curve but those with wrong captions."""
    result, measure = summary.result, f"top1 {judge}"
    shown = [curve for curve in result.curves if not curve.control]
    level, alone = _mean(summary, measure), _mean(summary, "caption alone")

    def draw(axes: Any) -> None:
        _level(axes, level, f"uncompressed {level:.1f}", GREY)
        if any(curve.slim and curve.slim.enhanced for curve in shown):
            _level(axes, alone, f"caption alone, no picture {alone:.1f}", VERMILLION, below=alone < level)
        _curves(axes, summary, shown, measure)
        axes.set_ylabel(f"top-1, %  ({judge})")
        axes.set_ylim(0, max(level, 1) * 1.12)
        _bytes_axis(axes, result)

    text = (
        f"Top-1 accuracy of {judge} against bits per pixel of whole files, {len(result)} photos; bars are 95 % intervals "
        "over photos."
    )
    return _plot(_name(result, judge, "rate-accuracy"), text, draw)


def rate_distortion(summary: Summary, measure: str, label: str) -> Plot:
    """A fidelity measure against bits per pixel."""

    def draw(axes: Any) -> None:
        _curves(axes, summary, (curve for curve in summary.result.curves if not curve.control), measure)
        axes.set_ylabel(label)
        _bytes_axis(axes, summary.result)

    text = f"{label} against bits per pixel, {len(summary.result)} photos."
    return _plot(f"rate-{_slug(measure)}", text, draw)


def controls(summary: Summary, curve: MeasuredCurve, judge: str) -> Plot:
    """An enhanced curve of SLIM with what its caption does without a picture, what no caption gives, and what a wrong one does."""
    none, wrong = control_curves(summary.result, curve)
    alone = _mean(summary, "caption alone")

    def draw(axes: Any) -> None:
        _level(axes, alone, f"caption alone, no picture {alone:.1f}", VERMILLION)
        lines = (
            # from thick to thin: where a caption does nothing the first three lie upon each other
            ("with its caption", curve, f"top1 {judge}", VERMILLION, "o", "-", 6),
            ("no caption", none, f"top1 {judge}", BLUE, "h", "-", 3),
            ("wrong caption: true class kept", wrong, f"kept {judge}", ORANGE, "^", DASHED, 1.5),
            ("wrong caption: drawn in", wrong, f"drawn_in {judge}", BLACK, "X", DOTTED, 1.5),
        )
        for label, drawn, measure, colour, marker, line, width in lines:
            how = {"color": colour, "marker": marker, "linestyle": line, "linewidth": width}
            _curve(axes, summary, drawn, measure, label, **how)
        axes.set_ylabel(f"photos, %  ({judge})")
        axes.set_ylim(0, 100)
        _bytes_axis(axes, summary.result)

    text = f"{curve.name} and its controls, judged by {judge}."
    return _plot(_name(summary.result, judge, f"controls {curve.name}"), text, draw)


def beside_published(summary: Summary, judge: str, published: Published) -> Plot:
    """SLIM's measured curves (solid) and published ones (dashed), whose bpp is estimated and whose photos differ."""
    result = summary.result

    def draw(axes: Any) -> None:
        slim = (curve for curve in result.curves if curve.slim and curve.headline)
        _curves(axes, summary, slim, f"top1 {judge}")
        for number, (name, points) in enumerate(published.curves):
            colour = OTHER_COLOURS[number % len(OTHER_COLOURS)]
            how: dict[str, Any] = {"color": colour, "linestyle": (0, (3, 3)), "marker": ".", "linewidth": 1.2}
            axes.plot(*zip(*points, strict=True), label=f"{name} (published)", **how)
        _level(axes, published.uncompressed, f"uncompressed there {published.uncompressed:.1f}", GREY)
        axes.set_ylabel("top-1, %")
        axes.set_ylim(bottom=0)
        # said in the picture itself, which may be shown without its caption
        axes.set_title("dashed: published; estimated bpp, other photos and classifier", loc="left")

    text = f"Not one experiment: the dashed points are published. {published.differs}. {published.source}"
    return _plot(_name(result, judge, f"published {published.title[:40]}"), text, draw)


def _mean(summary: Summary, measure: str) -> float:
    """The mean of a measure of the uncompressed photos, NaN without one."""
    return (summary.uncompressed.get(measure) or (np.nan,))[0]


def _curves(axes: Any, summary: Summary, curves: Iterable[MeasuredCurve], measure: str) -> None:
    for number, curve in enumerate(curves):
        _curve(axes, summary, curve, measure, curve.name, **style(curve, number))


def _curve(axes: Any, summary: Summary, curve: MeasuredCurve, measure: str, label: str, **how: Any) -> None:
    points = [summary.points[curve.name, quality] for quality in curve.qualities]
    pairs = [(rate[0], score) for point in points if (rate := point["bpp"]) and (score := point.get(measure))]
    if not pairs:
        return
    x, scores = zip(*sorted(pairs), strict=True)
    y, low, high = np.array(scores).T
    axes.plot(x, y, label=label, **how)
    axes.errorbar(
        x, y, yerr=np.abs([low - y, high - y]), fmt="none", ecolor=how["color"], alpha=0.35, linewidth=1
    )


def _level(axes: Any, y: float, label: str, colour: str, below: bool = False) -> None:
    axes.axhline(y, color=colour, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        label,
        (0.01, y),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3 if below else 2),
        textcoords="offset points",
        va="top" if below else "bottom",
        color=colour,
        fontsize="small",
    )


def _bytes_axis(axes: Any, result: Result) -> None:
    """Bytes of a file on top, where all photos have one size."""
    sizes = set(result.photos["pixels"])
    if len(sizes) == 1:
        pixels = sizes.pop()
        top = axes.secondary_xaxis("top", functions=(lambda x: x * pixels / 8, lambda x: x * 8 / pixels))
        top.set_xlabel("bytes a file")
        top.set_xticks(BYTE_TICKS)
        top.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        top.xaxis.set_minor_formatter(NullFormatter())


def _plot(name: str, caption: str, draw: Draw) -> Plot:
    return Plot(name, caption, _drawn(draw, (12.8, 6.6), 150, True), _drawn(draw, (4.0, 6.2), 200, False))


def _drawn(draw: Draw, inches: tuple[float, float], dpi: int, wide: bool) -> bytes:
    figure = Figure(figsize=inches, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    axes.set_xscale("log")
    draw(axes)
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS if low <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bits per pixel, whole files (log scale)")
    axes.grid(True, which="major", alpha=0.25)
    axes.spines[["right"]].set_visible(False)
    if not wide:
        for line in axes.lines:
            line.set_linewidth(0.6 * line.get_linewidth())
            line.set_markersize(0.7 * line.get_markersize())
    size = 11 if wide else 7.5
    for text in figure.findobj(lambda artist: hasattr(artist, "set_fontsize")):
        text.set_fontsize(size)  # type: ignore[attr-defined]
    place: dict[str, Any] = (
        {"loc": "outside right upper"} if wide else {"loc": "outside lower left", "ncols": 1}
    )
    figure.legend(fontsize=size, frameon=False, handlelength=3, **place)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _name(result: Result, judge: str, what: str) -> str:
    """The file name of a plot for a classifier; the first one's goes without its name."""
    return _slug(what if judge == result.judges[0] else f"{what} {judge}")


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
