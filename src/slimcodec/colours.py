"""Samples of any depth and colour space to sRGB of 8 bits: ICC profiles, what stands in for one, and transparency."""

import io
import struct
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

from slimcodec.errors import ImageError, ImageWarning, LossWarning

Samples: TypeAlias = npt.NDArray[np.float64]
#: x and y of white, red, green and blue
Chromaticities: TypeAlias = tuple[float, ...]

BT709 = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
ADOBE_RGB = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
#: primaries by their code in H.273
PRIMARIES = {
    1: BT709,
    5: (0.3127, 0.329, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (0.3127, 0.329, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (0.3127, 0.329, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
SDR_WHITE = 203  # cd/m2 of white paper in an HDR picture, BT.2408


def power(exponent: float) -> Callable[[Samples], Samples]:
    """Return the transfer function ``samples ** exponent``, from samples to light."""
    return lambda samples: np.asarray(samples**exponent)


def _srgb(samples: Samples) -> Samples:
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def _pq(samples: Samples) -> Samples:
    root = samples ** (1 / 78.84375)
    light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
    return np.asarray(light * (10000 / SDR_WHITE))


def _hlg(samples: Samples) -> Samples:
    scene = np.where(
        samples <= 0.5, samples**2 / 3, (np.exp((samples - 0.55991073) / 0.17883277) + 0.28466892) / 12
    )
    return np.asarray(scene**1.2 * (1000 / SDR_WHITE))


#: transfer functions by their code in H.273; pictures are shown with that of sRGB where the code is one of video
TRANSFERS = {code: _srgb for code in (1, 6, 13, 14, 15)} | {4: power(2.2), 5: power(2.8), 8: power(1)}
HDR = {16: _pq, 18: _hlg}

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])


def icc_profile(points: Chromaticities, transfer: Callable[[Samples], Samples], grey: bool = False) -> bytes:
    """Return the ICC profile of primaries and a transfer function. Raises ``ValueError`` for what spans no colours."""
    xy = np.array(points).reshape(4, 2)
    if not (np.isfinite(xy).all() and (xy[:, 1] > 0).all()):
        raise ValueError(f"no chromaticities: {points}")
    white, *primaries = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]], 1)
    matrix = np.array(primaries).T
    scaled = matrix * np.linalg.solve(matrix, white)  # LinAlgError is a ValueError
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white)) @ _BRADFORD @ scaled
    curve = np.clip(transfer(np.linspace(0, 1, 4096)), 0, 1)
    data = b"curv" + bytes(4) + struct.pack(">I", curve.size) + np.rint(curve * 65535).astype(">u2").tobytes()

    def xyz(values: Samples) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *np.rint(values * 65536).astype(int).tolist())

    colorants = [] if grey else list(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, adapted.T), strict=True))
    tags = [(b"wtpt", xyz(_D50)), *colorants, (b"kTRC" if grey else b"rTRC", data)]
    copies = [] if grey else [b"gTRC", b"bTRC"]
    start = 132 + 12 * (len(tags) + len(copies))
    table, body = b"", b""
    for name, content in tags:
        table += name + struct.pack(">2I", start + len(body), len(content))
        body += content
    table += b"".join(name + table[-8:] for name in copies)
    space = b"GRAY" if grey else b"RGB "
    header = (
        struct.pack(">8xI4s4s4s12x4s28x", 0x02400000, b"mntr", space, b"XYZ ", b"acsp")
        + xyz(_D50)[8:]
        + bytes(48)
    )
    whole = header + struct.pack(">I", len(tags) + len(copies)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def source_profile(image: Image.Image, data: bytes = b"") -> bytes | None:
    """Return the ICC profile by which ``image`` becomes sRGB: its own, or one made from what else its file says.

    ``data``: the bytes of the file. In this order count: cICP of PNG; the ICC profile; sRGB, then gAMA and cHRM of PNG;
    nclx of AVIF and HEIF; the EXIF mark of Adobe RGB. None stands for sRGB. Warns of HDR, and of what is ignored.
    """
    grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
    own: bytes | None = image.info.get("icc_profile") or None
    try:
        if image.format == "PNG" and (at := data.find(b"\0\0\0\4cICP", 0, data.find(b"IDAT"))) > 0:
            return _by_codes(data[at + 8], data[at + 9], grey)
        if own or "srgb" in image.info:
            return own
        if "gamma" in image.info or "chromaticity" in image.info:
            return _by_gamma(image.info.get("gamma", 1 / 2.2), image.info.get("chromaticity", BT709), grey)
        if nclx := image.info.get("nclx_profile"):
            return _by_codes(nclx["color_primaries"], nclx["transfer_characteristics"], grey)
        if image.format == "AVIF" and (at := data.find(b"colrnclx")) > 0:
            primaries, transfer = struct.unpack_from(">2H", data, at + 8)
            return _by_codes(primaries, transfer, grey)
        if not grey and _says_adobe_rgb(image):
            return icc_profile(ADOBE_RGB, power(2.19921875))
    except Warning:
        raise
    except Exception as error:  # noqa: BLE001  a broken description of colours is no reason to lose the picture
        warn_ignored("broken description of colours", error)
    return own


def _says_adobe_rgb(image: Image.Image) -> bool:
    if image.format not in ("JPEG", "MPO", "TIFF"):
        return False
    try:
        return bool(image.getexif().get_ifd(0xA005).get(1) == "R03")
    except Exception:  # noqa: BLE001  ``upright`` warns of damaged EXIF data
        return False


def _by_codes(primaries: int, transfer: int, grey: bool) -> bytes | None:
    points, curve = PRIMARIES.get(primaries), (TRANSFERS | HDR).get(transfer)
    if primaries == 2 and transfer == 2:  # unspecified
        return None
    if points is None or curve is None:
        raise ValueError(f"primaries {primaries}, transfer {transfer} are unknown")
    if transfer in HDR:
        text = f"an HDR picture: light above {SDR_WHITE} cd/m2 is clipped to white"
        warnings.warn(LossWarning("colour", text), stacklevel=4)
    return None if (points, curve) == (BT709, _srgb) else icc_profile(points, curve, grey)


def _by_gamma(gamma: float, points: Chromaticities, grey: bool) -> bytes | None:
    if not 0.01 < gamma < 100:
        raise ValueError(f"gamma is {gamma}")
    # 1 / 2.2 is how files say sRGB, whose curve is no power
    curve = _srgb if abs(gamma * 2.2 - 1) < 0.05 else power(1 / gamma)
    standard = np.allclose(points, BT709, atol=2e-3)
    return None if standard and curve is _srgb else icc_profile(BT709 if standard else points, curve, grey)


def wider_than_srgb(image: Image.Image, profile: bytes | None) -> bool:
    """Return whether ``image`` may hold colours that sRGB has not."""
    if image.mode in ("CMYK", "LAB"):
        return True
    if profile is None:
        return False
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        colorants = (opened.red_colorant, opened.green_colorant, opened.blue_colorant)
        srgb = [[0.436, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7141]]
        if opened.xcolor_space.strip() == "GRAY":
            return False
        return None in colorants or not np.allclose([xyz[0] for xyz in colorants if xyz], srgb, atol=5e-3)
    except (OSError, TypeError, ValueError):
        return True  # a profile that cannot be read


def white_of(image: Image.Image) -> tuple[float | None, bool]:
    """Return the sample that a deep grey picture's format calls white, None if it has none, and whether 0 is white."""
    tags: Any = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None and image.mode != "F":
        bits, signed = max(tags.get(258, (1,))), 2 in tags.get(339, (1,))
        return (None if bits > 16 else 2 ** (bits - signed) - 1), tags.get(262) == 0
    return (65535 if image.mode.startswith("I;16") or image.format in ("PPM", "PNG") else None), False


def deep_to_rgb(
    image: Image.Image, profile: bytes | None, white: float | None, inverted: bool
) -> Image.Image:
    """Return a grey picture of modes I;16, I or F as one of 8 bits, converted by its profile. ``white_of`` gives the rest."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    ranges = (white,) if white else (1, 255, 65535) if image.mode == "F" else (255, 65535)
    # Written so that NaN fails too.
    if not (low >= 0 and high <= ranges[-1]):
        raise ImageError(
            f"grey values from {low:g} to {high:g} have no known black and white; scale them to 0..255"
        )
    top = next(top for top in ranges if high <= top)
    scaled = np.rint((top - values if inverted else values) * (65535 / top))
    grey = Image.fromarray(scaled.astype(np.uint16))
    if profile:
        grey = _by_profile(grey, profile)
    if grey.mode == "I;16":
        grey = _high_byte(grey)
    if isinstance(clear := image.info.get("transparency"), int):
        # One 16-bit value is transparent; as 8 bits its neighbours would be too.
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _high_byte(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a picture of 8 bits as opaque sRGB. Colour first, then transparency: the white below is that of sRGB."""
    if image.mode == "LAB":
        return _transform(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
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
        image = on_white(image)
    return image


def on_white(image: Image.Image) -> Image.Image:
    """Return an RGBA picture laid on white, as RGB."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Return a copy of ``image`` turned as its EXIF data say."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # noqa: BLE001  a damaged EXIF block is no reason to lose the picture
        warn_ignored("damaged EXIF data", error)
        return image


def _by_profile(image: Image.Image, data: bytes) -> Image.Image:
    """Convert to sRGB by an ICC profile; one that is broken or does not fit the picture is ignored."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if image.mode == "I;16" and space != "GRAY":
            image = _high_byte(image)
        if space == "RGB" and image.mode != "CMYK":
            image = image.convert("RGB")  # a grey picture with an RGB profile has three equal channels
        elif space == "GRAY" and image.mode == "1":
            image = image.convert("L")
        if (space, image.mode) not in {("RGB", "RGB"), ("GRAY", "L"), ("GRAY", "I;16"), ("CMYK", "CMYK")}:
            raise ValueError(f"it is for {space}, the picture is {image.mode}")
        return _transform(image, profile)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        warn_ignored("broken ICC profile", error)
        return image


def _transform(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    grey = image.mode in ("L", "I;16")
    # The optimised transform of grey has a table of few points, which dark linear samples fall between: all levels instead.
    flags = ImageCms.Flags.NOOPTIMIZE if grey else ImageCms.Flags.NONE
    transform = ImageCms.buildTransform(profile, srgb, image.mode, "RGB", flags=flags)
    if grey:
        values = np.asarray(image)
        levels = Image.fromarray(np.arange(np.iinfo(values.dtype).max + 1, dtype=values.dtype)[None])
        return Image.fromarray(np.asarray(ImageCms.applyTransform(levels, transform))[0][values])
    return ImageCms.applyTransform(image, transform) or image


def warn_ignored(what: str, error: Exception) -> None:
    """Warn that a part of the file was not understood and the picture taken without it."""
    warnings.warn(f"{what} ignored: {error or type(error).__name__}", ImageWarning, stacklevel=3)
