"""What ``--roi`` means: words, or the mask of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slimcodec.codec import Roi


def region_of(said: str) -> Roi:
    """The argument ``roi`` of ``Codec.encode``: "auto", None, or the mask of a picture file.

    Raises ``ImageError`` for a file that cannot be read.
    """
    if said in ("auto", "none"):
        return None if said == "none" else said
    from PIL import Image

    from slimcodec.data.masks import mask_from_picture
    from slimcodec.images import load_image

    picture = Image.fromarray(load_image(said))
    return mask_from_picture(picture, picture.size)
