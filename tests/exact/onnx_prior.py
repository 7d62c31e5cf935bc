"""The exact prior in ONNX Runtime: its own networks exported by torch, float64 and integers as they are."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slimcodec.models.prior import ExactPrior

OPSET = 17


class Exported(nn.Module):
    """One method of a network with all arguments but the tensors fixed."""

    def __init__(self, network: nn.Module, method: str, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.network, self.method, self.arguments = network, method, arguments

    def forward(self, *tensors: Tensor) -> Any:
        rest = iter(tensors)
        arguments = [next(rest) if isinstance(given, Tensor) else given for given in self.arguments]
        return getattr(self.network, self.method)(*arguments)


class OnnxNetwork:
    """A prior's network whose methods run in ONNX Runtime; each is exported when new shapes or a new quality come."""

    def __init__(self, network: nn.Module, threads: int = 1) -> None:
        self.network, self.threads = network, threads
        #: sessions by method and arguments, for tensors their shape and type
        self.sessions: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.network, name)
        return self._runner(name) if callable(value) else value

    def _runner(self, method: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            tensors = [given for given in arguments if isinstance(given, Tensor)]
            key = (method, *map(_described, arguments))
            if key not in self.sessions:
                self.sessions[key] = self._session(method, arguments, tensors)
            session = self.sessions[key]
            names = [entry.name for entry in session.get_inputs()]
            found = session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))
            results = [torch.from_numpy(array) for array in found]
            return results[0] if len(results) == 1 else tuple(results)

        return run

    def _session(self, method: str, arguments: tuple[Any, ...], tensors: list[Tensor]) -> Any:
        import onnxruntime

        model: Any = io.BytesIO()  # a file is taken too, whatever the annotation says
        with warnings.catch_warnings(), torch.no_grad():
            # shapes are meant to be constants of the trace; the exporter by trace needs no further package
            warnings.simplefilter("ignore")
            module = Exported(self.network, method, arguments)
            torch.onnx.export(module, tuple(tensors), model, dynamo=False, opset_version=OPSET)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return onnxruntime.InferenceSession(model.getvalue(), options, providers=["CPUExecutionProvider"])


def _described(argument: Any) -> Any:
    return (tuple(argument.shape), argument.dtype) if isinstance(argument, Tensor) else argument


def onnx_prior(prior: ExactPrior, threads: int = 1) -> ExactPrior:
    """A twin of a prior whose networks run in ONNX Runtime; only positions are looked up in torch."""
    twin: Any = copy.deepcopy(prior)
    network = twin.network
    del twin.network
    twin.network = OnnxNetwork(network, threads)
    return twin
