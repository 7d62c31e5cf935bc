"""What a program hands in, and what it has set for itself: closed pictures, open files, limits and filters of its own."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import photo

import slimcodec
from slimcodec.errors import ImageError, SlimError
from slimcodec.images import load_image
from slimcodec.integrations.tensors import PictureReader


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def closed_unread(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image


def closed_by_hand(path: Path) -> Image.Image:
    image = Image.open(path)
    image.load()
    image.close()
    return image


def file_closed(path: Path) -> Image.Image:
    with open(path, "rb") as file:
        return Image.open(file)


def never_in_a_file(path: Path) -> Image.Image:
    image = Image.new("RGB", (3, 3))
    image.close()
    return image


@pytest.mark.parametrize("closed", [closed_unread, closed_by_hand, file_closed, never_in_a_file])
def test_a_closed_picture_is_not_called_damaged(
    tmp_path: Path, closed: Callable[[Path], Image.Image]
) -> None:
    photo("coffee", 30, 20).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is closed"):
        load_image(closed(tmp_path / "a.png"))


def test_pictures_are_read_from_open_files(tmp_path: Path) -> None:
    data = png(photo("coffee", 30, 20))
    (tmp_path / "a.png").write_bytes(data)
    with open(tmp_path / "a.png", "rb") as file:
        np.testing.assert_array_equal(load_image(file), load_image(data))
    np.testing.assert_array_equal(load_image(io.BytesIO(data)), load_image(data))
    with open(tmp_path / "a.png", encoding="latin-1") as text, pytest.raises(ImageError, match="'rb'"):
        load_image(text)  # type: ignore[arg-type]


def test_closed_files_and_names_that_cannot_be_are_errors() -> None:
    file = io.BytesIO(b"closed")
    file.close()
    for read in (load_image, slimcodec.inspect, slimcodec.decode, PictureReader()):
        with pytest.raises(SlimError, match="closed"):
            read(file)
        with pytest.raises(SlimError, match="zero byte"):
            read("photo\0.slim")


def test_pillow_in_another_thread_never_meets_our_limit() -> None:
    """Nothing of Pillow's or of the warning filters changes, at any time while a picture is read."""
    small, data = png(photo("coffee", 60, 40)), png(photo("coffee", 600, 400))
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning
    seen: set[Any] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add((Image.MAX_IMAGE_PIXELS, tuple(warnings.filters), warnings.showwarning))
            with Image.open(io.BytesIO(data)) as image:
                seen.add(image.size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for limit in (2400, 2399) * 200:
            try:
                load_image(small, max_pixels=limit)
            except ImageError:
                assert limit == 2399
            else:
                assert limit == 2400
    finally:
        done.set()
        watcher.join()
    assert seen == {(before[0], tuple(before[1]), before[2]), (600, 400)}


def test_a_limit_above_pillows_is_for_this_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(photo("coffee", 30, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    file = io.BytesIO()
    photo("coffee", 30, 20).save(file, "ICO", sizes=[(30, 20)])
    with pytest.raises(ImageError, match=r"raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        load_image(file.getvalue(), max_pixels=600)
