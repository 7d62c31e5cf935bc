"""What a source holds beyond its .slim file is named, and --delete-source keeps such a source unless told otherwise."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Slim
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin
from support import SMALL_OPTIONS, photo, tiff

from slimcodec.errors import ImageWarning, LossWarning
from slimcodec.images import load_image
from slimcodec.leftovers import KINDS


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # what a format sets in an image stays there
    return file.getvalue()


def pair() -> dict[str, Any]:
    return {"save_all": True, "append_images": [photo("coffee", 20, 10).copy()]}


def exif(gps: bool = False) -> Image.Exif:
    data = Image.Exif()
    data[0x0110] = "camera"
    if gps:
        data.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return data


def tiff_tags(**values: int) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in values.items():
        tags[{"subfile": 254, "dng": 50706}[name]] = value
    return tags


def ppm(bits: int) -> bytes:
    samples = np.full((4, 5, 3), 2**bits - 1, ">u2").tobytes()
    return b"P6 # a comment\n5\n# another\n4 %d\n" % (2**bits - 1) + samples


def text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "of the owner")
    return info


def picture(mode: str = "RGB") -> Image.Image:
    return photo("chelsea", 20, 10).convert(mode)


def half_clear() -> Image.Image:
    image = picture("RGBA")
    image.putalpha(100)
    return image


def deep() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 200).astype(np.uint16).reshape(10, 20))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXCHANGED = SRGB.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
FILES: dict[str, tuple[set[str], Callable[[], bytes]]] = {
    "plain.png": (set(), lambda: stored(picture())),
    "plain.jpg": (set(), lambda: stored(picture(), "JPEG")),
    "plain.tif": (set(), lambda: stored(picture(), "TIFF", compression="tiff_lzw")),
    "opaque.png": (set(), lambda: stored(picture("RGBA"))),
    "srgb.png": (set(), lambda: stored(picture(), icc_profile=SRGB)),
    "animation.gif": ({"frames"}, lambda: stored(picture(), "GIF", **pair())),
    "animation.webp": ({"frames"}, lambda: stored(picture(), "WEBP", **pair())),
    "animation.png": ({"frames"}, lambda: stored(picture(), **pair())),
    "animation.avif": ({"frames"}, lambda: stored(picture(), "AVIF", **pair())),
    "pages.tif": ({"frames"}, lambda: stored(picture(), "TIFF", **pair())),
    "two.mpo": ({"frames"}, lambda: stored(picture(), "MPO", **pair())),
    "sizes.ico": ({"frames"}, lambda: stored(picture().resize((32, 32)), "ICO", sizes=[(16, 16), (32, 32)])),
    "photo.dng": ({"raw"}, lambda: stored(picture(), "TIFF", tiffinfo=tiff_tags(subfile=1))),
    "photo.cr2": ({"raw"}, lambda: tiff(bytes(range(200)), (20, 10), 8, gap=b"CR\x02\0")),
    "photo.nef": ({"frames", "raw"}, lambda: tiff(bytes(range(200)), (20, 10), 8, {254: 1, 330: 8})),
    "deep.png": ({"depth"}, lambda: stored(deep())),
    "deep.tif": ({"depth"}, lambda: stored(deep(), "TIFF")),
    "deep.jp2": ({"depth"}, lambda: stored(deep(), "JPEG2000", no_jp2=True)),
    "texture.dds": ({"depth"}, lambda: stored(picture(), "DDS")),
    "deep.ppm": ({"depth"}, lambda: ppm(12)),
    "clear.png": ({"transparency"}, lambda: stored(half_clear())),
    "clear.webp": ({"transparency"}, lambda: stored(half_clear(), "WEBP")),
    "one_clear.gif": ({"transparency"}, lambda: stored(picture("P"), "GIF", transparency=picture("P").getpixel((0, 0)))),
    "ink.tif": ({"colour"}, lambda: stored(picture("CMYK"), "TIFF")),
    "profile.jpg": ({"colour"}, lambda: stored(picture(), "JPEG", icc_profile=EXCHANGED)),
    "camera.jpg": ({"exif"}, lambda: stored(picture(), "JPEG", exif=exif())),
    "camera.png": ({"exif"}, lambda: stored(picture(), exif=exif())),
    "camera.tif": ({"exif"}, lambda: stored(picture(), "TIFF", tiffinfo={270: "a description"})),
    "place.jpg": ({"exif", "gps"}, lambda: stored(picture(), "JPEG", exif=exif(gps=True))),
    "xmp.jpg": ({"xmp"}, lambda: stored(picture(), "JPEG", xmp=b"<x:xmpmeta/>")),
    "xmp.webp": ({"xmp"}, lambda: stored(picture(), "WEBP", xmp=b"<x:xmpmeta/>")),
    "comment.jpg": ({"other"}, lambda: stored(picture(), "JPEG", comment="of the owner")),
    "text.png": ({"other"}, lambda: stored(picture(), pnginfo=text())),
    "video.jpg": ({"other"}, lambda: stored(picture(), "JPEG") + b"\0\0\0\x18ftypmp42 moving" * 9),
    "turned.jpg": (set(), lambda: stored(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")),
    "padded.jpg": (set(), lambda: stored(picture(), "JPEG") + bytes(100)),
}  # fmt: skip


def kinds_of(data: bytes) -> set[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        load_image(data, every_loss=True)
    return {warning.message.kind for warning in caught if isinstance(warning.message, LossWarning)}


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_holds_is_named(name: str) -> None:
    kinds, made = FILES[name]
    assert kinds_of(made()) == kinds


def test_a_source_that_holds_more_stays_unless_that_is_accepted(slim: Slim, tmp_path: Path) -> None:
    for name, (_, made) in FILES.items():
        (tmp_path / name).write_bytes(made())
    delete = ("encode", tmp_path, "--delete-source", "--keep-suffix", "--json", *SMALL_OPTIONS)
    result = slim(*delete)
    assert result.status == 1
    rows = {Path(row["source"]).name: row["source_deleted"] for row in json.loads(result.out)["files"]}
    names = {name for name in FILES if not name.startswith("photo.")}  # a folder takes no camera raw files
    assert rows == {name: not FILES[name][0] for name in names}
    assert json.loads(result.out)["passed_over"] == {".dng": 1, ".cr2": 1, ".nef": 1}
    for name in names:
        kinds = FILES[name][0]
        lines = [line for line in result.err.splitlines() if line.startswith(f"slim: {tmp_path / name}: ")]
        assert len(lines) == bool(kinds) and all(kind in lines[0] for kind in kinds)
        assert (tmp_path / name).exists() == bool(kinds)
    accepted = ",".join(KINDS)
    result = slim(*delete, *tmp_path.glob("photo.*"), "--overwrite", "--lose", accepted)
    assert (result.status, result.err) == (0, "")
    assert {path.suffix for path in tmp_path.iterdir()} == {".slim"}


def test_one_accepted_loss_accepts_no_other(slim: Slim, tmp_path: Path) -> None:
    path = tmp_path / "place.jpg"
    path.write_bytes(FILES["place.jpg"][1]())
    result = slim("encode", path, "--delete-source", "--lose", "exif", *SMALL_OPTIONS)
    assert result.status == 1 and path.exists() and "--lose gps" in result.err and "exif" not in result.err
    assert slim("encode", path, "--lose", "everything").status == 2


def test_frames_and_raw_data_are_said_without_deletion(slim: Slim, tmp_path: Path) -> None:
    for name in ("animation.gif", "pages.tif", "photo.dng", "place.jpg", "clear.png"):
        (tmp_path / name).write_bytes(FILES[name][1]())
    result = slim("encode", tmp_path, tmp_path / "photo.dng", *SMALL_OPTIONS)
    assert result.status == 0 and len(result.err.splitlines()) == 3
    for words in (
        "animation.gif: warning: 2 frames",
        "pages.tif: warning: 2 pages",
        "photo.dng: warning: a camera",
    ):
        assert words in result.err


@pytest.mark.parametrize("top", [1023, 16383])
def test_a_nearly_black_picture_warns_and_stays(slim: Slim, tmp_path: Path, top: int) -> None:
    path = tmp_path / "samples.png"
    values = np.linspace(0, top, 200).astype(np.uint16)  # of a camera, in 16 bits
    Image.fromarray(values.reshape(10, 20)).save(path)
    result = slim("encode", path, "--delete-source", "--lose", "depth", *SMALL_OPTIONS)
    assert result.status == 1 and "nearly black" in result.err and path.exists()
