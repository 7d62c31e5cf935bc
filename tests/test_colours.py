"""Samples keep their meaning: white is the format's white, and colours that a file describes become sRGB."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin
from support import photo, tiff

from slimcodec.errors import ImageError, ImageWarning, LossWarning
from slimcodec.images import load_image

Samples = npt.NDArray[np.uint16]


def png(image: Image.Image, **chunks: bytes) -> bytes:
    """A PNG file with further chunks before its pixels."""
    file = io.BytesIO()
    info = PngImagePlugin.PngInfo()
    for name, content in chunks.items():
        info.add(name.encode(), content)
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def pgm(samples: Samples, white: int) -> bytes:
    return b"P5 %d %d %d\n" % (*samples.shape[::-1], white) + samples.astype(">u2").tobytes()


def packed_12_bits(samples: Samples) -> bytes:
    pairs = samples.reshape(-1, 2).astype(int)
    return (
        np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        .astype("u1")
        .tobytes()
    )


def grey(samples: npt.NDArray[Any], white: int) -> npt.NDArray[np.uint8]:
    return np.rint(samples * (255 / white)).astype(np.uint8)


# --- depth


@pytest.mark.parametrize("most", [4095, 200])  # 200: nothing in the samples tells 12 bits from 8
def test_twelve_bits_have_their_own_white(most: int) -> None:
    samples = np.linspace(0, most, 24 * 10).astype(np.uint16).reshape(10, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)  # nearly black
        loaded = load_image(tiff(packed_12_bits(samples), (24, 10), 12))[:, :, 0]
        assert np.abs(loaded.astype(int) - grey(samples, 4095)).max() <= 1
        np.testing.assert_array_equal(loaded, load_image(pgm(samples, 4095))[:, :, 0])


@pytest.mark.parametrize("most", [65535, 255, 100])
def test_the_same_samples_of_sixteen_bits_give_the_same_picture(most: int) -> None:
    samples = np.linspace(0, most, 240).astype(np.uint16).reshape(10, 24)
    image = Image.fromarray(samples)
    opened = Image.open(io.BytesIO(pgm(samples, 65535)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        pictures = [load_image(source) for source in (png(image), pgm(samples, 65535), image, opened)]
        pictures.append(load_image(tiff(samples.astype("<u2").tobytes(), (24, 10), 16)))
    for picture in pictures:
        np.testing.assert_array_equal(picture[:, :, 1], grey(samples, 65535))


def test_a_tiff_whose_white_is_zero() -> None:
    samples = np.linspace(0, 65535, 240).astype("<u2").reshape(10, 24)
    picture = load_image(tiff(samples.tobytes(), (24, 10), 16, {262: 0}))
    np.testing.assert_array_equal(picture[:, :, 0], grey(65535 - samples.astype(int), 65535))


def test_signed_samples_have_half_the_range() -> None:
    samples = np.linspace(0, 32767, 240).astype("<i2").reshape(10, 24)
    picture = load_image(tiff(samples.tobytes(), (24, 10), 16, {339: 2}))
    np.testing.assert_array_equal(picture[:, :, 0], grey(samples, 32767))
    with pytest.raises(ImageError, match="scale them"):
        load_image(tiff((samples - 100).astype("<i2").tobytes(), (24, 10), 16, {339: 2}))


# --- colour


def srgb(light: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sRGB samples, 0..255, of light in 0..1."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
D65_SRGB = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
D65_P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
GAMMA = {gamma: struct.pack(">I", round(gamma * 1e5)) for gamma in (1.0, 1 / 1.8, 1 / 2.2)}


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA"])
@pytest.mark.parametrize("chunk", [{"gAMA": GAMMA[1.0]}, {"cICP": bytes([1, 8, 0, 1])}])
def test_linear_samples_become_brighter(mode: str, chunk: dict[str, bytes]) -> None:
    image = Image.fromarray(RAMP).convert(mode)
    pixels = load_image(png(image, **chunk)).astype(float)
    assert np.abs(pixels - srgb(RAMP / 255)[:, :, None]).max() <= 1


def test_deep_linear_grey_keeps_its_shadows() -> None:
    samples = np.linspace(0, 65535, 4000).astype(np.uint16).reshape(40, 100)
    pixels = load_image(png(Image.fromarray(samples), gAMA=GAMMA[1.0]))
    assert np.abs(pixels[:, :, 0] - srgb(samples / 65535)).max() <= 1
    assert np.unique(pixels[:4]).size > 80  # of 8 bits only 26 levels would be left there


def test_gamma_counts_only_where_nothing_better_is_said() -> None:
    plain = np.asarray(photo("chelsea", 30, 20))
    image = Image.fromarray(plain)
    for chunks in (
        {"gAMA": GAMMA[1 / 2.2], "cHRM": D65_SRGB},
        {"sRGB": b"\0", "gAMA": GAMMA[1.0]},
        {"cICP": bytes([1, 13, 0, 1]), "gAMA": GAMMA[1.0]},
    ):
        np.testing.assert_array_equal(load_image(png(image, **chunks)), plain)
    darker = load_image(png(image, gAMA=GAMMA[1 / 1.8]))
    assert np.abs(darker - srgb((plain / 255) ** 1.8)).max() <= 1.5


def test_primaries_of_p3_are_converted() -> None:
    # the red of sRGB in P3; both have the curve of sRGB
    red = Image.new("RGB", (4, 4), (234, 51, 35))
    for chunks in ({"cICP": bytes([12, 13, 0, 1])}, {"gAMA": GAMMA[1 / 2.2], "cHRM": D65_P3}):
        assert np.abs(load_image(png(red, **chunks))[0, 0].astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize(("transfer", "white", "dark"), [(16, 148, 64), (18, 191, 64)])
def test_hdr_is_converted_with_a_warning(transfer: int, white: int, dark: int) -> None:
    image = Image.new("RGB", (8, 4), (white,) * 3)
    image.paste((255,) * 3, (0, 0, 2, 4))
    image.paste((dark,) * 3, (6, 0, 8, 4))
    with pytest.warns(LossWarning, match="HDR") as caught:
        pixels = load_image(png(image, cICP=bytes([1, transfer, 0, 1])))
    assert [getattr(warning.message, "kind", "") for warning in caught] == ["colour"]
    assert pixels[0, 0].tolist() == [255] * 3 and 250 <= pixels[0, 4, 0] <= 255 and pixels[0, 7, 0] < 110


@pytest.mark.parametrize(
    "chunks",
    [{"gAMA": bytes(4)}, {"cHRM": bytes(32)}, {"cICP": bytes([99, 1, 0, 1])}, {"cICP": bytes([1, 99, 0, 1])}],
)
def test_what_describes_no_colours_is_ignored_with_a_warning(chunks: dict[str, bytes]) -> None:
    plain = photo("chelsea", 30, 20)
    with pytest.warns(ImageWarning, match="colours ignored"):
        np.testing.assert_array_equal(load_image(png(plain, **chunks)), np.asarray(plain))


def test_avif_says_its_colours_in_a_box() -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (234, 51, 35)).save(file, "AVIF", quality=100, subsampling="4:4:4")
    data = file.getvalue()
    at = data.index(b"colrnclx") + 8
    p3 = data[:at] + struct.pack(">2H", 12, 13) + data[at + 4 :]
    assert np.abs(load_image(p3)[9, 9].astype(int) - (255, 0, 0)).max() <= 6
    assert np.abs(load_image(data)[9, 9].astype(int) - (234, 51, 35)).max() <= 6


def test_exif_says_adobe_rgb() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 65535
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (0, 160, 0)).save(file, "JPEG", quality=95, exif=exif)
    assert Image.open(file).getexif().get_ifd(0xA005)[1] == "R03"
    red, green, _ = load_image(file.getvalue())[8, 8]
    assert red == 0 and abs(int(green) - 162) <= 4
