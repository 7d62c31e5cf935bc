"""load_image: every way to store a picture ends as an upright, opaque sRGB array, or as an ImageError."""

import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage import data

import slimcodec
from slimcodec.errors import ImageError, LossWarning
from slimcodec.files import atomic_write
from slimcodec.images import ImageWarning, load_image

Array = npt.NDArray[Any]

PHOTO: Array = np.asarray(data.chelsea())[40:88, 100:170]  # 48 x 70: no square, so that a swapped axis shows
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# A sound profile whose red and blue primaries are exchanged: unlike sRGB, it visibly changes a picture.
EXCHANGED = SRGB.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(PHOTO).convert(mode)


def distance(a: Array, b: Array) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def grey_photo() -> Array:
    return np.repeat(np.asarray(photo("L"))[:, :, None], 3, axis=2)


# --- the same picture from every kind of source


def test_rgb_is_taken_as_it_is_from_every_source(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(stored(photo()))
    for source in (photo(), PHOTO, path, str(path), path.read_bytes(), photo("RGBA"), photo("RGBX")):
        pixels = load_image(source)
        assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, PHOTO)


def test_the_callers_image_stays_as_it_was() -> None:
    image = photo("LA")
    image.info["icc_profile"] = SRGB
    before = image.tobytes()
    load_image(image)
    assert (image.mode, image.tobytes(), image.info) == ("LA", before, {"icc_profile": SRGB})


def test_grey_and_one_bit_become_three_equal_channels() -> None:
    np.testing.assert_array_equal(load_image(photo("L")), grey_photo())
    np.testing.assert_array_equal(load_image(np.asarray(photo("L"))), grey_photo())
    bits = np.asarray(photo("1"))
    np.testing.assert_array_equal(load_image(photo("1"))[:, :, 1], bits * np.uint8(255))


def test_palette_becomes_its_colours() -> None:
    image = photo().quantize(16)
    np.testing.assert_array_equal(load_image(stored(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (85, 255, 255), (0, 255, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("LAB", (138, 209, 198), (255, 0, 0)),  # the red of sRGB under D50: L* 54.3, a* 80.8, b* 69.9
        ("LAB", (0, 128, 128), (0, 0, 0)),
    ],
)
def test_other_colour_spaces_become_rgb(mode: str, colour: Any, expected: Any) -> None:
    pixels = load_image(Image.new(mode, (3, 2), colour))
    assert distance(pixels, np.full((2, 3, 3), expected, np.uint8)) <= 6  # LAB in 8 bits is coarse


# --- rotation


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_rotation_is_applied(kind: str, orientation: int, upright: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(load_image(stored(photo(), kind, exif=exif)), upright(PHOTO))


def test_damaged_exif_is_ignored_with_a_warning() -> None:
    image = photo()
    image.info["exif"] = b"Exif\x00\x00MM\x00\x2a\xff\xff\xff"
    with pytest.warns(ImageWarning, match="EXIF"):
        np.testing.assert_array_equal(load_image(image), PHOTO)


# --- colour profiles


def test_srgb_profile_changes_nothing() -> None:
    assert distance(load_image(stored(photo(), icc_profile=SRGB)), PHOTO) <= 1


def test_profile_is_converted_to_srgb() -> None:
    assert distance(load_image(stored(photo(), icc_profile=EXCHANGED)), PHOTO[:, :, ::-1]) <= 1


def test_profile_also_counts_for_palette_grey_and_transparent_pictures() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for image in (red.quantize(4), red.convert("RGBA")):
        assert load_image(stored(image, icc_profile=EXCHANGED))[0, 0].tolist() == [0, 0, 255]
    assert distance(load_image(stored(photo("L"), icc_profile=EXCHANGED)), grey_photo()) <= 1


@pytest.mark.parametrize("profile", [b"junk", SRGB[:200], b"\0" * 500, SRGB[:16] + b"\xe5" + SRGB[17:]])
def test_broken_profile_is_ignored_with_a_warning(profile: bytes) -> None:
    with pytest.warns(ImageWarning, match="ICC"):
        np.testing.assert_array_equal(load_image(stored(photo(), icc_profile=profile)), PHOTO)


def test_profile_of_another_colour_space_is_ignored_with_a_warning() -> None:
    with pytest.warns(ImageWarning, match="RGB.*CMYK"):
        pixels = load_image(stored(photo("CMYK"), "TIFF", icc_profile=SRGB))
    np.testing.assert_array_equal(pixels, np.asarray(photo("CMYK").convert("RGB")))


# --- transparency


def test_alpha_is_laid_on_white() -> None:
    alpha = np.tile(np.linspace(0, 255, PHOTO.shape[1]).astype(np.uint8), (PHOTO.shape[0], 1))
    rgba = np.dstack([PHOTO, alpha])
    share = alpha[:, :, None] / 255
    expected = np.rint(PHOTO * share + 255 * (1 - share)).astype(np.uint8)
    image = Image.fromarray(rgba)
    for source in (rgba, image, stored(image), stored(image, "WEBP", lossless=True, exact=True)):
        assert distance(load_image(source), expected) <= 1
    assert distance(load_image(image.convert("RGBa")), expected) <= 3  # premultiplied: rounded once more
    grey_expected = np.rint(grey_photo() * share + 255 * (1 - share)).astype(np.uint8)
    assert distance(load_image(stored(image.convert("LA"))), grey_expected) <= 1


def test_one_transparent_colour_becomes_white() -> None:
    for mode, transparent, kept in (("L", 10, 20), ("RGB", (10, 20, 30), (20, 20, 30))):
        image = Image.new(mode, (2, 1), kept)
        image.putpixel((0, 0), transparent)
        pixels = load_image(stored(image, transparency=transparent))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[0, 1].tolist() == ([20, 20, 20] if mode == "L" else [20, 20, 30])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_transparency_becomes_white(kind: str) -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((0, 0), 0)
    pixels = load_image(stored(image, kind, transparency=0))
    assert pixels[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_palette_with_alpha_channel() -> None:
    image = Image.fromarray(np.dstack([PHOTO, np.full(PHOTO.shape[:2], 128, np.uint8)])).convert("PA")
    base = np.asarray(image.convert("RGBA"))[:, :, :3]
    assert distance(load_image(image), np.rint(base * (128 / 255) + 127).astype(np.uint8)) <= 1


# --- deep grey


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled(kind: str) -> None:
    deep = (np.arange(60 * 50, dtype=np.uint32).reshape(60, 50) * 21).astype(np.uint16)
    deep[0, 0] = 65535
    expected = np.rint(deep / 257).astype(np.uint8)
    pixels = load_image(stored(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))


def test_sixteen_bit_grey_keeps_its_transparent_value() -> None:
    deep = Image.fromarray(np.array([[1000, 1001]], np.uint16))
    deep.info["transparency"] = 1000
    assert load_image(deep)[0, :, 0].tolist() == [255, 4]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int32, [0, 128, 255], [0, 128, 255]),
        (np.int32, [0, 257, 65535], [0, 1, 255]),
        (np.float32, [0.0, 0.5, 1.0], [0, 128, 255]),
        (np.float32, [0.0, 99.6, 255.0], [0, 100, 255]),
        (np.float32, [0.0, 25700.0, 65535.0], [0, 100, 255]),
        (np.float32, [0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_integer_and_float_grey_is_scaled_by_the_range_that_holds_it(
    dtype: Any, values: list[float], expected: list[int]
) -> None:
    assert load_image(Image.fromarray(np.array([values], dtype)))[0, :, 2].tolist() == expected


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536]])
def test_integer_grey_without_a_known_range_is_an_error(values: list[int]) -> None:
    with pytest.raises(ImageError, match="scale them"):
        load_image(Image.fromarray(np.array([values], np.int32)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_float_grey_without_a_known_range_is_an_error(value: float) -> None:
    with pytest.raises(ImageError, match="scale them"):
        load_image(Image.fromarray(np.array([[0.5, value]], np.float32)))


# --- animation


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "PNG", "WEBP"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        animation = stored(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        with pytest.warns(LossWarning, match="2 frames") as caught:
            assert load_image(animation)[0, 0].tolist() == [255, 0, 0]
        assert isinstance(caught[0].message, LossWarning) and caught[0].message.kind == "frames"


# --- what is no picture


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (b"hello, world, this is no picture", "not an image"),
        (b"\xf5" + bytes(30), r"\.slim"),
        (stored(Image.fromarray(PHOTO))[:-500], "truncated"),
        (stored(Image.fromarray(PHOTO), "JPEG")[:-500], "truncated"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (Image.new("RGB", (0, 4)), "empty"),
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4), np.uint16), "uint8"),
        (np.zeros((4, 4), bool), "uint8"),
        (np.zeros((3, 5, 6), np.uint8), "channels come last"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (None, "NoneType"),
        ([[1, 2]], "list"),
    ],
)
def test_no_picture_is_an_error_that_says_what_to_do(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_a_limit_that_is_no_number_allows_nothing() -> None:
    with pytest.raises(slimcodec.SlimError, match="nan"):
        load_image(stored(Image.fromarray(PHOTO)), float("nan"))  # type: ignore[arg-type]


def test_errors_of_a_path_name_it(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "missing.png", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ImageError, match=message) as caught:
            load_image(path)
        assert str(path) in str(caught.value)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(ImageError, match="empty.jpg: .*empty"):
        load_image(empty)


def test_side_limit() -> None:
    long = np.zeros((1, 2**24 + 1), np.uint8)
    with pytest.raises(ImageError, match="16777216"):
        load_image(long)
    assert load_image(long[:, :-1]).shape == (1, 2**24, 3)


@pytest.mark.parametrize("factor", [1.5, 3])  # Pillow warns above its limit, and refuses above twice that
def test_decompression_bomb_is_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    pixels = PHOTO.shape[0] * PHOTO.shape[1]
    limit = int(pixels / factor)
    file = stored(photo())
    with pytest.raises(ImageError, match=f"max_pixels={limit}"):
        load_image(file, max_pixels=limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=f"max_pixels={limit}"):
        load_image(file)
    np.testing.assert_array_equal(load_image(file, max_pixels=pixels), PHOTO)
    assert limit == Image.MAX_IMAGE_PIXELS


DAMAGEABLE = {
    kind: stored(photo().quantize(32) if kind == "GIF" else photo(), kind)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "TGA")
}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(DAMAGEABLE)), random=st.randoms(use_true_random=False))
def test_a_damaged_file_is_a_picture_or_an_image_error(kind: str, random: Any) -> None:
    file = bytearray(DAMAGEABLE[kind])
    for _ in range(random.randint(1, 4)):
        # Headers are where damage takes the most different ways.
        file[random.randrange(min(len(file), random.choice((40, 400, 10**6))))] = random.randrange(256)
    cut = random.choice((len(file), random.randrange(len(file))))
    try:
        pixels = load_image(bytes(file[:cut]), max_pixels=10**6)
    except ImageError:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


# --- atomic_write


def test_atomic_write_makes_and_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)  # a temporary name longer than the target's would not fit
    for content in (b"first", b"second, longer", b""):
        atomic_write(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_atomic_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(failure)):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_errors_are_those_of_open(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as raised:
        atomic_write(file, b"")
    assert raised.value.filename == str(file)
    with pytest.raises(OSError):
        atomic_write(tmp_path, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions, links and devices of POSIX")
def test_atomic_write_keeps_to_umask_links_and_devices(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to("file")
    atomic_write(tmp_path / "link", b"through")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"through"
    read_end, write_end = os.pipe()
    try:
        atomic_write(f"/dev/fd/{write_end}", b"piped")
        assert os.read(read_end, 9) == b"piped"
    finally:
        os.close(read_end)
        os.close(write_end)
