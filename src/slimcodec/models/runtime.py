"""What runs the networks of a bundle, arrays in and arrays out: ``OnnxRuntime``, or ``networks.TorchRuntime``. No torch."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from slimcodec.errors import SlimError
from slimcodec.models.storage import Stored, unpacked
from slimcodec.processes import THREADS

#: runs a network of a bundle by its name (see ``networks``)
Run = Callable[..., tuple[NDArray[Any], ...]]


class Runtime(Protocol):
    """Runs the networks of a bundle by name; serves several threads."""

    #: "onnx" or "torch"
    name: str

    @property
    def dtype(self) -> str:
        """The type that the convolutional networks run in."""

    def run(self, name: str, *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """What the network of a name (see ``networks``) gives for its inputs; ``SlimError`` where its weights do not fit."""

    def own(self, array: NDArray[Any]) -> Any:
        """An array as callers of the codec get it."""


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
    """Networks in ONNX Runtime, on the processor; each is loaded when it is first used."""

    name = "onnx"
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

    def own(self, array: NDArray[Any]) -> Any:
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
