"""Pillow reads and writes .slim files once this module is imported.

import slimcodec.integrations.pillow
image = Image.open("photo.slim")            # the size is known, nothing is decoded yet
image.save("smaller.slim", target_bytes=300)
"""

from io import BytesIO
from typing import IO, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from slimcodec.container import inspect
from slimcodec.errors import FormatError, VersionError

FORMAT = "SLIM"
_FIRST_BYTES = range(0xF5, 0xFE)
_SAVE_OPTIONS = ("quality", "caption", "target_bytes", "target_bpp")


class SlimImageFile(ImageFile.ImageFile):
    """A .slim file: ``open`` reads its header, ``load`` decodes it with the default codec.

    Mode RGB, the original size. ``info`` holds ``quality``, ``caption`` (or None) and ``bundle_id``.
    ``load`` raises ``ModelMismatchError`` if the file needs another bundle than the embedded one.
    """

    format = FORMAT
    format_description = "SLIM image"

    def _open(self) -> None:
        assert self.fp is not None
        self._data = self.fp.read()
        try:
            header = inspect(self._data)
        except (FormatError, VersionError) as error:
            # Pillow's own error for this, and unlike SyntaxError it keeps the reason.
            raise UnidentifiedImageError(str(error)) from error
        self._mode = "RGB"
        self._size = (header.width, header.height)
        self.info.update(quality=header.quality, caption=header.caption, bundle_id=header.bundle_id)
        self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), 0, self._mode)]

    def load(self) -> Any:
        """Decode the picture, once."""
        if self.tile:
            import slimcodec

            pixels = slimcodec.decode(self._data).tobytes()
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = BytesIO(pixels)
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Do nothing: what ``load`` hands to Pillow begins with the pixels."""


def _accept(prefix: bytes) -> bool:
    return bool(prefix) and prefix[0] in _FIRST_BYTES


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    """Encode with the default codec; ``Image.save`` takes the options of ``slimcodec.encode``."""
    import slimcodec

    options: dict[str, Any] = {
        name: image.encoderinfo[name] for name in _SAVE_OPTIONS if name in image.encoderinfo
    }
    fp.write(slimcodec.encode(image, **options))


Image.register_open(FORMAT, SlimImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".slim")
Image.register_mime(FORMAT, "image/x-slim")
