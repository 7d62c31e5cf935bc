"""The weights of a bundle as it stores them, and what runs its networks: ``OnnxRuntime``, or ``networks.TorchRuntime``. No torch."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from slimcodec.errors import SlimError
from slimcodec.processes import THREADS

if TYPE_CHECKING:
    from torch import Tensor

    from slimcodec.models.networks import TorchRuntime

    #: runs the networks of a bundle by name, arrays in and arrays out; serves several threads
    Runtime: TypeAlias = "OnnxRuntime | TorchRuntime"

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
#: runs a network of a bundle by its name (see ``networks``)
Run = Callable[..., tuple[NDArray[Any], ...]]


# ---- weights as they are stored: large matrices as 8-bit integers with a scale per row ------------------------


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


# ---- networks in ONNX Runtime --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    """A network without its weights: an ONNX model whose initializers are tensors of a part, by name.

    ``inputs``: names of the network's inputs in order; the model is without those that a configuration does not use.
    ``weights``: the initializers and their types, "" for that of the stored tensor.
    """

    model: bytes
    part: str
    inputs: tuple[str, ...]
    weights: dict[str, str]


class OnnxRuntime:
    """Networks in ONNX Runtime, on the processor, arrays in and arrays out; each is loaded when it is first used."""

    name = "onnx"
    #: the type that the convolutional networks run in
    dtype = "float32"

    def __init__(self, graph: Callable[[str], Graph], stored: Mapping[str, Stored]) -> None:
        """``graph`` gives the graph of a network, ``stored`` holds its weights."""
        self.graph, self.stored = graph, stored
        self._start()

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxRuntime, (self.graph, self.stored)

    def _start(self) -> None:
        _running.add(self)
        self.lock = threading.Lock()
        self.sessions: dict[str, tuple[Any, tuple[str, ...]]] = {}
        #: by part, name and type, what sessions share: they read it where it lies
        self.weights: dict[tuple[str, str, str], NDArray[Any]] = {}
        self._process = os.getpid()

    def run(self, name: str, *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """What the network of a name (see ``networks``) gives for its inputs; ``SlimError`` where its weights do not fit."""
        if self._process != os.getpid():
            # forked: another thread may have held the lock, and the sessions' threads stayed behind
            self._start()
        with self.lock:
            if name not in self.sessions:
                graph = self.graph(name)
                self.sessions[name] = self._session(graph, arena=name.startswith("gradient")), graph.inputs
        session, inputs = self.sessions[name]
        used = {entry.name for entry in session.get_inputs()}
        feed = {name: array for name, array in zip(inputs, arrays, strict=True) if name in used}
        return tuple(session.run(None, feed))

    def own(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array as callers of the codec get it."""
        return array

    def _session(self, graph: Graph, arena: bool) -> Any:
        """``arena``: keep memory between runs, which makes the gradient's many small arrays a third faster, and no other network."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 4
        # each session keeps an arena of its own: of a large picture they would hold twice the memory that any one needs
        options.enable_cpu_mem_arena = arena
        # plans of memory bring nothing per run; to make them takes a third of loading, and of the first two runs
        options.enable_mem_reuse = False
        options.enable_mem_pattern = not arena
        # idle threads that wait busily take the processor from others
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            tensors = self._tensors(graph)
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor) for tensor in tensors]
            options.add_external_initializers(list(graph.weights), values)
            return onnxruntime.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's errors have no common base
            message = f"the bundle's part {graph.part} does not fit its graph: {error}"
            raise SlimError(message) from error

    def _tensors(self, graph: Graph) -> list[NDArray[Any]]:
        """The initializers of a graph, in order."""
        missing = {
            name: kind for name, kind in graph.weights.items() if (graph.part, name, kind) not in self.weights
        }
        for name, tensor in unpacked(self.stored[graph.part], missing).items():
            self.weights[graph.part, name, graph.weights[name]] = tensor
        return [self.weights[graph.part, name, kind] for name, kind in graph.weights.items()]


#: the runtimes of this process, and the sessions of those that a forked process inherited
_running: weakref.WeakSet[OnnxRuntime] = weakref.WeakSet()
_inherited: list[Any] = []


def _keep_sessions() -> None:
    """Keep inherited sessions for ever: to destroy one waits for its threads, which stayed behind in the parent."""
    _inherited.extend(runtime.sessions for runtime in _running)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_sessions)


def threads() -> int:
    """How many threads a network may take: torch's number where that is loaded, else the variable ``THREADS``, else one a processor."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    try:
        return max(1, int(os.environ[THREADS]))
    except (KeyError, ValueError):
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
