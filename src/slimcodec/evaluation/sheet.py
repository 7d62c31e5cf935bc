"""Example photos at about equal bytes across codecs, with a classifier's verdict on each and SLIM's bit map."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image

from slimcodec.bit_map import draw_bits
from slimcodec.data.classifiers import Classifier, load_classifier
from slimcodec.data.contact_sheet import Tile, contact_sheet
from slimcodec.data.photos import Photo
from slimcodec.data.sources import LabelledPhotos
from slimcodec.encoder import largest_that_fits
from slimcodec.errors import SlimError
from slimcodec.evaluation.curves import IMAGENET_CLASSES, class_names, shared_codec
from slimcodec.evaluation.peers import PictureCodec
from slimcodec.evaluation.results import MeasuredCurve, Result
from slimcodec.evaluation.worker import prepare
from slimcodec.images import Pixels

#: how far above the target a smallest file may be and still count as equal
TOLERANCE = 1.02
#: side of a picture on the contact sheet
SIDE = 256
INK = {True: "#00604a", False: "#9c3d00", None: "black"}


@dataclass(frozen=True)
class Cell:
    """A picture with what made it, its size, and a verdict: right, wrong, or None where none is due."""

    pixels: Pixels
    title: str
    detail: str
    verdict: str = ""
    right: bool | None = None

    def png(self) -> bytes:
        """The picture as a PNG file."""
        return _png(Image.fromarray(self.pixels))

    def tile(self) -> Tile:
        """The picture and its words on a contact sheet."""
        picture = Image.fromarray(self.pixels)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        lines = (self.title, self.detail, self.verdict)
        return Tile(np.asarray(picture), lines, ("black", "#444444", INK[self.right]))


@dataclass(frozen=True)
class Sheet:
    """Example photos, a row of cells each; ``picture``: the whole sheet as one PNG."""

    kind: ClassVar[str] = "sheet"
    rows: Sequence[Sequence[Cell]]
    picture: bytes


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
    protocol = result.described["protocol"]["name"]
    judge = load_classifier(classifier, protocol)
    if judge.sha256 not in {known["sha256"] for known in result.described["classifiers"]}:
        raise SlimError(
            f"{classifier}: not a classifier of this result, which has {', '.join(result.judges)}"
        )
    places = {id_: row for row, id_ in enumerate(samples.ids)}
    curves = [curve for curve in result.curves if curve.headline]
    rows = []
    for id_, label in list(zip(result.photos["id"], result.photos["label"], strict=True))[:count]:
        if id_ not in places:
            raise SlimError(f"{samples.name}: photo {id_} of the result is not in this data set")
        photo = replace(prepare(samples.read(places[id_]), protocol), class_index=int(label))
        rows.append(_row(photo, curves, judge, target, model, device))
    return Sheet(rows, _png(contact_sheet([[cell.tile() for cell in row] for row in rows])))


def best_that_fits(
    codec: PictureCodec, photo: Photo, qualities: Sequence[int], target: int
) -> tuple[int, bytes]:
    """The best quality whose file has at most ``target`` bytes, else that of the smallest file, and the file.

    ``qualities``: those of a curve; all whole numbers between the least and the greatest count, best being the end with the
    larger file.
    """
    low, high = min(qualities), max(qualities)
    smallest, largest = sorted((low, high), key=lambda quality: len(codec.encode(photo, quality)))
    if len(data := codec.encode(photo, smallest)) > target:
        return smallest, data
    # JPEG 2000's qualities are ratios: its files shrink as they grow
    sign = 1 if smallest <= largest else -1
    quality, data = largest_that_fits(
        lambda number: codec.encode(photo, sign * number), target, (sign * smallest, sign * largest)
    )
    return sign * quality, data


def _row(
    photo: Photo,
    curves: Sequence[MeasuredCurve],
    classifier: Classifier,
    target: int,
    model: str | None,
    device: str,
) -> list[Cell]:
    names: tuple[str, ...] = ()
    if classifier.classes == IMAGENET_CLASSES and any(curve.slim for curve in curves):
        names = class_names(shared_codec(model, device).bundle.vocabulary)

    def cell(pixels: Pixels, title: str, detail: str) -> Cell:
        guess, rank = classifier.judge(pixels, photo.class_index)
        verdict = f"{'right' if rank == 0 else 'wrong'}: {names[guess] if names else f'class {guess}'}"
        return Cell(pixels, title, detail, verdict, rank == 0)

    cells = [cell(photo.pixels, "original", f"{photo.pixels.nbytes:,} bytes raw")]
    bit_map: Cell | None = None
    for curve in curves:
        codec = curve.codec(model, device)
        quality, data = best_that_fits(codec, photo, curve.qualities, target)
        detail = f"{len(data):,} bytes, quality {quality}"
        if len(data) > target * TOLERANCE:
            detail = f"{len(data):,} bytes: its smallest"
        cells.append(cell(codec.decode(data), curve.name, detail))
        if curve.slim is not None and bit_map is None:
            slim = shared_codec(model, device)
            drawn = draw_bits(photo.pixels, slim.bit_map(photo.pixels, quality), slim.cell)
            bit_map = Cell(np.asarray(drawn.convert("RGB")), "bit map", f"of {curve.name}")
    return [cells[0], *([bit_map] if bit_map else []), *cells[1:]]


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
