"""Draw photos of different kinds at equal bytes: original, AVIF, WebP and SLIM's presets, with a classifier's verdict.

    python examples/equal_bytes.py [--out FILE] [--bytes N] [--more | --photos DATASET] [--classifier FILE|ID]

Each photo has as many bytes as its smallest AVIF file, or N. Without a data set the photos are scikit-image's, and the verdict
is whether the classifier answers as on the original, since few of them show one of its classes. With a data set of ``slim bench``
it is whether the answer is right; the photos are the first of each kind by id.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from skimage import data

import slimcodec
from slimcodec.codec import Codec
from slimcodec.data.classifiers import Classifier, load_classifier
from slimcodec.data.contact_sheet import Tile, contact_sheet
from slimcodec.data.photos import Photo
from slimcodec.data.sources import open_labelled
from slimcodec.decoder import Sampling
from slimcodec.evaluation.bench import prepare
from slimcodec.evaluation.curves import class_names
from slimcodec.evaluation.figures import TOLERANCE, judged_tile
from slimcodec.evaluation.peers import Peer, best_that_fits, load_peer
from slimcodec.files import atomic_write
from slimcodec.images import Pixels, as_file
from slimcodec.models.pretrained.hub import centre_square

#: a function of skimage.data for each kind; all are in the public domain or under CC0
FREE_PHOTOS = {
    "people": "astronaut",
    "animal": "cat",
    "food": "coffee",
    "small object": "rocket",
    "texture": "brick",
    "night": "hubble_deep_field",
    "text": "text",
    "drawing": "horse",
}
#: further ones
MORE_PHOTOS = {
    "street": "camera",
    "blur": "clock",
    "many objects": "coins",
    "microscope": "cell",
    "tissue": "immunohistochemistry",
    "retina": "retina",
    "lawn": "grass",
    "stones": "gravel",
}
#: squares of them: function, left, top and side in pixels
DETAILS = {
    "face": ("astronaut", 140, 20, 180),
    "model": ("astronaut", 330, 130, 180),
    "flag": ("astronaut", 0, 220, 200),
    "fur": ("cat", 60, 20, 256),
    "cup": ("coffee", 130, 40, 300),
    "sky": ("rocket", 20, 20, 200),
    "launch pad": ("rocket", 230, 170, 200),
    "galaxies": ("hubble_deep_field", 400, 300, 256),
}
#: ImageNet classes of each kind
KINDS: dict[str, Iterable[int]] = {
    "people": (981, 982, 983),
    "animal": range(151, 269),
    "food": range(924, 970),
    "small object": (301, 309, 322, 323, 574, 722, 783),
    "texture": (489, 599, 601, 825, 885, 955),
    "night": (607, 619, 818, 846, 862),
    "text": (916, 918, 921, 922),
    "drawing": (611, 917),
}
#: pixels: side that is coded, side that is shown, and the frame in the verdict's colour
SIDE, SHOWN, FRAME = 256, 160, 4
#: photos of the short sheet beside the whole one
FIRST = 4
QUALITIES = range(101)


@dataclass(frozen=True)
class Preset:
    """SLIM's files, decoded in one way."""

    codec: Codec
    sampling: Sampling

    def encode(self, photo: Photo, quality: int) -> bytes:
        return self.codec.encode(photo.pixels, max(quality, 1))

    def decode(self, data: bytes) -> Pixels:
        return np.asarray(
            self.codec.decoder.pictures([self.codec.decoder.decompress(data)], self.sampling)[0]
        )


def columns(codec: Codec) -> dict[str, Peer | Preset]:
    """The codecs by name; presets that decode alike share one."""
    names: dict[Sampling, list[str]] = {}
    for name, sampling in (
        ("fast", codec.sampling(steps=0)),
        ("natural", codec.sampling(preset="natural")),
        ("machine", codec.sampling(preset="machine")),
    ):
        names.setdefault(sampling, []).append(name)
    presets = {f"SLIM {', '.join(words)}": Preset(codec, sampling) for sampling, words in names.items()}
    return {"AVIF": load_peer("avif"), "WebP": load_peer("webp"), **presets}


def free_photos(classifier: Classifier, more: bool) -> dict[str, Photo]:
    """scikit-image's photos, with ``more`` all of them and details; their class is the classifier's answer on the original."""
    pictures = {
        kind: free_photo(name) for kind, name in (FREE_PHOTOS | (MORE_PHOTOS if more else {})).items()
    }
    for kind, (name, left, top, side) in DETAILS.items() if more else ():
        pictures[kind] = free_photo(name).crop((left, top, left + side, top + side))
    photos = {}
    for kind, picture in pictures.items():
        pixels = np.asarray(centre_square(picture, SIDE))
        photos[kind] = Photo(pixels, id=kind, class_index=classifier.judge(pixels, 0)[0])
    return photos


def free_photo(name: str) -> Image.Image:
    """A photo of ``skimage.data``."""
    pixels = np.asarray(getattr(data, name)())
    return Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).convert("RGB")


def held_out(source: str) -> dict[str, Photo]:
    """The first photo by id of each kind in a labelled data set; kinds that it lacks are left out."""
    samples = open_labelled(source)
    photos = {}
    for kind, classes in KINDS.items():
        rows = [row for row, label in enumerate(samples.labels) if label in set(classes)]
        if rows:
            row = min(rows, key=lambda row: samples.ids[row])
            photo = prepare(samples.read(row), "icm-256")
            photos[kind] = replace(photo, class_index=samples.labels[row])
    return photos


def rows(
    photos: dict[str, Photo],
    codec: Codec,
    classifier: Classifier,
    target: int | None,
    verdicts: tuple[str, str],
) -> list[list[Tile]]:
    """A row for each photo: the original, then each codec at its best quality that fits in ``target`` bytes.

    Without a ``target`` it is the size of the photo's smallest AVIF file.
    """
    names, codecs, drawn = class_names(codec), columns(codec), []
    for kind, photo in photos.items():
        most = target or len(codecs["AVIF"].encode(photo, 0))

        def tile(pixels: Pixels, name: str, detail: str, photo: Photo = photo) -> Tile:
            judged = judged_tile(pixels, photo, classifier, (name, detail), names, verdicts)
            small = Image.fromarray(pixels).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
            return replace(judged, pixels=np.asarray(ImageOps.expand(small, FRAME, judged.colours[-1])))

        row = [tile(photo.pixels, f"original: {kind}", f"{photo.pixels.nbytes:,} bytes raw")]
        for name, one in codecs.items():
            _, file = best_that_fits(partial(one.encode, photo), QUALITIES, most)
            detail = f"{len(file):,} bytes" + ("" if len(file) <= most * TOLERANCE else ": its smallest")
            row.append(tile(one.decode(file), name, detail))
        drawn.append(row)
    return drawn


def main() -> None:
    """Draw all photos into FILE, and without --more the first four into FILE-first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("equal-bytes.webp"),
        help="file of the sheet (default: equal-bytes.webp)",
    )
    parser.add_argument(
        "--bytes", type=int, help="largest file (default: the smallest AVIF file of each photo)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--more", action="store_true", help="24 of scikit-image's photos and details of them")
    which.add_argument("--photos", help="labelled data set (default: scikit-image's photos)")
    parser.add_argument("--classifier", default="efficientnet-lite1", help="judge, as of slim bench")
    arguments = parser.parse_args()
    codec, classifier = slimcodec.load(), load_classifier(arguments.classifier)
    photos = held_out(arguments.photos) if arguments.photos else free_photos(classifier, arguments.more)
    verdicts = ("right", "wrong") if arguments.photos else ("same", "other")
    drawn = rows(photos, codec, classifier, arguments.bytes, verdicts)
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    sheets = {out: drawn}
    if not arguments.more:
        sheets[out.with_stem(f"{out.stem}-first")] = drawn[:FIRST]
    for path, shown in sheets.items():
        kind = out.suffix.removeprefix(".").upper()
        atomic_write(path, as_file(contact_sheet(shown), kind, quality=85))


if __name__ == "__main__":
    main()
