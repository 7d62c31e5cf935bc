"""Weights as a bundle stores them (large matrices as 8-bit integers with a scale per row), and networks made of them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from slimcodec.errors import SlimError, failed_import
from slimcodec.models.blocks import fuse
from slimcodec.models.surroundings import building

#: most bytes of a safetensors file's header: names, types and shapes; that of a UNet with 860 million values has 80,000
HEADER_BYTES = 1 << 24
#: matrices with fewer values stay in floating point
SMALLEST_INT8 = 2048
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def to_storage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large weights as int8 with a scale per row; what already is stored so stays as it is.

    The autoencoder's linear path, gains and other tables are no ``.weight`` and keep their precision.
    """
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        # scales are vectors and int8 is no float, so stored tensors pass unchanged
        weight = name.endswith(".weight") and value.is_floating_point() and value.dim() >= 2
        if not weight or value.numel() < SMALLEST_INT8:
            stored[name] = value
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(1).clamp(min=1e-12) / 127
        stored[f"{name}:int8"] = (rows / scale[:, None]).round().to(torch.int8).reshape(value.shape)
        stored[f"{name}:scale"] = scale
    return stored


def from_storage(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_storage``: all tensors in floating point."""
    tensors: dict[str, Tensor] = {}
    for name, value in stored.items():
        base, quantised, _ = name.rpartition(":int8")
        if quantised:
            rows = value.float().flatten(1) * stored[f"{base}:scale"][:, None]
            tensors[base] = rows.reshape(value.shape)
        elif not name.endswith(":scale"):
            tensors[name] = value
    return tensors


def hash_tensors(
    digest: Any, stored: dict[str, dict[str, Tensor]], left_out: dict[str, tuple[str, ...]]
) -> str:
    """Adds the stored tensors of every part to a hash, but those whose names begin as ``left_out`` says; the hash in hex."""
    for part, state in sorted(stored.items()):
        for name, value in sorted(state.items()):
            if not name.startswith(left_out.get(part, ())):
                digest.update(f"{part}/{name} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ``SlimError`` as ``read_header``, ``SafetensorError`` where data do not fit it."""
    read_header(path)
    # copied: a file that is cut or replaced later would otherwise kill the process that has it mapped
    return {name: value.clone() for name, value in load_file(path).items()}


class Parts:
    """The networks of a bundle on a device, each built when it is first used, once, whatever the thread."""

    def __init__(self, stored: dict[str, dict[str, Tensor]], device: str, dtype: torch.dtype) -> None:
        """``stored`` maps a part's name to its stored tensors."""
        self.stored, self.device, self.dtype = stored, torch.device(device), dtype
        #: guards building, and tokenizers, which serve one thread at a time
        self.lock = threading.RLock()
        self._built: dict[str, Any] = {}
        self._process = os.getpid()

    def get(self, name: str, build: Callable[[], T]) -> T:
        """The part of a name, by ``build`` where it is not built yet; ``SlimError`` where tensors and configuration differ."""
        if self._process != os.getpid():
            # forked: another thread may have held the lock, and what was built may count on threads that stayed behind
            self.lock, self._built, self._process = threading.RLock(), {}, os.getpid()
        with self.lock:
            if name not in self._built:
                try:
                    # weights must serve guidance's gradients also where the caller runs in inference mode
                    with building():
                        self._built[name] = build()
                except SlimError:
                    raise
                except Exception as error:
                    if reason := failed_import(error):
                        raise SlimError(f"the bundle's part {name}: {reason}") from error
                    if not isinstance(error, KeyError | ValueError | TypeError | RuntimeError):
                        raise
                    message = f"the bundle's part {name} does not fit its configuration: {error}"
                    raise SlimError(message) from error
            part: T = self._built[name]
            return part

    def network(self, name: str, build: Callable[[], M], fast: Sequence[str] = (), *, meta: bool = True) -> M:
        """The part of a name as a module on the device, frozen, with the stored tensors.

        ``fast``: children that run in ``dtype``, all others in float32; ``meta``: weights may be replaced, not only filled.
        """

        def load() -> M:
            # on the meta device a module costs no memory: a configuration gets as much of it as its weights have
            with torch.device("meta"):
                module = build()
            shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
            check_shapes(shapes, self.stored[name])
            if not meta:
                module = build().float()  # where the caller's default is another type
            module.load_state_dict(from_storage(self.stored[name]), strict=True, assign=meta)
            # channels-last convolutions are faster on processors and on GPUs
            module.requires_grad_(False).eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for child, part in module.named_children():
                if child in fast:
                    part.to(self.dtype)
            fuse(module)
            return module

        return self.get(name, load)


def check_shapes(expected: dict[str, tuple[int, ...]], stored: dict[str, Tensor]) -> None:
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
