"""Batches of pictures: equal sizes share a pass, files are valid and pictures the same, and what fails loses no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretrained import save_clip, save_pipeline
from support import NAMES, photo, slim

import slimcodec
import slimcodec.training.create
from slimcodec import FormatError, ImageError, SlimError
from slimcodec.batches import decode_many, encode_many
from slimcodec.codec import Codec
from slimcodec.training.create import create

SMALL = Path(__file__).parent / "golden" / "small"
#: the first three are equal once padded to cells of 16 pixels
SIZES = ((64, 50), (60, 64), (64, 64), (33, 21), (70, 20))


@pytest.fixture(scope="module")
def small() -> Codec:
    return slimcodec.load(SMALL, dtype="float32")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """A codec on a small SDXL, whose scheduler draws noise at every step, with a zero-shot captioner."""
    folder = tmp_path_factory.mktemp("hub")
    save_clip(folder / "clip")
    (folder / "tags.txt").write_text("cat\ncoffee cup\nrocket\n")
    pipeline, tags = str(save_pipeline("sdxl", folder / "models")), str(folder / "tags.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slimcodec.training.create, "SAMPLES", 3)
        return Codec(create(pipeline, captioner=str(folder / "clip"), tags=tags, text_scale=2.0))


def pictures() -> list[Image.Image]:
    return [photo(NAMES[number % 4], *size) for number, size in enumerate(SIZES)]


def counted(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """The number of pictures in each call of a method from now on."""
    sizes: list[int] = []
    method = getattr(owner, name)

    def noted(first: Any, *others: Any) -> Any:
        sizes.append(len(first))
        return method(first, *others)

    patch.setattr(owner, name, noted)
    return sizes


def assert_near(picture: Any, wanted: Image.Image) -> None:
    # a batch sums in another order
    error = np.asarray(picture, np.int16) - np.asarray(wanted, np.int16)
    assert np.abs(error).max() <= 2


def test_equal_sizes_share_a_pass_and_give_the_same(small: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()
    alone = [small.encode(image, 40) for image in images]
    encoded = counted(monkeypatch, small.bundle.latent_model.autoencoder, "encode")
    together = list(encode_many(small, images, 40, batch_size=8))
    assert encoded == [3, 1, 1]
    for data, wanted, image in zip(together, alone, images, strict=True):
        assert isinstance(data, bytes) and slimcodec.inspect(data).quality == 40
        # at the encoder a symbol may round the other way
        assert abs(len(data) - len(wanted)) <= 0.02 * len(wanted) + 2
        assert small.decode(data, steps=0).size == image.size
    for steps, guidance in ((0, 0.0), (2, 0.0), (1, 0.2)):
        wanted_pictures = [small.decode(data, steps, guidance) for data in alone]
        with monkeypatch.context() as patch:
            decoded = counted(patch, small.bundle.latent_model.autoencoder, "decode")
            made = list(decode_many(small, alone, steps, guidance, batch_size=8))
            assert guidance or decoded == [3, 1, 1]
        for picture, expected in zip(made, wanted_pictures, strict=True):
            assert isinstance(picture, Image.Image) and picture.size == expected.size
            assert_near(picture, expected)


def test_large_pictures_go_alone(small: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimcodec.batches.SHARED_AREA", 64 * 64 - 1)
    encoded = counted(monkeypatch, small.bundle.latent_model.autoencoder, "encode")
    assert all(isinstance(data, bytes) for data in encode_many(small, pictures(), caption=None))
    assert encoded == [1] * 5


def test_files_of_several_qualities_are_decoded_as_alone(small: Codec) -> None:
    image = photo("coffee", 64, 48)
    files = [small.encode(image, quality, "egyptian cat") for quality in (10, 60, 10, 60)]
    for picture, data in zip(decode_many(small, files, 2), files, strict=True):
        assert_near(picture, small.decode(data, 2))


def test_what_fails_is_given_in_its_place(small: Codec) -> None:
    images: list[Any] = [*pictures()[:2], b"no picture", Path("nowhere.png"), photo("rocket", 64, 60)]
    made = list(encode_many(small, images, 30, target_bytes=None, batch_size=8))
    assert [type(data) is bytes for data in made] == [True, True, False, False, True]
    assert isinstance(made[2], ImageError)
    files: list[Any] = [made[0], made[1][:-3], made[4]]  # type: ignore[index]
    decoded = list(decode_many(small, files, 0))
    assert isinstance(decoded[1], FormatError) and not isinstance(decoded[2], Exception)
    # no quality fits the second one
    sizes = [len(small.encode(image, 1, None)) for image in images[:2]]
    limit = min(sizes) if sizes[0] < sizes[1] else sizes[1]
    fitting = list(encode_many(small, images[:2], caption=None, target_bytes=limit))
    assert [isinstance(data, SlimError) for data in fitting] == [size > limit for size in sizes]
    assert sum(isinstance(data, SlimError) for data in fitting) == 1


def test_a_batch_that_does_not_fit_is_done_one_by_one(small: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, tried = small.bundle.latent_model.autoencoder.encode, []

    def limited(x: torch.Tensor) -> torch.Tensor:
        tried.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return encode(x)

    monkeypatch.setattr(small.bundle.latent_model.autoencoder, "encode", limited)
    images = [photo(name, 48, 48) for name in NAMES]
    assert list(encode_many(small, images, 30)) == [small.encode(image, 30) for image in images]
    assert tried[:5] == [4, 1, 1, 1, 1]


def test_no_more_than_a_batch_is_held(small: Codec) -> None:
    taken: list[str] = []

    def source() -> Iterator[Image.Image]:
        for name in NAMES * 3:
            taken.append(name)
            yield photo(name, 32, 32)

    files = encode_many(small, source(), caption=None, batch_size=3)
    next(files)
    assert len(taken) == 3
    assert len(list(files)) == 11


def test_arguments_are_checked_before_any_work(small: Codec) -> None:
    for options in ({"quality": 0}, {"batch_size": 0}, {"target_bytes": 5, "target_bpp": 0.1}):
        with pytest.raises(SlimError):
            encode_many(small, [], **options)
    for options in ({"steps": -1}, {"guidance": float("nan")}, {"batch_size": 0}):
        with pytest.raises(SlimError):
            decode_many(small, [], **options)


def test_one_picture_or_file_is_no_list_of_them(small: Codec) -> None:
    picture = photo(NAMES[0], 64, 64)
    data = small.encode(picture)
    ones: list[Any] = ["photo.jpg", Path("photo.jpg"), picture, np.array(picture), data]
    for one in ones:
        with pytest.raises(SlimError, match=type(one).__name__):
            encode_many(small, one)
    files: list[Any] = ["photo.slim", data]
    for one in files:
        with pytest.raises(SlimError, match=type(one).__name__):
            decode_many(small, one)
    # a stack of grey pictures is several
    assert len(list(encode_many(small, np.array(picture)[None, ..., 0]))) == 1


def test_pretrained_parts_and_captioners_work_on_batches(hub: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [photo(name, 64, 64) for name in NAMES]
    alone = [hub.encode(image, 30) for image in images]
    asked = counted(monkeypatch, hub.bundle.caption_model, "captions")
    together = list(encode_many(hub, images, 30))
    assert asked == [4]
    for data, wanted in zip(together, alone, strict=True):
        assert isinstance(data, bytes) and slimcodec.inspect(data).caption_bytes
        assert hub.decoder.decompress(data).caption == hub.decoder.decompress(wanted).caption
    # one without a caption among them
    alone.append(hub.encode(images[0], 30, None))
    for steps in (0, 3):
        for picture, data in zip(decode_many(hub, alone, steps, batch_size=5), alone, strict=True):
            assert_near(picture, hub.decode(data, steps))


def test_the_commands_work_on_batches(
    small: Codec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(pictures()):
        image.save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "2b.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos" / "5.png", icc_profile=b"junk")
    model = ("--model", SMALL, "--dtype", "float32", "--batch-size", 4)
    assert slim("encode", tmp_path / "photos", "-o", tmp_path / "slims", "--json", *model) == 1
    said = capsys.readouterr()
    # each message names its own file
    for name, words in (("2b.png", "not an image"), ("5.png", "warning: broken ICC profile")):
        assert any(f"{name}: {words}" in line for line in said.err.splitlines()), said.err
    assert len(json.loads(said.out)["files"]) == 6
    assert slim("decode", tmp_path / "slims", "-o", tmp_path / "back", "--steps", 1, *model) == 0
    for number, image in enumerate(pictures()):
        data = (tmp_path / "slims" / f"{number}.slim").read_bytes()
        assert Image.open(tmp_path / "back" / f"{number}.png").size == image.size
        assert_near(Image.open(tmp_path / "back" / f"{number}.png"), small.decode(data, 1))
    assert slim("encode", tmp_path / "photos", "--batch-size", 0) == 2


@pytest.mark.slow
def test_delete_source_works_on_batches(tmp_path: Path) -> None:
    for name in NAMES:
        photo(name, 40, 30).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    options = ("--model", SMALL, "--dtype", "float32", "--batch-size", 3, "--jobs", 2)
    assert slim("encode", tmp_path, "--delete-source", *options) == 1
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["broken.png", *(f"{name}.slim" for name in NAMES)])
