"""Weights as a bundle stores them: large matrices as 8-bit integers with a scale per row. No torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slimcodec.errors import SlimError

if TYPE_CHECKING:
    from torch import Tensor

#: most bytes of a safetensors file's header: names, types and shapes; that of a UNet with 860 million values has 80,000
HEADER_BYTES = 1 << 24
#: matrices with fewer values stay in floating point
SMALLEST_INT8 = 2048
#: types of safetensors by name
TYPES = {
    **{
        f"{kind}{bits}": f"<{code}{bits // 8}"
        for kind, code in (("I", "i"), ("U", "u"))
        for bits in (8, 16, 32, 64)
    },
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BOOL": "bool",
}
#: bytes at whose multiples unpacked tensors begin
ALIGNMENT = 64
#: tensors of a part by name, as they are stored
Stored = dict[str, NDArray[Any]]


def to_storage(tensors: Mapping[str, NDArray[Any] | Tensor]) -> Stored:
    """Large weights as int8 with a scale per row; what already is stored so stays as it is.

    The autoencoder's linear path, gains and other tables are no ``.weight`` and keep their precision.
    """
    stored: Stored = {}
    for name, given in tensors.items():
        value = given if isinstance(given, np.ndarray) else given.detach().cpu().numpy()
        value = np.ascontiguousarray(value).reshape(value.shape)
        # scales are vectors and int8 is no float, so stored tensors pass unchanged
        weight = name.endswith(".weight") and value.dtype.kind == "f" and value.ndim >= 2
        if not weight or value.size < SMALLEST_INT8:
            stored[name] = value
            continue
        rows = value.astype(np.float32).reshape(len(value), -1)
        scale = np.maximum(np.abs(rows).max(1), np.float32(1e-12)) / np.float32(127)
        stored[f"{name}:int8"] = (rows / scale[:, None]).round().astype(np.int8).reshape(value.shape)
        stored[f"{name}:scale"] = scale
    return stored


def unpacked(stored: Stored, types: Mapping[str, str]) -> Stored:
    """Tensors of a part by the names that they had before ``to_storage``, in the types asked for, "" for the one that they had.

    What is not stored so lies in one block of memory. ``KeyError`` for a tensor that is not there.
    """
    tensors, made, size = {}, {}, 0
    for name, kind in types.items():
        quantised = stored.get(f"{name}:int8")
        value = stored[name] if quantised is None else quantised
        wanted = np.dtype(kind or (value if quantised is None else stored[f"{name}:scale"]).dtype)
        if quantised is not None or wanted != value.dtype:
            made[name] = (value, wanted, size)
            size += value.size * wanted.itemsize + -(value.size * wanted.itemsize) % ALIGNMENT
        else:
            tensors[name] = value
    # many small blocks would each be filled page by page, which costs more than the arithmetic
    block = np.empty(size, np.uint8)
    for name, (value, wanted, start) in made.items():
        out = block[start : start + value.size * wanted.itemsize].view(wanted).reshape(value.shape)
        if f"{name}:int8" in stored:
            np.multiply(value, stored[f"{name}:scale"].reshape(-1, *[1] * (value.ndim - 1)), out=out)
        else:
            out[...] = value
        tensors[name] = out
    return tensors


def hash_tensors(digest: Any, stored: dict[str, Stored], left_out: dict[str, tuple[str, ...]]) -> str:
    """Adds the stored tensors of every part to a hash, but those whose names begin as ``left_out`` says; the hash in hex."""
    for part, state in sorted(stored.items()):
        for name, value in sorted(state.items()):
            if not name.startswith(left_out.get(part, ())):
                # types were named by torch first
                digest.update(f"{part}/{name} torch.{value.dtype} {value.shape}\n".encode())
                digest.update(value.reshape(-1).view(np.uint8))
    return str(digest.hexdigest())


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, tensors by name, and the offset of its first byte of data.

    Raises ``SlimError`` for a damaged file and for a header of over 16 MiB, before it is read.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes, at most {HEADER_BYTES} are read")
            if 8 + length > size:
                raise ValueError("it is cut short")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise TypeError("its header is no object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SlimError(f"{path}: not a whole safetensors file ({error}); get it again") from error
    header.pop("__metadata__", None)
    return header, 8 + length


def read_tensors(path: Path) -> Stored:
    """The tensors of a safetensors file, in one block of memory.

    Raises ``SlimError`` as ``read_header``; ``ValueError``, ``KeyError`` or ``TypeError`` where the data do not fit the header.
    """
    # the library's own reader copies every tensor twice, which takes three times as long
    header, start = read_header(path)
    with open(path, "rb") as file:
        block = np.empty(os.fstat(file.fileno()).st_size - start, np.uint8)
        file.seek(start)
        if file.readinto(block.data) != len(block):
            raise ValueError(f"{path}: cut short")
    stored, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        kind, shape = np.dtype(TYPES[entry["dtype"]]), tuple(entry["shape"])
        first, last = entry["data_offsets"]
        if not all(type(length) is int and length >= 0 for length in (first, last, *shape)):
            raise ValueError(f"{path}: tensor {name} has no shape or place")
        if first != end or last - first != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{path}: tensor {name} does not fit its place")
        # processors read aligned values faster, and some libraries no others
        stored[name] = np.require(block[first:last].view(kind).reshape(shape), requirements="A")
        end = last
    if end != len(block):
        raise ValueError(f"{path}: data behind the last tensor")
    return stored


def check_shapes(expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, NDArray[Any]]) -> None:
    """``ValueError`` where stored tensors are not those that a configuration asks for."""
    shapes = {
        name.removesuffix(":int8"): tuple(value.shape)
        for name, value in stored.items()
        if not name.endswith(":scale")
    }
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise ValueError(
                f"tensor {name} is {shapes.get(name, 'missing')} and should be {expected.get(name, 'absent')}"
            )
