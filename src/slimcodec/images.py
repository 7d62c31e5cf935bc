"""Any picture in, one kind of array out: RGB, 8 bits, sRGB, upright, opaque."""

import io
import os
import threading
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from slimcodec.errors import ImageError, SlimError

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageLike: TypeAlias = Image.Image | npt.NDArray[np.uint8] | str | os.PathLike[str] | bytes

MAX_SIDE = 2**24  # the most that the header of a .slim file can hold
SMALL_AREA = 1 << 20  # padded pixels that are allowed however small the limit is

# Pillow's limit and the warning filters belong to the whole process.
_pillow_limit_lock = threading.RLock()
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class ImageWarning(UserWarning):
    """A picture was read, but something in its file (a colour profile, a rotation) was ignored."""


def load_image(image: ImageLike, max_pixels: int | None = None) -> Pixels:
    """Return ``image`` as an ``H x W x 3`` uint8 array of sRGB values, upright and opaque.

    ``image`` is a PIL image, an array, a path, or the bytes of an image file. For a file or a PIL image:

    - the EXIF rotation is applied, and the ICC profile converted to sRGB (a broken or unfitting profile is ignored with an
      ``ImageWarning``);
    - the first frame of an animation is taken, of a PIL image the current one;
    - grey, 1-bit, palette, CMYK, YCbCr, LAB and HSV become RGB; transparency is laid on white;
    - deep grey becomes 8 bits: ``I;16`` by its 16-bit range, ``I`` and ``F`` by the smallest of the usual ranges that holds
      every value: 0..1 (``F`` only), 0..255, 0..65535.

    Arrays are uint8, ``H x W`` (grey), ``H x W x 3`` (RGB) or ``H x W x 4`` (RGBA, straight alpha), taken as sRGB; the result
    may share the array's memory.

    ``max_pixels``: most pixels of a file or bytes, so that a small file can't fill the memory; ``None`` is
    ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million). Threads read files one at a time: Pillow has one limit for the process.

    Raises ``ImageError`` for what is no picture, is truncated, empty, too large, or an array of another kind.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return _from_bytes(bytes(image), max_pixels)
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        try:
            return _from_bytes(Path(path).read_bytes(), max_pixels)
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
    kinds = "a PIL image, an H x W x 3 uint8 array, a path, or the bytes of an image file"
    raise ImageError(f"{type(image).__name__} is not a picture; pass {kinds}")


def padded_size(height: int, width: int, cell: int) -> tuple[int, int]:
    """Height and width of a picture padded to whole cells of ``cell`` pixels a side."""
    return height + -height % cell, width + -width % cell


def check_size(height: int, width: int, cell: int, max_pixels: int | None = None) -> tuple[int, int]:
    """Return ``padded_size``; ``ImageError`` where the picture has more than ``max_pixels``.

    A picture of a pixel's height costs as much as one of a cell's: memory follows the padded area.
    """
    with _pillow_limit_lock:  # not while another thread reads a picture with a limit of its own
        limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    padded = padded_size(height, width, cell)
    area = padded[0] * padded[1]
    if limit is not None and (width * height > limit or area > max(limit, SMALL_AREA)):
        raise ImageError(
            f"a picture of {width}x{height} pixels, {area} with padding, is more than max_pixels={limit}; "
            "pass a larger max_pixels to allow it"
        )
    return padded


def _from_bytes(data: bytes, max_pixels: int | None) -> Pixels:
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    with _pillow_limit_lock, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # of pictures up to twice the limit
        before = Image.MAX_IMAGE_PIXELS
        limit = Image.MAX_IMAGE_PIXELS = before if max_pixels is None else max_pixels
        try:
            with Image.open(io.BytesIO(data)) as opened:
                return _from_pil(opened)
        except _BOMBS as error:
            raise ImageError(
                f"the picture has more than max_pixels={limit} pixels, as decompression bombs do; "
                "if you trust the file, pass a larger max_pixels"
            ) from error
        except UnidentifiedImageError as error:
            raise ImageError("not an image that Pillow can read; convert it to PNG or JPEG first") from error
        except SlimError:
            raise
        except Exception as error:  # what Pillow's readers raise on damaged headers has no common base
            raise ImageError(f"the image file is damaged: {_reason(error)}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


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
    pixels: Pixels = np.ascontiguousarray(array, dtype=np.uint8)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels if pixels.shape[2] == 3 else np.array(_on_white(Image.fromarray(pixels)))


def _from_pil(image: Image.Image) -> Pixels:
    _check_sides(*image.size)
    try:
        image.load()
    except (SlimError, *_BOMBS):
        raise
    except Exception as error:  # as above: OSError, SyntaxError, struct.error, IndexError, ...
        raise ImageError(f"the picture is truncated or damaged: {_reason(error)}") from error
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # noqa: BLE001  a damaged EXIF block is no reason to lose the picture
        _warn_ignored("damaged EXIF data", error)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    return np.array(_to_srgb(image))


def _check_sides(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the picture is empty ({width} x {height}); it needs at least one pixel")
    if width > MAX_SIDE or height > MAX_SIDE:
        raise ImageError(
            f"{width} x {height} is too large: a side has at most {MAX_SIDE} pixels; cut it into tiles"
        )


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (65535,))
    # Written so that NaN fails too.
    if not (low >= 0 and high <= ranges[-1]):
        raise ImageError(
            f"grey values from {low:g} to {high:g} have no known black and white; scale them to 0..255"
        )
    white = next(top for top in ranges if high <= top)
    grey = Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    if profile := image.info.get("icc_profile"):
        grey.info["icc_profile"] = profile
    if isinstance(clear := image.info.get("transparency"), int):
        # One 16-bit value is transparent; as 8 bits its neighbours would be too.
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image) -> Image.Image:
    """Colour first, then transparency: the white below is the white of sRGB."""
    if image.mode == "LAB":
        return _transform(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    profile = image.info.get("icc_profile")
    alpha = None
    if image.has_transparency_data:
        # The palette, or the one transparent colour, is resolved here, while its meaning is known.
        image = image.convert("LA" if image.mode in ("L", "LA", "La", "1") else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    if profile:
        image = _by_profile(image, profile)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
        image = _on_white(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _by_profile(image: Image.Image, data: bytes) -> Image.Image:
    """Convert to sRGB by an ICC profile; one that is broken or does not fit the picture is ignored."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if space == "RGB" and image.mode != "CMYK":
            image = image.convert("RGB")  # a grey picture with an RGB profile has three equal channels
        elif space == "GRAY" and image.mode == "1":
            image = image.convert("L")
        if (space, image.mode) not in {("RGB", "RGB"), ("GRAY", "L"), ("CMYK", "CMYK")}:
            raise ValueError(f"it is for {space}, the picture is {image.mode}")
        return _transform(image, profile)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        _warn_ignored("broken ICC profile", error)
        return image


def _transform(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    transform = ImageCms.buildTransform(profile, srgb, image.mode, "RGB")
    return ImageCms.applyTransform(image, transform) or image


def _warn_ignored(what: str, error: Exception) -> None:
    warnings.warn(f"{what} ignored: {_reason(error)}", ImageWarning, stacklevel=3)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
