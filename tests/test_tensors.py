"""Tensors and arrays in one call, and the settings by which every integration reads files."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import SMALL, photo

import slimcodec
from slimcodec.codec import Codec
from slimcodec.images import load_image
from slimcodec.integrations.tensors import PictureReader


@pytest.fixture
def data(small: Codec) -> bytes:
    """A photo of 40 x 30 pixels, coded."""
    return small.encode(photo("coffee", 40, 30))


def test_every_kind_of_source(small: Codec, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.slim"
    path.write_bytes(data)
    as_tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    expected = np.asarray(small.decode(data))
    for source in (data, path, str(path), f"file://{path}", io.BytesIO(data), as_tensor):
        tensor = slimcodec.decode_image(source, codec=small)
        assert (tensor.dtype, tuple(tensor.shape), tensor.is_contiguous()) == (torch.uint8, (3, 30, 40), True)
        np.testing.assert_array_equal(tensor.permute(1, 2, 0), expected)
    array = slimcodec.decode_array(path, codec=small, steps=0)
    assert array.flags.writeable
    np.testing.assert_array_equal(array, np.asarray(small.decode(data, steps=0)))


def test_many_files_of_several_sizes_keep_their_order(small: Codec) -> None:
    sizes = [(40, 30), (16, 16), (40, 30), (33, 17)]
    files = [small.encode(photo("chelsea", *size)) for size in sizes]
    tensors = slimcodec.decode_images(files, codec=small, batch_size=3, steps=0)
    assert [tuple(tensor.shape) for tensor in tensors] == [(3, height, width) for width, height in sizes]
    for tensor, array, file in zip(
        tensors, slimcodec.decode_arrays(files, codec=small, steps=0), files, strict=True
    ):
        np.testing.assert_array_equal(tensor.permute(1, 2, 0), array)
        assert np.abs(array.astype(int) - np.asarray(small.decode(file, steps=0))).max() <= 1
    with pytest.raises(slimcodec.FormatError):
        slimcodec.decode_images([files[0], b"no file at all"], codec=small)


def test_encode_image_is_encode(small: Codec) -> None:
    array = np.asarray(photo("coffee", 40, 30))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    coded = slimcodec.encode_image(tensor, codec=small, quality=30)
    assert (coded.dtype, coded.ndim) == (torch.uint8, 1)
    assert coded.numpy().tobytes() == small.encode(array, quality=30)
    grey = slimcodec.encode_image(tensor[:1], codec=small)
    assert grey.numpy().tobytes() == small.encode(array[:, :, 0])
    with pytest.raises(slimcodec.ImageError, match="ndarray"):
        slimcodec.encode_image(array, codec=small)  # type: ignore[arg-type]
    for wrong in (tensor / 255, tensor.permute(1, 2, 0), tensor[0]):
        with pytest.raises(slimcodec.ImageError, match="3, H, W"):
            slimcodec.encode_image(wrong, codec=small)
    with pytest.raises(slimcodec.SlimError, match="uint8"):
        slimcodec.decode_image(tensor, codec=small)


def test_threads_share_a_codec(small: Codec, data: bytes) -> None:
    with ThreadPoolExecutor(4) as pool:
        tensors = list(pool.map(lambda _: slimcodec.decode_image(data, codec=small), range(8)))
    for tensor in tensors:
        torch.testing.assert_close(tensor, tensors[0], rtol=0, atol=0)


def test_outputs_of_a_reader(data: bytes) -> None:
    codec = slimcodec.load(SMALL)
    expected = np.asarray(codec.decode(data, steps=0))
    readers = {
        output: PictureReader(output, model=str(SMALL)) for output in ("pil", "numpy", "tensor", "latent")
    }
    read = {output: pickle.loads(pickle.dumps(reader))(data) for output, reader in readers.items()}
    np.testing.assert_array_equal(np.asarray(read["pil"]), expected)
    np.testing.assert_array_equal(read["numpy"], expected)
    np.testing.assert_array_equal(read["tensor"].permute(1, 2, 0), expected)
    torch.testing.assert_close(read["latent"], codec.decode_latent(data), rtol=0, atol=0)
    sames: list[Any] = [bytearray(data), memoryview(data), io.BytesIO(data)]
    for same in sames:
        np.testing.assert_array_equal(readers["numpy"](same), expected)
    with pytest.raises(slimcodec.SlimError, match="NoneType"):
        readers["pil"](None)  # type: ignore[arg-type]
    with pytest.raises(slimcodec.SlimError, match="latent"):
        PictureReader("jpeg")


def test_a_reader_takes_files_of_other_formats_too(data: bytes) -> None:
    file = io.BytesIO()
    photo("coffee", 40, 30).save(file, "PNG")
    pictures = PictureReader("numpy", model=str(SMALL)).many([file.getvalue(), data, file.getvalue()])
    np.testing.assert_array_equal(pictures[0], load_image(file.getvalue()))
    np.testing.assert_array_equal(pictures[2], pictures[0])
    np.testing.assert_array_equal(pictures[1], slimcodec.load(SMALL).decode(data, steps=0))
    latent = PictureReader("latent", model=str(SMALL))(file.getvalue())
    torch.testing.assert_close(latent, slimcodec.load(SMALL).latents(file.getvalue()), rtol=0, atol=0)
