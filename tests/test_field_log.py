"""Kinds of trouble that users of other image tools reported: see docs/field-log.md, whose rows these tests prove."""

from __future__ import annotations

import gc
import io
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import SMALL, photo

import slimcodec
import slimcodec.codec
import slimcodec.integrations.pillow
from slimcodec.codec import Codec
from slimcodec.errors import FormatError, ImageError, SlimError

PICTURE = np.array(photo("coffee", 120, 80))


@pytest.fixture(scope="module")
def codec() -> Codec:
    return slimcodec.load(SMALL, dtype="float32")


def test_first_use_from_many_threads_loads_one_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Codec] = []

    def load(source: Path | None = None, device: str | None = None, *, runtime: str = "auto") -> Codec:
        time.sleep(0.05)
        loaded.append(real(SMALL, dtype="float32"))
        return loaded[-1]

    real = slimcodec.codec.load
    monkeypatch.setattr(slimcodec.codec, "load", load)
    monkeypatch.setattr(slimcodec.codec, "_loaded", {})
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda _: slimcodec.encode(PICTURE), range(8)))
    assert len(loaded) == 1 and len(set(files)) == 1


def test_threads_share_one_picture_that_is_not_read_yet() -> None:
    data = slimcodec.encode(PICTURE)
    whole = np.asarray(slimcodec.decode(data))
    image = Image.open(io.BytesIO(data))

    def cropped(start: int) -> bool:
        part = image.crop((start, start, start + 40, start + 40))
        return bool((np.asarray(part) == whole[start : start + 40, start : start + 40]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(cropped, range(8)))


@pytest.mark.parametrize(
    "same",
    [
        lambda array: np.asfortranarray(array),
        lambda array: array[::-1, ::-1][::-1, ::-1],
        lambda array: np.repeat(array, 2, axis=1)[:, ::2],
        lambda array: array.view(np.memmap),
    ],
    ids=("columns first", "negative strides", "every second", "subclass"),
)
def test_layout_of_an_array_does_not_matter(codec: Codec, same: Callable[[np.ndarray], np.ndarray]) -> None:
    array = same(PICTURE.copy())
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codec.encode(array) == codec.encode(PICTURE)


def test_strides_of_zero(codec: Codec) -> None:
    grey = np.broadcast_to(np.array([10, 200, 30], np.uint8), (40, 50, 3))
    assert codec.encode(grey) == codec.encode(grey.copy())


def test_a_mask_of_an_array_is_not_passed_over(codec: Codec) -> None:
    masked = np.ma.masked_array(PICTURE, PICTURE > 200)
    with pytest.raises(ImageError, match=r"x\.filled\(255\)"):
        codec.encode(masked)
    assert codec.encode(masked.filled(255)) != codec.encode(PICTURE)
    assert codec.encode(np.ma.masked_array(PICTURE)) == codec.encode(PICTURE)


def test_results_belong_to_the_caller(codec: Codec) -> None:
    data = codec.encode(PICTURE)
    first, latent = codec.decode(data), codec.decode_latent(data)
    before = first.tobytes(), latent.clone()
    first.putpixel((0, 0), (1, 2, 3))
    latent.zero_()
    assert codec.decode(data).tobytes() == before[0] and bool((codec.decode_latent(data) == before[1]).all())
    mine = PICTURE.copy()
    codec.encode(mine)
    np.testing.assert_array_equal(mine, PICTURE)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files by /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    data = slimcodec.encode(PICTURE)
    good, bad, png = tmp_path / "good.slim", tmp_path / "bad.slim", tmp_path / "a.png"
    good.write_bytes(data)
    bad.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    photo("coffee", 30, 20).save(png)
    # what earlier tests left open is not ours
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(good).load()
        slimcodec.encode(png)
        for fails in (
            lambda: Image.open(bad),
            lambda: slimcodec.decode(bad),
            lambda: slimcodec.encode(bad),
            lambda: photo("coffee", 30, 20).save(good, target_bytes=1),
        ):
            with pytest.raises((SlimError, OSError)):
                fails()
        gc.collect()
    assert not [entry for entry in caught if issubclass(entry.category, ResourceWarning)]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_was_just_written_is_at_its_end(codec: Codec) -> None:
    file = io.BytesIO()
    file.write(codec.encode(PICTURE))
    for read, kind in (
        (codec.decode, FormatError),
        (slimcodec.inspect, FormatError),
        (codec.encode, ImageError),
    ):
        with pytest.raises(kind, match=r"seek\(0\)"):
            read(file)
    file.seek(0)
    assert codec.decode(file).size == (120, 80)


CUT = """
import sys, slimcodec
from pathlib import Path
from skimage import data
picture = data.coffee()[:80, :120].copy()
codec = slimcodec.load(sys.argv[1], dtype="float32")
for path in Path(sys.argv[1]).glob("*.safetensors"):
    open(path, "wb").close()
codec.decode(codec.encode(picture), steps=1)
"""


@pytest.mark.slow
def test_weights_that_are_cut_after_loading_do_not_kill_the_process(tmp_path: Path) -> None:
    shutil.copytree(SMALL, tmp_path / "bundle")
    done = subprocess.run([sys.executable, "-c", CUT, str(tmp_path / "bundle")], check=False)
    assert done.returncode == 0


AT_EXIT = """
import atexit, sys, slimcodec
from skimage import data
picture = data.coffee()[:80, :120].copy()
codec = slimcodec.load(sys.argv[1], dtype="float32")
atexit.register(lambda: print(codec.decode(codec.encode(picture), steps=1).size))
"""


@pytest.mark.slow
def test_a_codec_works_while_the_interpreter_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(SMALL)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(120, 80)\n" and "Error" not in done.stderr
