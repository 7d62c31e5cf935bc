"""Example photos at about equal bytes across codecs, with a classifier's verdict on each and SLIM's bit map."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from slimcodec.bit_map import draw_bits
from slimcodec.data.classifiers import Classifier, load_classifier
from slimcodec.data.photos import Photo
from slimcodec.data.sources import LabelledPhotos
from slimcodec.errors import SlimError
from slimcodec.evaluation.document import Cell, Sheet
from slimcodec.evaluation.peers import PictureCodec
from slimcodec.evaluation.protocol import prepare, protocol
from slimcodec.evaluation.results import Curve, Result
from slimcodec.evaluation.slim_curves import IMAGENET_CLASSES, class_names, shared_codec
from slimcodec.evaluation.worker import Curve as CurveToRun
from slimcodec.evaluation.worker import build_codec
from slimcodec.images import Pixels

#: how far above the target a smallest file may be and still count as equal
TOLERANCE = 1.02
_MARGIN, _LINE = 8, 15


def example_sheet(
    result: Result,
    samples: LabelledPhotos,
    classifier: str,
    target: int,
    count: int,
    model: str | None,
    device: str,
) -> Sheet:
    """``count`` photos of the result, coded again by its codecs to at most ``target`` bytes each.

    The photos are the first by id, a hash of their bytes: nobody chose them. Of each codec the largest quality that fits is
    shown; a codec that cannot make a file so small shows its smallest one, and its bytes say so.

    Raises ``SlimError`` where the data set lacks a photo of the result, or the classifier is not one of the result's.
    """
    chosen = protocol(result.described["protocol"]["name"])
    judging = load_classifier(classifier, chosen.name)
    if judging.sha256 not in {known["sha256"] for known in result.described["classifiers"]}:
        raise SlimError(
            f"{classifier}: not a classifier of this result, which has {', '.join(result.judges)}"
        )
    places = {id_: row for row, id_ in enumerate(samples.ids)}
    curves = [curve for curve in result.curves if curve.headline]
    rows = []
    for id_, label in list(zip(result.photos["id"], result.photos["label"], strict=True))[:count]:
        if id_ not in places:
            raise SlimError(f"{samples.name}: photo {id_} of the result is not in this data set")
        sample = samples.read(places[id_])
        photo = prepare(sample, chosen)
        photo = Photo(photo.pixels, id=photo.id, class_index=int(label))
        rows.append(_row(photo, curves, judging, target, model, device))
    return Sheet(rows, _contact_sheet(rows))


def largest_that_fits(
    codec: PictureCodec, photo: Photo, qualities: Sequence[int], target: int
) -> tuple[bytes, int]:
    """The file of the best quality with at most ``target`` bytes, or the smallest file, and its quality.

    ``qualities``: those of a curve; all whole numbers between the least and the greatest are tried by bisection, best
    being the end with the larger file.
    """
    low, high = min(qualities), max(qualities)
    files = {quality: codec.encode(photo, quality) for quality in (low, high)}
    worst, best = sorted((low, high), key=lambda quality: len(files[quality]))
    if len(files[best]) <= target:
        return files[best], best
    while abs(best - worst) > 1:
        middle = (best + worst) // 2
        files[middle] = codec.encode(photo, middle)
        if len(files[middle]) <= target:
            worst = middle
        else:
            best = middle
    return files[worst], worst


def _row(
    photo: Photo,
    curves: Sequence[Curve],
    classifier: Classifier,
    target: int,
    model: str | None,
    device: str,
) -> list[Cell]:
    names = _names(classifier, curves, model, device)
    raw = photo.pixels.nbytes
    cells = [_cell(photo, photo.pixels, "original", f"{raw:,} bytes raw", classifier, names)]
    mapped = False
    for curve in curves:
        template = curve.described.get("template")
        codec = build_codec(CurveToRun(curve.name, (), template, curve.slim), model, device)
        qualities = [point.quality for point in curve.points]
        data, quality = largest_that_fits(codec, photo, qualities, target)
        detail = f"{len(data):,} bytes, quality {quality}"
        if len(data) > target * TOLERANCE:
            detail = f"{len(data):,} bytes: its smallest"
        cells.append(_cell(photo, codec.decode(data), curve.name, detail, classifier, names))
        if curve.slim is not None and not mapped:
            mapped = True
            slim = shared_codec(model, device)
            drawn = draw_bits(photo.pixels, slim.bit_map(photo.pixels, quality), slim.cell)
            cells.insert(1, Cell(_png(drawn), "bit map", f"of {curve.name}", "", None))
    return cells


def _cell(
    photo: Photo, pixels: Pixels, title: str, detail: str, classifier: Classifier, names: Sequence[str]
) -> Cell:
    guess, rank = classifier.judge(pixels, photo.class_index)
    verdict = f"{'right' if rank == 0 else 'wrong'}: {names[guess] if names else f'class {guess}'}"
    return Cell(_png(Image.fromarray(pixels)), title, detail, verdict, rank == 0)


def _names(
    classifier: Classifier, curves: Sequence[Curve], model: str | None, device: str
) -> tuple[str, ...]:
    if classifier.classes != IMAGENET_CLASSES or not any(curve.slim for curve in curves):
        return ()
    return class_names(shared_codec(model, device).bundle.vocabulary)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _contact_sheet(rows: Sequence[Sequence[Cell]]) -> bytes:
    """All cells as one picture, a row for each photo, 256 pixels a cell."""
    side, text = 256, 3 * _LINE + _MARGIN
    font = ImageFont.load_default(13)
    columns = max(map(len, rows), default=0)
    sheet = Image.new(
        "RGB",
        (columns * (side + _MARGIN) + _MARGIN, len(rows) * (side + text + _MARGIN) + _MARGIN),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            left, top = _MARGIN + x * (side + _MARGIN), _MARGIN + y * (side + text + _MARGIN)
            picture = Image.open(io.BytesIO(cell.picture)).convert("RGB")
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left, top))
            colour = {True: "#00604a", False: "#9c3d00", None: "black"}[cell.right]
            for line, (words, ink) in enumerate(
                ((cell.title, "black"), (cell.detail, "#444444"), (cell.verdict, colour))
            ):
                draw.text((left, top + side + 2 + line * _LINE), words[:38], fill=ink, font=font)
    return _png(sheet)
