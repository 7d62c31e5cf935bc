"""Any picture in, one kind of array out: RGB, 8 bits, sRGB, upright, opaque; and the formats that Pillow and its plugins read."""

import importlib
import io
import os
import re
import struct
import sys
import warnings
from numbers import Real
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from slimcodec.colours import deep_to_rgb, on_white, source_profile, to_srgb, upright, warn_ignored, white_of
from slimcodec.errors import ImageError, LossWarning, SlimError
from slimcodec.errors import ImageWarning as ImageWarning  # noqa: PLC0414  where callers look for it
from slimcodec.files import as_path, bytes_or_name
from slimcodec.leftovers import losses

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageLike: TypeAlias = Image.Image | npt.NDArray[np.uint8] | str | os.PathLike[str] | bytes | BinaryIO

MAX_SIDE = 2**24  # the most that the header of a .slim file can hold
#: of a mask, from here up: a trimap's border is below (Oxford-IIIT pets: 255 animal, 127 border)
OBJECT_VALUE = 128
SMALL_AREA = 1 << 20  # padded pixels that are allowed however small the limit is

#: modules that teach Pillow a format when they are imported
PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_jxl", "pillow_jpls", "pillow_avif")
#: formats of which Pillow reads the header only
_HEADER_ONLY = ("MPEG",)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
#: losses that make another picture than its owner may think, so that reading it always warns of them
SHOWN_LOSSES = ("frames", "raw")
#: brightest values, of 255, of a picture that is as good as black: of 8 bits, and of more, where 14 bits in 16 look so
NEARLY_BLACK, NEARLY_BLACK_DEEP = 16, 64
#: in the words of Pillow's readers, what is no damage
_UNSUPPORTED = re.compile(
    r"unsupported|not supported|unknown|unrecogni[sz]ed (?!data stream)|unimplemented|cannot load this|cannot find loader",
    re.IGNORECASE,
)


def load_image(image: ImageLike, max_pixels: int | None = None, *, every_loss: bool = False) -> Pixels:
    """Return ``image`` as an ``H x W x 3`` uint8 array of sRGB values, upright and opaque.

    ``image`` is a PIL image, an array, a path, or the bytes of an image file, also as an open binary file. For a file or a PIL
    image:

    - the EXIF rotation is applied (``PIL.ImageOps.exif_transpose`` turns a picture and forgets its rotation; one that was
      turned by hand, its EXIF data kept, is turned twice), and colours converted to sRGB, by the ICC profile or what else the file says of them
      (``colours.source_profile``; what is broken or unfitting is ignored with an ``ImageWarning``);
    - the first frame of an animation is taken, of a PIL image the current one;
    - grey, 1-bit, palette, CMYK, YCbCr, LAB and HSV become RGB; transparency is laid on white;
    - deep grey becomes 8 bits. White is the format's: 4095 in a 12-bit TIFF, 65535 in a 16-bit PNG or PGM and in ``I;16``
      without a format. Else ``I`` and ``F`` take the smallest of the usual ranges that holds every value: 0..1 (``F``
      only), 0..255, 0..65535.

    Arrays are uint8, ``H x W`` (grey), ``H x W x 3`` (RGB) or ``H x W x 4`` (RGBA, straight alpha), taken as sRGB; the result
    may share the array's memory.

    ``max_pixels``: most pixels of a file or bytes, so that a small file can't fill the memory; ``None`` is
    ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million), which is read and never set: it belongs to the whole process.

    A file warns with ``LossWarning`` of further frames and raw data, with ``every_loss`` of all that it holds beyond the
    picture (``leftovers.KINDS``), and with ``ImageWarning`` of a picture that is nearly black.

    Raises ``ImageError`` for what is no picture, is truncated, empty, too large, or an array of another kind.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image, source_profile(image))
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if hasattr(image, "read"):
        image = bytes_or_name(image, ImageError)
    if isinstance(image, bytes | bytearray | memoryview):
        return _from_bytes(bytes(image), max_pixels, every_loss)
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        try:
            return _from_bytes(as_path(path).read_bytes(), max_pixels, every_loss)
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
    kinds = "a PIL image, an H x W x 3 uint8 array, a path, or an image file's bytes or open file"
    raise ImageError(f"{type(image).__name__} is not a picture; pass {kinds}")


def as_file(picture: Image.Image | Pixels, format: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of a picture file; ``options`` are those of ``Image.save``."""
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file, format, **options)
    return file.getvalue()


def mask_from_picture(mask: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """The object part of a grey mask picture as [H, W], 0 or 1, at ``size`` (width, height)."""
    scaled = mask.convert("L").resize(size, Image.Resampling.NEAREST)
    return (np.asarray(scaled) >= OBJECT_VALUE).astype(np.float32)


def padded_size(height: int, width: int, cell: int) -> tuple[int, int]:
    """Height and width of a picture padded to whole cells of ``cell`` pixels a side."""
    return height + -height % cell, width + -width % cell


def check_size(height: int, width: int, cell: int, max_pixels: int | None = None) -> tuple[int, int]:
    """Return ``padded_size``; ``ImageError`` where the picture has more than ``max_pixels``.

    A picture of a pixel's height costs as much as one of a cell's: memory follows the padded area.
    """
    limit = _limit(max_pixels)
    padded = padded_size(height, width, cell)
    area = padded[0] * padded[1]
    if limit is not None and (width * height > limit or area > max(limit, SMALL_AREA)):
        raise ImageError(
            f"a picture of {width}x{height} pixels, {area} with padding, is more than max_pixels={limit}; "
            "pass a larger max_pixels (--max-pixels) to allow it"
        )
    return padded


def _limit(max_pixels: int | None) -> int | None:
    """The most pixels that a picture may have, None for any number; ``SlimError`` for what is no number."""
    if max_pixels is not None and not (
        isinstance(max_pixels, Real) and max_pixels >= 0
    ):  # a NaN would allow all
        raise SlimError(f"max_pixels is {max_pixels!r}; give a number of pixels")
    return Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels


def _from_bytes(data: bytes, max_pixels: int | None, every_loss: bool) -> Pixels:
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    limit = _limit(max_pixels)
    bomb = ImageError(
        f"the picture has more than max_pixels={limit} pixels, as decompression bombs do; "
        "if you trust the file, pass a larger max_pixels (--max-pixels)"
    )
    try:
        with _open(io.BytesIO(data)) as opened:
            if limit is not None and opened.width * opened.height > limit:
                raise bomb
            profile = source_profile(opened, data)
            pixels = _from_pil(opened, profile)
            _warn_losses(opened, data, profile, pixels, every_loss)
            return pixels
    except _BOMBS as error:
        if Image.MAX_IMAGE_PIXELS == limit:
            raise bomb from error
        raise ImageError(
            f"{error} Pillow holds pictures within this format to its own limit: raise PIL.Image.MAX_IMAGE_PIXELS too"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(str(error)) from error
    except (SlimError, Warning):
        raise
    except Exception as error:  # what Pillow's readers raise on damaged headers has no common base
        raise _unreadable("the image file is damaged", error) from error


def _open(file: BinaryIO) -> Image.Image:
    """Open as ``Image.open`` does, but for its limit, which cannot be changed for one call alone."""
    start = file.read(16)
    tried: set[str] = set()
    reasons: list[str] = []
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for name in [name for name in Image.ID if name not in tried]:
            tried.add(name)
            factory, accept = Image.OPEN[name]
            try:
                accepted = accept is None or accept(start)
                if isinstance(accepted, str):  # why this build of Pillow cannot
                    reasons.append(accepted)
                elif accepted:
                    file.seek(0)
                    return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                pass  # of another format
    kind = "a .slim file, not a picture" if start[:1] == b"\xf5" else "not an image that Pillow can read"
    reasons = reasons or [kind]
    raise UnidentifiedImageError(
        f"{'; '.join(reasons)}; convert it to PNG or JPEG first, or install the format's plugin"
    )


def _from_array(array: npt.NDArray[np.generic]) -> Pixels:
    if array.dtype != np.uint8:
        raise ImageError(
            f"an array of {array.dtype} has no one meaning; pass uint8 values 0..255, for instance "
            "(x * 255).round().clip(0, 255).astype(np.uint8) where x is 0..1"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "; channels come last: x.transpose(1, 2, 0)" if channels_first else ""
        raise ImageError(
            f"an array of shape {array.shape} is not a picture; pass H x W, H x W x 3 or H x W x 4{hint}"
        )
    _check_sides(array.shape[1], array.shape[0])
    # masked arrays' module takes 10 ms to import; who has such an array has imported it
    if "numpy.ma" in sys.modules and np.ma.is_masked(array):
        raise ImageError("a masked array has no colour where it is masked; fill it: x.filled(255)")
    pixels: Pixels = np.ascontiguousarray(array, dtype=np.uint8)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels if pixels.shape[2] == 3 else np.array(on_white(Image.fromarray(pixels)))


def _from_pil(image: Image.Image, profile: bytes | None) -> Pixels:
    _check_sides(*image.size)
    try:
        image.load()
    except (SlimError, *_BOMBS):
        raise
    except Exception as error:  # as above: OSError, SyntaxError, struct.error, IndexError, ...
        unread = getattr(image, "tile", None) and getattr(image, "fp", None) is None
        if unread or "closed" in str(error):
            raise ImageError(
                "the PIL image is closed; encode it before, or load() it before its file is"
            ) from error
        raise _unreadable("the picture is truncated or damaged", error) from error
    white = white_of(image)
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image, profile = deep_to_rgb(image, profile, *white), None
    return np.array(to_srgb(image, profile))


def _warn_losses(
    image: Image.Image, data: bytes, profile: bytes | None, pixels: Pixels, every_loss: bool
) -> None:
    try:
        found = list(losses(image, data, profile))
    except Exception as error:  # noqa: BLE001  the picture was read; what lies behind it is of another frame or metadata
        found = []
        warn_ignored("damaged data beside the picture", error)
    for kind, text in found:
        if every_loss or kind in SHOWN_LOSSES:
            warnings.warn(LossWarning(kind, text), stacklevel=4)
    deep = image.mode.startswith("I") or image.mode == "F"
    if (brightest := int(pixels.max())) <= (NEARLY_BLACK_DEEP if deep else NEARLY_BLACK):
        text = f"the picture is nearly black: its brightest value is {brightest} of 255"
        warnings.warn(text, ImageWarning, stacklevel=4)


def _unreadable(what: str, error: Exception) -> ImageError:
    """Return the error for what a reader of Pillow raised: ``what``, unless the file may be whole."""
    reason = str(error) or type(error).__name__
    if "Ghostscript" in reason:
        return ImageError(f"it needs Ghostscript ({reason}); install it, or convert the picture to PNG first")
    if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(reason):
        return ImageError(
            f"a kind of file that Pillow does not support ({reason}); convert it to PNG or JPEG first"
        )
    return ImageError(f"{what}: {reason}")


def _check_sides(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the picture is empty ({width} x {height}); it needs at least one pixel")
    if width > MAX_SIDE or height > MAX_SIDE:
        raise ImageError(
            f"{width} x {height} is too large: a side has at most {MAX_SIDE} pixels; cut it into tiles"
        )


def register_plugins() -> None:
    """Teach Pillow the formats of ``PLUGINS``, for the whole process; a plugin that cannot be imported is left out."""
    for module in PLUGINS:
        try:
            importlib.import_module(module)
        except ImportError:
            continue


def format_of(suffix: str) -> str | None:
    """Return the name of the format that Pillow writes for a suffix with its dot, None where it writes none."""
    Image.preinit()
    if suffix not in Image.EXTENSION:  # the usual formats are known without importing all plugins
        register_plugins()
    name = Image.EXTENSION.get(suffix) or Image.registered_extensions().get(suffix)
    return name if name in Image.SAVE else None


def picture_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case with their dot, of the formats that Pillow reads; plugins are registered."""
    register_plugins()
    suffixes = Image.registered_extensions()  # imports Pillow's own plugins
    return frozenset({suffix for suffix, name in suffixes.items() if _reads(name)} | {".mpo"})


def _reads(name: str) -> bool:
    if name not in Image.OPEN or name in _HEADER_ONLY or name == "SLIM":
        return False
    factory = Image.OPEN[name][0]
    # BUFR, GRIB, HDF5 and, outside Windows, WMF are stubs without a loader
    module = importlib.import_module(factory.__module__)
    stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    return not stub or getattr(module, "_handler", None) is not None
