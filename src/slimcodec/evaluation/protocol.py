"""What a codec is given and what a classifier sees: the protocol presets, as docs/protocol.md describes them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from slimcodec.data.classifiers import centre_square
from slimcodec.data.photos import Photo, Record
from slimcodec.errors import SlimError


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


def protocol(name: str) -> Protocol:
    """The preset of a name; ``SlimError`` for another."""
    if name not in PROTOCOLS:
        raise SlimError(f"{name!r} is no protocol; take one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def prepare(record: Record, protocol: Protocol) -> Photo:
    """The photo of a record under a protocol: upright sRGB, resized and cropped, its mask with it.

    Raises ``ImageError`` for a photo that cannot be read.
    """
    photo = record.decode()
    if protocol.side is None:
        return photo
    pixels = np.asarray(centre_square(Image.fromarray(photo.pixels), protocol.side))
    mask = (
        None if photo.mask is None else np.asarray(centre_square(Image.fromarray(photo.mask), protocol.side))
    )
    return replace(photo, pixels=pixels, mask=mask)
