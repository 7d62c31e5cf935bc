"""Pillow with .slim files: what is saved again, what a failed save leaves, what is claimed, and which options count."""

from __future__ import annotations

import builtins
import copy
import inspect
import io
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError
from support import photo

import slimcodec
from slimcodec.codec import Codec
from slimcodec.container import Container, pack, read_source
from slimcodec.errors import FormatError, SlimError
from slimcodec.images import ImageWarning
from slimcodec.integrations.pillow import SAVE_OPTIONS

FOREIGN = pack(Container(31, 21, 37, b"\xde\xad\xbe\xef", b"", b"payload"))
XZ = b"\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.slim"
    file.write_bytes(slimcodec.encode(photo("coffee", 70, 45), quality=90))
    return file


# --- saving again


def in_memory(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "SLIM")
    return file.getvalue()


@pytest.mark.parametrize(
    "same",
    [
        lambda image: image,
        lambda image: image.load() and image,
        lambda image: image.copy(),
        lambda image: image.convert("RGB"),
        ImageOps.exif_transpose,
        lambda image: image.crop((0, 0, *image.size)),
        copy.deepcopy,
        lambda image: pickle.loads(pickle.dumps(image)),
    ],
)
def test_an_untouched_picture_writes_its_own_bytes(path: Path, same: Callable[[Any], Image.Image]) -> None:
    original = path.read_bytes()
    with Image.open(path) as opened:
        image = same(opened)
        assert in_memory(image) == original
        image.save(path.with_name("y.slim"))
        image.save(path.with_name("z.slim"), quality=90)
    assert path.with_name("y.slim").read_bytes() == path.with_name("z.slim").read_bytes() == original


def test_an_untouched_picture_of_another_bundle_is_written_without_decoding(path: Path) -> None:
    Image.open(io.BytesIO(FOREIGN)).save(path)
    assert path.read_bytes() == FOREIGN


def test_a_changed_picture_takes_the_files_quality(path: Path) -> None:
    image = Image.open(path)
    image.putpixel((0, 0), (255, 0, 0))
    assert slimcodec.inspect(in_memory(image)).quality == 90
    half = Image.open(path).resize((35, 22))
    assert in_memory(half) == slimcodec.encode(half, quality=90)
    told: list[dict[str, Any]] = [{"quality": 20}, {"target_bytes": 300}, {"caption": "a cup"}, {"roi": None}]
    for options in told:
        half.save(path.with_name("y.slim"), **options)
        assert path.with_name("y.slim").read_bytes() == slimcodec.encode(half, **{"quality": 90, **options})


def test_a_data_set_keeps_the_bytes(path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = path.read_bytes()
    rows = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None}]})
    rows = rows.cast_column("image", datasets.Image())
    mapped = rows.map(lambda row: {"image": row["image"]}, load_from_cache_file=False)
    assert mapped.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"] == data


# --- failing


@pytest.mark.parametrize("options", [{"target_bytes": 10}, {"quality": 500}, {"save_all": True}])
def test_a_failed_save_leaves_the_old_file(path: Path, options: dict[str, Any]) -> None:
    old = path.read_bytes()
    pictures = [Image.open(path), Image.open(path).resize((20, 20)), photo("chelsea", 30, 30)]
    for image in pictures:
        for target in (path, os.fsencode(path), str(path.with_name("new.slim"))):
            with pytest.raises(SlimError):
                image.save(target, **options)
    assert path.read_bytes() == old and os.listdir(path.parent) == ["x.slim"]


def test_other_formats_are_saved_by_pillow_alone(path: Path) -> None:
    image = photo("chelsea", 30, 30)
    image.save(path.with_suffix(".png"), compress_level=1)
    image.save(path, "PNG")
    with Image.open(path) as again:
        assert again.format == "PNG"
    with pytest.raises(ValueError, match="unknown file extension"):
        image.save(path.with_suffix(".unknown"))


# --- claiming


def test_only_slim_files_are_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file of 1.5 GB that begins like an .xz archive is refused by its first bytes."""
    big = tmp_path / "big.xz"
    with open(big, "wb") as file:
        file.write(XZ)
        file.truncate(3 << 29)
    read: list[int] = []

    class Counted(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(-1 if size is None else size)
            read.append(len(data))
            return data

    monkeypatch.setattr(builtins, "open", lambda name, mode: Counted(name, mode))
    with pytest.raises(UnidentifiedImageError, match="cannot identify"):
        Image.open(big, formats=["SLIM"])
    assert sum(read) == 16


@pytest.mark.parametrize(
    "start",
    [
        XZ,
        b"\xf5" * 30,
        FOREIGN[:5] + b"\x00\x15" + FOREIGN[7:],  # no width
        FOREIGN[:7] + b"\x65" + FOREIGN[8:],  # quality 101
        b"\xfd" + bytes(40),
    ],
)
def test_bytes_that_only_begin_alike_are_left_to_others(start: bytes) -> None:
    with pytest.raises(UnidentifiedImageError, match="cannot identify"):
        Image.open(io.BytesIO(start), formats=["SLIM"])


def test_a_file_longer_than_any_slim_file_is_left_unread(tmp_path: Path) -> None:
    with open(tmp_path / "long.slim", "wb") as file:
        file.write(FOREIGN)
        file.truncate((1 << 26) + 1)
    with pytest.raises(UnidentifiedImageError, match="cannot identify"):
        Image.open(tmp_path / "long.slim", formats=["SLIM"])


def test_an_archive_is_no_later_version(tmp_path: Path) -> None:
    (tmp_path / "a.xz").write_bytes(XZ + bytes(30))
    for source in (XZ + bytes(30), tmp_path / "a.xz"):
        with pytest.raises(FormatError, match=r"\.xz archive"):
            slimcodec.inspect(source)
        with pytest.raises(FormatError, match=r"\.xz archive"):
            slimcodec.decode(source)
    with pytest.raises(FormatError, match=r"\.xz archive"):
        read_source(tmp_path / "a.xz")


# --- options


def test_every_option_of_encode_is_one_of_save() -> None:
    assert set(SAVE_OPTIONS) == set(inspect.signature(Codec.encode).parameters) - {"self", "image"}


def test_roi_none_is_not_the_default(path: Path) -> None:
    image = photo("coffee", 128, 128)
    image.save(path, roi=None)
    assert path.read_bytes() == slimcodec.encode(image, roi=None) != slimcodec.encode(image)
    mask = np.zeros((4, 4), np.float32)
    mask[:2] = 1
    image.save(path, roi=mask, quality=30)
    assert path.read_bytes() == slimcodec.encode(image, roi=mask, quality=30)


def test_a_picture_turned_by_hand_is_turned_again_with_a_word(path: Path) -> None:
    photo("coffee", 40, 20).save(path.with_suffix(".jpg"), exif=b"Exif\0\0" + exif(6))
    opened = Image.open(path.with_suffix(".jpg"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.save(path)
        ImageOps.exif_transpose(opened).save(path.with_name("turned.slim"))
    assert Image.open(path).size == Image.open(path.with_name("turned.slim")).size == (20, 40)
    with pytest.warns(ImageWarning, match="orientation 6 .*exif_transpose"):
        opened.rotate(270, expand=True).save(path)
    assert Image.open(path).size == (40, 20)
    plugin = sys.modules["slimcodec.integrations.pillow"]
    assert "exif_transpose" in (plugin.__doc__ or "")


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes().removeprefix(b"Exif\0\0")
