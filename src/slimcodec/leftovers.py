"""What an image file holds that its ``.slim`` file does not: frames, depth, transparency, metadata."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from slimcodec.colours import wider_than_srgb

#: kinds of losses
KINDS = {
    "frames": "further frames, pages, layers or sizes",
    "raw": "camera raw data",
    "depth": "more than 8 bits",
    "transparency": "transparency",
    "colour": "colours beyond sRGB",
    "vector": "drawings that scale",
    "exif": "EXIF",
    "gps": "GPS",
    "xmp": "XMP",
    "other": "comments, IPTC, other data",
}
#: where a JPEG and a PNG file end; phones append videos
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_NEW_SUBFILE, _BITS, _PHOTOMETRIC, _SUB_IFDS, _XMP, _GPS, _DNG = 254, 258, 262, 330, 700, 34853, 50706
_CFA = (32803, 34892)
#: tags of TIFF that describe how the pixels are stored, and the rotation, which is applied
_STORAGE = {*range(254, 267), *range(273, 286), *range(290, 302), *range(317, 348), *range(512, 533)}
_STORAGE |= {_XMP, *range(32995, 32999), 33723, 34377, 34675, _GPS, 37724, _DNG}
_OTHER_TAGS = {33723, 34377, 37724}
_PNM = re.compile(rb"P[2356](?:(?:\s|#[^\n]*\n)+(\d+)){3}")


def losses(image: Image.Image, data: bytes, profile: bytes | None) -> Iterator[tuple[str, str]]:
    """Yield (kind, description) of what a loaded picture's file holds beyond opaque sRGB of 8 bits.

    ``data``: the bytes of the file. ``profile``: as ``colours.source_profile`` gives it. Raises what Pillow raises on damage
    behind the picture, which has no common base.
    """
    tags: dict[int, Any] = dict(getattr(image, "tag_v2", None) or {})
    if further := _frames(image, tags):
        yield "frames", f"{further}; the first picture alone is encoded"
    if data[8:10] == b"CR" or _DNG in tags or tags.get(_PHOTOMETRIC) in _CFA or tags.get(_NEW_SUBFILE, 0) & 1:
        width, height = image.size
        yield "raw", f"a camera's raw file; its preview of {width}x{height} pixels alone is encoded"
    if (bits := _bits(image, data, tags)) > 8:
        yield "depth", f"{bits} bits a sample"
    elif image.format in ("JXL", "DDS"):
        yield "depth", "samples whose depth is unknown"
    if _transparent(image):
        yield "transparency", "transparency"
    if wider_than_srgb(image, profile):
        yield "colour", KINDS["colour"]
    if image.format in ("EPS", "WMF"):
        yield "vector", KINDS["vector"]
    yield from _metadata(image, data)


def _frames(image: Image.Image, tags: dict[int, Any]) -> str:
    # Pillow does not count the composite of a PSD file's layers
    frames = getattr(image, "n_frames", 1) + (image.format == "PSD")
    if frames > 1:
        return f"{frames} {'pages' if image.format == 'TIFF' else 'layers' if image.format == 'PSD' else 'frames'}"
    if len(sizes := image.info.get("sizes", ())) > 1:
        return f"{len(sizes)} sizes"
    further = _SUB_IFDS in tags or image.info.get("aux") or image.info.get("depth_images")
    return "further pictures beside the first" if further else ""


def _bits(image: Image.Image, data: bytes, tags: dict[int, Any]) -> int:
    if image.mode == "I" or image.mode == "F":
        return max(tags.get(_BITS, (32 if image.mode == "F" else 16,)))
    if _BITS in tags:
        return int(max(tags[_BITS]))
    if image.format == "PNG":
        return data[24]
    if image.format == "PPM" and (header := _PNM.match(data)):
        return int(header[1]).bit_length()
    if image.format == "SGI":
        return 8 * data[3]
    if image.format == "PSD":
        return data[23]
    if image.format == "JPEG2000" and (at := data.find(b"\xff\x51")) >= 0:
        return (data[at + 40] & 0x7F) + 1
    if image.format in ("AVIF", "HEIF") and (at := data.find(b"pixi")) >= 0:
        return data[at + 9]
    return 16 if "16" in image.mode + str(getattr(image, "rawmode", "")) else 8


def _transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    if image.mode.startswith("I"):
        return True
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def _metadata(image: Image.Image, data: bytes) -> Iterator[tuple[str, str]]:
    info, exif = image.info, image.getexif()
    if set(exif) - _STORAGE:
        yield "exif", "EXIF data"
    if exif.get_ifd(_GPS):
        yield "gps", "a GPS position"
    if "xmp" in info or "XML:com.adobe.xmp" in info or _XMP in exif:
        yield "xmp", "XMP data"
    texts = [
        name
        for name in getattr(image, "text", {})
        if "xmp" not in name.lower() and "exif" not in name.lower()
    ]
    segments = {name for name, _ in getattr(image, "applist", ())} - {"APP0", "APP1", "APP2", "APP14", "COM"}
    end = _ENDS.get(image.format or "")
    appended = end and data[data.rfind(end) + len(end) :].strip(b"\0\r\n \xff")
    comment = info.get("comment")
    if image.format == "JPEG2000" and comment and comment.startswith(b"Created by"):
        comment = None  # of the encoder, in every file
    if comment or texts or segments or _OTHER_TAGS & set(exif) or appended:
        yield "other", "data after the picture" if appended else KINDS["other"]
