"""What ``--roi`` means: words, or the mask of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slimcodec.codec import Roi
    from slimcodec.images import Pixels


def region_of(said: str, pixels: Pixels) -> Roi:
    """The argument ``roi`` of ``Codec.encode`` for a picture: "auto", None, or a mask file brought to its size.

    Raises ``ImageError`` for a mask that cannot be read.
    """
    if said in ("auto", "none"):
        return None if said == "none" else said
    from PIL import Image

    from slimcodec.images import load_image
    from slimcodec.roi.annotations import mask_from_picture

    return mask_from_picture(Image.fromarray(load_image(said)), (pixels.shape[1], pixels.shape[0]))
