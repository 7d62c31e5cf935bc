"""Plots of a report: a wide version for a page and a narrow one for a telephone, each as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from slimcodec.evaluation.bootstrap import Values
from slimcodec.evaluation.comparison import Published, control_points
from slimcodec.evaluation.results import Curve, Result, point_values, summary, uncompressed_values

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
Draw = Callable[[Any], None]


@dataclass(frozen=True)
class Plot:
    """A plot as PNG bytes: ``wide``, 1920 pixels for 1280 on a page, and ``narrow``, 800 for 400."""

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
    colour = BLUE if not slim.steps else BLACK if slim.guidance else VERMILLION
    line = "-" if curve.headline else (0, (4, 2))
    marker = "o" if slim.caption == "auto" else "h"
    return {
        "color": colour,
        "marker": marker,
        "linestyle": line,
        "linewidth": 2.4,
        "markersize": 6,
        "zorder": 3,
    }


def rate_accuracy(result: Result, judge: str, draws: Values) -> Plot:
    """Top-1 of a classifier against bits per pixel, every curve but those with wrong captions."""
    measure = f"top1 {judge}"
    shown = [curve for curve in result.curves if not curve.control]
    reference = summary(uncompressed_values(result), draws)

    def draw(axes: Any) -> None:
        level = reference[measure][0]
        _level(axes, level, f"uncompressed {level:.1f}", GREY)
        if reference.get("caption alone") and any(curve.slim and curve.slim.enhanced for curve in shown):
            alone = reference["caption alone"][0]
            _level(axes, alone, f"caption alone, no picture {alone:.1f}", VERMILLION, below=alone < level)
        for number, curve in enumerate(shown):
            _curve(axes, result, curve, measure, draws, curve.name, **style(curve, number))
        axes.set_ylabel(f"top-1, %  ({judge})")
        axes.set_ylim(0, max(level, 1) * 1.12)
        _bytes_axis(axes, result)

    text = (
        f"Top-1 accuracy of {judge} against bits per pixel of whole files, {len(result)} photos; bars are 95 % intervals "
        "over photos."
    )
    return _plot(_name(result, judge, "rate-accuracy"), text, draw)


def rate_distortion(result: Result, measure: str, label: str, draws: Values) -> Plot:
    """A fidelity measure against bits per pixel."""

    def draw(axes: Any) -> None:
        for number, curve in enumerate(curve for curve in result.curves if not curve.control):
            _curve(axes, result, curve, measure, draws, curve.name, **style(curve, number))
        axes.set_ylabel(label)
        _bytes_axis(axes, result)

    return _plot(f"rate-{_slug(measure)}", f"{label} against bits per pixel, {len(result)} photos.", draw)


def controls(result: Result, curve: Curve, judge: str, draws: Values) -> Plot:
    """An enhanced curve of SLIM with what its caption does without a picture, what no caption gives, and what a wrong one does."""
    triples = control_points(result, curve)
    alone = summary(uncompressed_values(result), draws)["caption alone"][0]

    def draw(axes: Any) -> None:
        _level(axes, alone, f"caption alone, no picture {alone:.1f}", VERMILLION)
        lines = (
            # from thick to thin: where a caption does nothing the first three lie upon each other
            ("with its caption", 0, f"top1 {judge}", VERMILLION, "o", "-", 6),
            ("no caption", 1, f"top1 {judge}", BLUE, "h", "-", 3),
            ("wrong caption: true class kept", 2, f"kept {judge}", ORANGE, "^", (0, (4, 2)), 1.5),
            ("wrong caption: drawn in", 2, f"drawn_in {judge}", BLACK, "X", (0, (1, 1.5)), 1.5),
        )
        for label, place, measure, colour, marker, line, width in lines:
            points = [triple[place] for triple in triples]
            _points(
                axes,
                result,
                points,
                measure,
                draws,
                label,
                color=colour,
                marker=marker,
                linestyle=line,
                linewidth=width,
            )
        axes.set_ylabel(f"photos, %  ({judge})")
        axes.set_ylim(0, 100)
        _bytes_axis(axes, result)

    text = f"{curve.name} and its controls, judged by {judge}."
    return _plot(_name(result, judge, f"controls {curve.name}"), text, draw)


def beside_published(result: Result, judge: str, published: Published, draws: Values) -> Plot:
    """SLIM's measured curves (solid) and published ones (dashed), whose bpp is estimated and whose photos differ."""
    measure = f"top1 {judge}"

    def draw(axes: Any) -> None:
        for number, curve in enumerate(curve for curve in result.curves if curve.slim and curve.headline):
            _curve(axes, result, curve, measure, draws, curve.name, **style(curve, number))
        for number, (name, points) in enumerate(published.curves):
            colour = OTHER_COLOURS[number % len(OTHER_COLOURS)]
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                label=f"{name} (published)",
                color=colour,
                linestyle=(0, (3, 3)),
                marker=".",
                linewidth=1.2,
            )
        _level(axes, published.uncompressed, f"uncompressed there {published.uncompressed:.1f}", GREY)
        axes.set_ylabel("top-1, %")
        axes.set_ylim(bottom=0)
        # said in the picture itself, which may be shown without its caption
        axes.set_title("dashed: published; estimated bpp, other photos and classifier", loc="left")

    text = f"Not one experiment: the dashed points are published. {published.differs}. {published.source}"
    return _plot(_name(result, judge, f"published {published.title[:40]}"), text, draw)


def _curve(
    axes: Any, result: Result, curve: Curve, measure: str, draws: Values, label: str, **how: Any
) -> None:
    _points(axes, result, curve.points, measure, draws, label, **how)


def _points(
    axes: Any, result: Result, points: Sequence[Any], measure: str, draws: Values, label: str, **how: Any
) -> None:
    found = [summary(_chosen(point_values(result, point), measure), draws) for point in points]
    found = sorted((s for s in found if s.get(measure)), key=lambda s: float(s["bpp"][0]))
    if not found:
        return
    x = [s["bpp"][0] for s in found]
    y = [s[measure][0] for s in found]
    spread = np.abs(np.array([[s[measure][1], s[measure][2]] for s in found]).T - np.array(y))
    axes.plot(x, y, label=label, **how)
    axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=how["color"], alpha=0.35, linewidth=1)


def _chosen(values: dict[str, Values], measure: str) -> dict[str, Values]:
    return {name: column for name, column in values.items() if name in ("bpp", measure)}


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
