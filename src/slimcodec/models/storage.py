"""Weights as a bundle stores them: large matrices as 8-bit integers with a scale per row. No torch."""

from __future__ import annotations

import json
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


def from_storage(stored: Stored) -> Stored:
    """The inverse of ``to_storage``: all tensors in floating point."""
    tensors: Stored = {}
    for name, value in stored.items():
        base, quantised, _ = name.rpartition(":int8")
        if quantised:
            scale = stored[f"{base}:scale"].reshape(-1, *[1] * (value.ndim - 1))
            tensors[base] = value.astype(np.float32) * scale
        elif not name.endswith(":scale"):
            tensors[name] = value
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
    """The tensors of a safetensors file; ``SlimError`` as ``read_header``, ``SafetensorError`` where data do not fit it."""
    from safetensors.numpy import load_file

    read_header(path)
    stored: Stored = load_file(path)
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
