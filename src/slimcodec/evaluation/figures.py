"""The pictures of a report: plots, wide for a page and narrow for a telephone, and example photos at about equal bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from slimcodec.codec import default_codec
from slimcodec.data.classifiers import Classifier, load_classifier
from slimcodec.data.contact_sheet import Tile, draw_bits
from slimcodec.data.photos import Photo
from slimcodec.data.sources import LabelledPhotos
from slimcodec.errors import SlimError
from slimcodec.evaluation.bench import prepare
from slimcodec.evaluation.curves import IMAGENET_CLASSES, Curve, class_names
from slimcodec.evaluation.peers import best_that_fits
from slimcodec.evaluation.results import MeasuredCurve, Published, Result
from slimcodec.images import Pixels

#: Okabe & Ito's palette, which eyes of every kind of colour vision tell apart; black is for guidance
BLUE, VERMILLION, ORANGE, GREEN = "#0072B2", "#D55E00", "#E69F00", "#009E73"
SKY, PURPLE, YELLOW, GREY, BLACK = "#56B4E9", "#CC79A7", "#B8A600", "#808080", "#000000"
PEER_STYLES = {
    "jpeg": (GREY, "s"),
    "jpeg2000": (SKY, "D"),
    "webp": (GREEN, "^"),
    "avif": (ORANGE, "v"),
    "avif-444": (ORANGE, "<"),
    "jxl": (PURPLE, "P"),
    "heic": (YELLOW, "X"),
}
OTHER_COLOURS = (SKY, GREEN, PURPLE, ORANGE, GREY, YELLOW)
BYTE_TICKS = (100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.5))
#: how far above the target a smallest file may be and still count as equal
TOLERANCE = 1.02
#: colours of words under an example
DETAIL, RIGHT, WRONG = "#444444", "#00604a", "#9c3d00"


@dataclass(frozen=True)
class Plot:
    """A plot as PNG bytes: ``wide``, 1920 pixels for 1280 on a page, and ``narrow``, 800 for 400."""

    name: str
    caption: str
    wide: bytes
    narrow: bytes


def rate_accuracy(result: Result, judge: str) -> Plot:
    """Top-1 of a classifier against bits per pixel, every curve but those with wrong captions."""
    measure = f"top1 {judge}"
    level = float(result.uncompressed[measure].mean())
    axes = _axes(f"top-1, %  ({judge})", result)
    _level(axes, level, f"uncompressed {level:.1f}", GREY)
    if any(curve.slim and curve.slim.enhanced for curve in result.shown):
        _caption_level(axes, result, level)
    _draw_curves(axes, result.shown, measure)
    axes.set_ylim(0, max(level, 1) * 1.12)
    text = (
        f"Top-1 accuracy of {judge} against bits per pixel of whole files, {len(result)} photos; bars are 95 % intervals "
        "over photos."
    )
    return _plot(axes, _name(result, judge, "rate-accuracy"), text)


def rate_distortion(result: Result, measure: str, label: str) -> Plot:
    """A fidelity measure against bits per pixel."""
    axes = _axes(label, result)
    _draw_curves(axes, result.shown, measure)
    return _plot(axes, _slug(f"rate {measure}"), f"{label} against bits per pixel, {len(result)} photos.")


def controls(result: Result, curve: MeasuredCurve, judge: str) -> Plot:
    """An enhanced curve of SLIM with what its caption does without a picture, what no caption gives, and what a wrong one does."""
    none, wrong = result.controls(curve)
    axes = _axes(f"photos, %  ({judge})", result)
    _caption_level(axes, result)
    lines = (
        # from thick to thin: where a caption does nothing the first three lie upon each other
        ("with its caption", curve, "top1", VERMILLION, "o", "-", 6),
        ("no caption", none, "top1", BLUE, "h", "-", 3),
        ("wrong caption: true class kept", wrong, "kept", ORANGE, "^", DASHED, 1.5),
        ("wrong caption: drawn in", wrong, "drawn_in", BLACK, "X", DOTTED, 1.5),
    )
    for label, drawn, measure, colour, marker, line, width in lines:
        how = {"color": colour, "marker": marker, "linestyle": line, "linewidth": width}
        _draw_curve(axes, drawn, f"{measure} {judge}", label, how)
    axes.set_ylim(0, 100)
    name = _name(result, judge, f"controls {curve.name}")
    return _plot(axes, name, f"{curve.name} and its controls, judged by {judge}.")


def beside_published(result: Result, judge: str, published: Published) -> Plot:
    """SLIM's measured curves (solid) and published ones (dashed), whose bpp is estimated and whose photos differ."""
    axes = _axes("top-1, %")
    _draw_curves(axes, (curve for curve in result.curves if curve.slim and curve.headline), f"top1 {judge}")
    for number, (name, points) in enumerate(published.curves):
        colour = OTHER_COLOURS[number % len(OTHER_COLOURS)]
        how: dict[str, Any] = {"color": colour, "linestyle": (0, (3, 3)), "marker": ".", "linewidth": 1.2}
        axes.plot(*zip(*points, strict=True), label=f"{name} (published)", **how)
    _level(axes, published.uncompressed, f"uncompressed there {published.uncompressed:.1f}", GREY)
    axes.set_ylim(bottom=0)
    # said in the picture itself, which may be shown without its caption
    axes.set_title("dashed: published; estimated bpp, other photos and classifier", loc="left")
    text = f"Not one experiment: the dashed points are published. {published.differs}. {published.source}"
    return _plot(axes, _name(result, judge, f"published {published.title[:40]}"), text)


def _style(curve: Curve, number: int) -> dict[str, Any]:
    """Colour, marker and line of a curve: SLIM strong, a caption that acts solid, peers thin."""
    slim = curve.slim
    if slim is None:
        colour, marker = PEER_STYLES.get(curve.name, (OTHER_COLOURS[number % len(OTHER_COLOURS)], "*"))
        return {"color": colour, "marker": marker, "linewidth": 1.4, "markersize": 5, "zorder": 2}
    return {
        "color": BLACK if slim.guidance else VERMILLION if slim.steps else BLUE,
        "marker": "o" if slim.caption == "auto" else "h",
        "linestyle": "-" if curve.headline else DASHED,
        "linewidth": 2.4,
        "markersize": 6,
        "zorder": 3,
    }


def _axes(label: str, result: Result | None = None) -> Any:
    """Axes over bits per pixel; with a ``result`` whose photos have one size, bytes of a file on top."""
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlabel("bits per pixel, whole files (log scale)")
    axes.set_ylabel(label)
    axes.grid(True, which="major", alpha=0.25)
    axes.spines[["right"]].set_visible(False)
    sizes = set(result.photos["pixels"]) if result else set()
    if len(sizes) == 1:
        pixels = sizes.pop()
        top = axes.secondary_xaxis("top", functions=(lambda x: x * pixels / 8, lambda x: x * 8 / pixels))
        top.set_xlabel("bytes a file")
        _set_ticks(top, BYTE_TICKS, ",.0f")
    return axes


def _set_ticks(axes: Any, ticks: Sequence[float], form: str) -> None:
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format(x, form)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_curves(axes: Any, curves: Iterable[MeasuredCurve], measure: str) -> None:
    for number, curve in enumerate(curves):
        _draw_curve(axes, curve, measure, curve.name, _style(curve, number))


def _draw_curve(axes: Any, curve: MeasuredCurve, measure: str, label: str, how: dict[str, Any]) -> None:
    summaries = [point.summary for point in curve.points]
    pairs = [(bpp[0], score) for one in summaries if (bpp := one["bpp"]) and (score := one.get(measure))]
    if not pairs:
        return
    x, scores = zip(*sorted(pairs), strict=True)
    y, low, high = np.array(scores).T
    axes.plot(x, y, label=label, **how)
    ends = np.abs([low - y, high - y])
    axes.errorbar(x, y, yerr=ends, fmt="none", ecolor=how["color"], alpha=0.35, linewidth=1)


def _level(axes: Any, y: float, label: str, colour: str, below: bool = False) -> None:
    axes.axhline(y, color=colour, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    where |= {"xytext": (0, -3), "va": "top"} if below else {"xytext": (0, 2), "va": "bottom"}
    axes.annotate(label, (0.01, y), color=colour, **where)


def _caption_level(axes: Any, result: Result, other: float = 0.0) -> None:
    """The accuracy of the caption alone, labelled away from another level."""
    alone = float(result.uncompressed["caption alone"].mean())
    _level(axes, alone, f"caption alone, no picture {alone:.1f}", VERMILLION, below=alone < other)


def _plot(axes: Any, name: str, caption: str) -> Plot:
    low, high = axes.get_xlim()
    _set_ticks(axes, [tick for tick in TICKS if low <= tick <= high], "g")
    wide = _saved(axes.figure, (12.8, 6.6), 150, 11, "outside right upper")
    for line in axes.lines:
        line.set_linewidth(0.6 * line.get_linewidth())
        line.set_markersize(0.7 * line.get_markersize())
    return Plot(name, caption, wide, _saved(axes.figure, (4.0, 6.2), 200, 7.5, "outside lower left"))


def _saved(figure: Any, inches: tuple[float, float], dpi: int, size: float, legend: str) -> bytes:
    """A figure as PNG at a size, with text of a ``size`` in points and its legend."""
    figure.set_size_inches(inches)
    for text in figure.findobj(lambda artist: hasattr(artist, "set_fontsize")):
        text.set_fontsize(size)
    drawn = figure.legend(fontsize=size, frameon=False, handlelength=3, loc=legend)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    drawn.remove()
    return file.getvalue()


def _name(result: Result, judge: str, what: str) -> str:
    """The file name of a plot for a classifier; the first one's goes without its name."""
    return _slug(what if judge == result.judges[0] else f"{what} {judge}")


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def example_sheet(
    result: Result,
    samples: LabelledPhotos,
    classifier: str,
    target: int,
    count: int,
    model: str | None,
    device: str,
) -> list[list[Tile]]:
    """``count`` photos of the result, where SLIM's bits went, and each codec's picture of at most ``target`` bytes.

    The photos are the first by id, a hash of their bytes: nobody chose them. Where no file is so small the smallest is shown.
    Raises ``SlimError`` where the data set lacks a photo of the result, or the classifier is not one of the result's.
    """
    protocol = result.described["protocol"]["name"]
    judge = load_classifier(classifier, protocol)
    if judge.sha256 not in {known["sha256"] for known in result.described["classifiers"]}:
        raise SlimError(f"{classifier}: not among the result's classifiers {', '.join(result.judges)}")
    codecs = [(curve, curve.codec(model, device)) for curve in result.curves if curve.headline]
    mapped = next((curve for curve, _ in codecs if curve.slim), None)
    slim = default_codec(model, device) if mapped else None
    names = class_names(slim) if slim and judge.classes == IMAGENET_CLASSES else ()
    rows = []
    for id_, label in list(zip(result.photos["id"], result.photos["label"], strict=True))[:count]:
        if id_ not in samples.ids:
            raise SlimError(f"{samples.name}: photo {id_} of the result is not in this data set")
        photo = replace(prepare(samples.read(samples.ids.index(id_)), protocol), class_index=int(label))
        words = ("original", f"{photo.pixels.nbytes:,} bytes raw")
        row = [judged_tile(photo.pixels, photo, judge, words, names)]
        for curve, codec in codecs:
            quality, data = best_that_fits(partial(codec.encode, photo), curve.qualities, target)
            fits = len(data) <= target * TOLERANCE
            detail = f"{len(data):,} bytes" + (f", quality {quality}" if fits else ": its smallest")
            row.append(judged_tile(codec.decode(data), photo, judge, (curve.name, detail), names))
            if slim and curve is mapped:
                # of the file itself: another effort puts the bits elsewhere
                bits = slim.coder.bit_map(slim.read(data)[1])
                drawn = draw_bits(photo.pixels, bits, slim.cell)
                words = ("bit map", f"of {curve.name}")
                row.insert(1, Tile(np.asarray(drawn), words, (BLACK, DETAIL)))
        rows.append(row)
    return rows


def judged_tile(
    pixels: Pixels,
    photo: Photo,
    classifier: Classifier,
    lines: tuple[str, str],
    names: Sequence[str] = (),
    verdicts: tuple[str, str] = ("right", "wrong"),
) -> Tile:
    """A picture with two lines of text and the class that a classifier sees, green for the photo's class and red for another.

    ``names``: of the classes; without them their numbers are shown. ``verdicts``: the words before them.
    """
    guess, rank = classifier.judge(pixels, photo.class_index)
    verdict = f"{verdicts[rank != 0]}: {names[guess] if names else f'class {guess}'}"
    return Tile(pixels, (*lines, verdict), (BLACK, DETAIL, WRONG if rank else RIGHT))
