"""What a codec is given and what a classifier sees: the protocol presets, as docs/protocol.md describes them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimcodec.data.masks import mask_from_boxes, mask_from_picture
from slimcodec.errors import SlimError
from slimcodec.evaluation.datasets import Sample
from slimcodec.images import Pixels, load_image


@dataclass(frozen=True)
class Protocol:
    """How photos are prepared before coding. ``side``: short side and centre crop in pixels, None keeps the original."""

    name: str
    side: int | None
    description: str


PROTOCOLS = {
    "icm-256": Protocol(
        "icm-256",
        256,
        "short side to 256 (antialiased bilinear), centre crop 256, codec, classifier on the whole 256x256 picture",
    ),
    "full": Protocol(
        "full",
        None,
        "codec on the photo in its original size; each classifier prepares its own centre square",
    ),
}


@dataclass(frozen=True)
class Photo:
    """A photo as codecs get it: bare ``pixels`` [H, W, 3] uint8 sRGB, its class, and its RoI [H, W] bool or None."""

    id: str
    label: int
    pixels: Pixels
    roi: NDArray[np.bool_] | None = None


def protocol(name: str) -> Protocol:
    """The preset of a name; ``SlimError`` for another."""
    if name not in PROTOCOLS:
        raise SlimError(f"{name!r} is no protocol; take one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def prepare(sample: Sample, chosen: Protocol) -> Photo:
    """The photo of a sample under a protocol: upright sRGB, resized and cropped, mask or boxes with it.

    Raises ``ImageError`` for a photo that cannot be read.
    """
    picture = Image.fromarray(load_image(sample.image))
    roi = None
    if sample.mask is not None:
        roi = mask_from_picture(Image.open(io.BytesIO(sample.mask)), picture.size)
    elif sample.boxes:
        roi = mask_from_boxes(sample.boxes, picture.size)
    if chosen.side is None:
        return Photo(sample.id, sample.label, np.asarray(picture), None if roi is None else roi >= 0.5)
    pixels = square(picture, chosen.side)
    if roi is not None:
        roi = np.asarray(square(Image.fromarray(roi), chosen.side))
    return Photo(sample.id, sample.label, np.asarray(pixels), None if roi is None else roi >= 0.5)


def square(picture: Image.Image, side: int) -> Image.Image:
    """The centre square of ``side`` pixels after the short side is resized to it, antialiased bilinear.

    Lengths and offsets are rounded as ``torchvision``'s Resize and CenterCrop do, on which the published numbers rest.
    """
    width, height = picture.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2.0), round((size[1] - side) / 2.0)
    return picture.crop((left, top, left + side, top + side))
