"""Pillow reads and writes .slim files once this module is imported.

import slimcodec.integrations.pillow
image = Image.open("photo.slim")            # the size is known, nothing is decoded yet
image.save("smaller.slim", target_bytes=300)

``save`` takes the options of ``slimcodec.encode``. A picture of a .slim file that nobody changed is written as the bytes that it
came from, a changed one at the file's quality, unless an option says otherwise. A file appears whole, or the old one stays:
``Image.save`` is wrapped for this format alone, since Pillow empties a file before it asks any plugin.

A .slim file keeps no metadata: colours become sRGB, and a picture is turned as its EXIF data say. Turn it with
``PIL.ImageOps.exif_transpose``, which forgets the rotation then: after ``rotate`` or ``transpose`` the data are as before, and it
is turned twice.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from functools import wraps
from io import BytesIO
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from slimcodec.container import MAX_FILE_BYTES, inspect, is_slim
from slimcodec.errors import FormatError, SlimError, VersionError
from slimcodec.files import atomic_write
from slimcodec.images import ImageWarning

FORMAT = "SLIM"
SUFFIX = ".slim"
SAVE_OPTIONS = ("quality", "caption", "roi", "effort", "target_bytes", "target_bpp", "max_pixels")
ORIENTATION = 0x0112


@dataclass
class Original:
    """The file that a picture comes from, and the digest of its pixels once they are decoded."""

    data: bytes
    quality: int
    digest: bytes = b""


class BundleId(str):
    """The bundle id in ``info``, whose values Pillow hands to every picture that derives from it: so they know the file."""

    __slots__ = ("original",)
    original: Original


class SlimImageFile(ImageFile.ImageFile):
    """A .slim file: ``open`` reads its header, ``load`` decodes it with the default codec.

    Mode RGB, the original size. ``info`` holds ``quality``, ``caption`` (or None) and ``bundle_id``.
    ``load`` raises ``ModelMismatchError`` if the file needs another bundle than the embedded one.
    """

    format = FORMAT
    format_description = "SLIM image"

    def _open(self) -> None:
        assert self.fp is not None
        if self.fp.seek(0, os.SEEK_END) > MAX_FILE_BYTES:
            raise SyntaxError("longer than any .slim file")
        self.fp.seek(0)
        data = self.fp.read()
        try:
            header = inspect(data)
        except (FormatError, VersionError) as error:
            # Pillow's own error for this, and unlike SyntaxError it keeps the reason.
            raise UnidentifiedImageError(str(error)) from error
        self._mode = "RGB"
        self._size = (header.width, header.height)
        self._original = Original(data, header.quality)
        bundle_id = BundleId(header.bundle_id)
        bundle_id.original = self._original
        self.info.update(quality=header.quality, caption=header.caption, bundle_id=bundle_id)
        self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), 0, self._mode)]

    def load(self) -> Any:
        """Decode the picture, once."""
        if self.tile:
            import slimcodec

            decoded = slimcodec.decode(self._original.data)
            self._original.digest = _digest(decoded)
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = BytesIO(decoded.tobytes())
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Do nothing: what ``load`` hands to Pillow begins with the pixels."""


def _digest(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).digest()


def _encoded(image: Image.Image, options: dict[str, Any]) -> bytes:
    """The .slim file of a picture, by the options of ``slimcodec.encode``; those of other formats are passed over."""
    if options.get("save_all") or options.get("append_images"):
        raise SlimError("a .slim file holds one picture; save each frame as a file")
    chosen = {name: options[name] for name in SAVE_OPTIONS if name in options}
    original: Original | None = getattr(image.info.get("bundle_id"), "original", None)
    if original is not None:
        # an unread picture is unchanged; a copy, or one that was read, is if its pixels are
        unread = isinstance(image, SlimImageFile) and image.tile
        if chosen in ({}, {"quality": original.quality}) and (unread or _digest(image) == original.digest):
            return original.data
        chosen.setdefault("quality", original.quality)
    if not isinstance(image, ImageFile.ImageFile) and (turn := image.getexif().get(ORIENTATION, 1)) != 1:
        warnings.warn(
            f"turned as EXIF orientation {turn} says; if you turned the picture already, do it with ImageOps.exif_transpose",
            ImageWarning,
            stacklevel=4,
        )
    import slimcodec

    return slimcodec.encode(image, **chosen)


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    fp.write(_encoded(image, image.encoderinfo))


def _whole(pillow_save: Any) -> Any:
    @wraps(pillow_save)
    def save(self: Image.Image, fp: Any, format: str | None = None, **options: Any) -> None:
        path = os.fsdecode(fp) if isinstance(fp, str | bytes | os.PathLike) else ""
        suffix = os.path.splitext(path)[1].lower()
        if path and (format or Image.EXTENSION.get(suffix, "")).upper() == FORMAT:
            atomic_write(path, _encoded(self, options))
        else:
            pillow_save(self, fp, format, **options)

    return save


Image.register_open(FORMAT, SlimImageFile, is_slim)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, SUFFIX)
Image.register_mime(FORMAT, "image/x-slim")
Image.Image.save = _whole(Image.Image.save)  # type: ignore[method-assign]
