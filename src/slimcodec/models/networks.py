"""The networks of a codec by name: functions of a bundle's modules, which torch runs and ONNX graphs are made of.

Pixels are bytes, qualities and positions int64, what the exact stage reads and writes integers, all else float32.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.captioner import Tagger, tag_gradient
from slimcodec.models.compressor import Compressor
from slimcodec.models.config import BundleConfig
from slimcodec.models.parts import Parts, tensors_of
from slimcodec.models.prior import ExactPrior
from slimcodec.models.runtime import Graph, Stored
from slimcodec.models.surroundings import undisturbed

if TYPE_CHECKING:
    from slimcodec.models.bundle import Bundle

OPSET = 17
#: the type of an array, and its axes by name or number
Shape = tuple[str, ...]
PIXELS: Shape = ("uint8", "batch", "3", "height", "width")
LATENTS: Shape = ("float32", "batch", "latent", "rows", "columns")
VALUES: Shape = ("float32", "batch", "channels", "rows", "columns")
FEATURES: Shape = ("int16", "1", "rows", "columns", "features")
AT: Shape = ("int64", "positions")
QUALITY: Shape = ("int64", "1")
ANALYSED: dict[str, Shape] = {
    "latents": LATENTS,
    "quality": QUALITY,
    "interest": ("float32", "batch", "1", "rows", "columns"),
}
#: axes that are free, with their lengths while a graph is made
FREE = {"batch": 1, "height": 64, "width": 96, "rows": 4, "columns": 8, "positions": 5}


@dataclass(frozen=True)
class Network:
    """A function of the module of a part and of its inputs; it gives a tensor, or several."""

    part: str
    function: Callable[..., Any]
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]


def _normalised(pixels: Tensor) -> Tensor:
    """Pixels 0..255 as -1..1, float32."""
    return pixels.float().div_(127.5).sub_(1)


def _encode(space: Any, pixels: Tensor) -> Any:
    return space.encode(_normalised(pixels))


def _decode(space: Any, latents: Tensor) -> Any:
    return space.decode(latents).add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def _tag(tagger: Tagger, pixels: Tensor) -> Any:
    logits, interest = tagger.predict(_normalised(pixels))
    return logits if interest is None else (logits, interest)


def _at_quality(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method of the compressor that takes a level, as a function that takes a quality."""

    def function(compressor: Compressor, x: Tensor, quality: Tensor, *interest: Tensor) -> Tensor:
        return method(compressor, x, compressor.level(quality), *interest)

    return function


#: what the encoder alone runs
ENCODER = {
    "encode": Network("autoencoder", _encode, {"pixels": PIXELS}, ("latents",)),
    "tag": Network(
        "captioner-0", _tag, {"pixels": ("uint8", "batch", "3", "side", "side")}, ("logits", "interest")
    ),
    "analyse": Network("compressor", _at_quality(Compressor.analyse), ANALYSED, ("values",)),
    "analyse_linearly": Network(
        "compressor", _at_quality(Compressor.analyse_linearly), ANALYSED, ("values",)
    ),
    "hyper_analyse": Network(
        "compressor",
        _at_quality(Compressor.hyper_analyse),
        {"values": VALUES, "quality": QUALITY},
        ("hyper",),
    ),
}
#: what the decoder runs; the networks of the exact prior are the encoder's too
DECODER = {
    "hyper_indices": Network("prior", ExactPrior.hyper_indices, {"quality": QUALITY}, ("index",)),
    "features": Network(
        "prior",
        ExactPrior.features,
        {"hyper": ("int64", "1", "rows", "columns", "hyper"), "quality": QUALITY},
        ("features",),
    ),
    "first_pass": Network(
        "prior",
        ExactPrior.first_pass,
        {"features": FEATURES, "at": AT, "quality": QUALITY},
        ("mean", "index"),
    ),
    "second_pass": Network(
        "prior",
        ExactPrior.second_pass,
        {
            "features": FEATURES,
            "anchors": ("int32", "1", "rows", "columns", "channels"),
            "at": AT,
            "quality": QUALITY,
        },
        ("mean", "index"),
    ),
    "synthesise": Network(
        "compressor", _at_quality(Compressor.synthesise), {"values": VALUES, "quality": QUALITY}, ("latents",)
    ),
    "decode": Network("autoencoder", _decode, {"latents": LATENTS}, ("pixels",)),
}


def networks(config: BundleConfig) -> dict[str, Network]:
    """The networks of a bundle by name; of every captioner also the gradient, which guides a picture by its caption."""
    view: dict[str, Shape] = {
        "view": ("float32", "1", "3", "height", "width"),
        "target": ("float32", "1", "tags"),
    }
    gradients = {
        f"gradient-{number}": Network(f"captioner-{number}", tag_gradient, view, ("gradient",))
        for number in range(len(config.captioners))
    }
    found = ENCODER | DECODER | gradients
    if not config.captioners:
        del found["tag"]
    elif not config.captioners[0].roi:
        found["tag"] = replace(found["tag"], outputs=("logits",))
    return found


def own_module(part: str, config: BundleConfig, parts: Parts) -> Any:
    """The module of a part of our own networks; its convolutions run in the type of ``parts``, all else in float32."""
    if part == "prior":
        channels = config.compressor.prior.channels
        return parts.get(part, lambda: ExactPrior(channels, tensors_of(parts.stored[part])).to(parts.device))
    if part == "compressor":
        # transforms of patches are linear paths
        fast = ("analysis", "synthesis", "analysis_steps", "synthesis_steps", "hyper_analysis")
        return parts.network(part, lambda: Compressor(config.compressor), fast)
    if part == "autoencoder":
        return parts.network(part, lambda: PatchAutoencoder(config.autoencoder), ("encoder", "decoder"))
    tagger = config.captioners[int(part.partition("-")[2])]
    return parts.network(part, lambda: Tagger(tagger), ("body",))


class TorchRuntime:
    """Networks in torch, on any device and in any type; its methods are those of ``OnnxRuntime``."""

    name = "torch"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.networks = bundle, networks(bundle.config)

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchRuntime, (self.bundle,)

    @property
    def dtype(self) -> str:
        return str(self.bundle.parts.dtype).removeprefix("torch.")

    @undisturbed
    def run(self, name: str, *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        network = self.networks[name]
        if name.startswith("gradient"):
            # in half the time, and in float32 whatever the codec's type
            return self.bundle.onnx.run(name, *arrays)
        found = network.function(self.bundle.module(network.part), *map(self._tensor, arrays))
        results = found if isinstance(found, tuple) else (found,)
        # a caller's autocast leaves some in half precision
        return tuple((x.float() if x.is_floating_point() else x).cpu().numpy() for x in results)

    def own(self, array: NDArray[Any]) -> Tensor:
        """A tensor on the codec's device."""
        return torch.from_numpy(array).to(self.bundle.parts.device)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # torch takes an array's strides as they are; it warns of memory that it may not write
        return self.own(array if array.flags.writeable else np.copy(array, order="K"))


# ---- graphs ----------------------------------------------------------------------------------------------------


class _Traced(nn.Module):
    """A network as a module, for the exporter."""

    def __init__(self, network: Network, module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = network.function, module

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self.module, *tensors)


def build_graph(config: BundleConfig, stored: dict[str, Stored], name: str) -> Graph:
    """The ONNX graph of a network, without weights: its initializers are the stored tensors, by the names that they had before."""
    network = networks(config)[name]
    lengths = FREE | sizes(config, network.part)
    examples = tuple(
        torch.zeros([lengths.get(axis) or int(axis) for axis in axes], dtype=getattr(torch, kind))
        for kind, *axes in network.inputs.values()
    )
    free = {
        given: {number: axis for number, axis in enumerate(axes) if axis in FREE}
        for given, (_, *axes) in network.inputs.items()
    }
    # whatever type and device the bundle has
    parts = Parts(stored, "cpu", torch.float32)
    file: Any = io.BytesIO()  # a file is taken too, whatever the annotation says
    with warnings.catch_warnings(), torch.no_grad():
        # sizes that look constant to the exporter are; it needs no further package where it traces
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Traced(network, own_module(network.part, config, parts)).eval(),
            examples,
            file,
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=False,
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            dynamic_axes=free,
        )
    model, weights = _with_stored_weights(file.getvalue(), stored[network.part])
    return Graph(model, network.part, tuple(network.inputs), weights)


def sizes(config: BundleConfig, part: str) -> dict[str, int]:
    """The lengths of the axes of a part's networks that have a name and are not free."""
    prior, number = config.compressor.prior, part.partition("-")[2]
    tagger = config.captioners[int(number)] if number else None
    return {
        "latent": config.compressor.latent_channels,
        "channels": prior.channels,
        "hyper": prior.hyper_channels,
        "features": prior.width,
        "side": tagger.side if tagger else 0,
        "tags": tagger.tags if tagger else 0,
    }


def _with_stored_weights(model: bytes, stored: Stored) -> tuple[bytes, dict[str, str]]:
    """A model whose initializers are stored tensors, given when it is loaded, and their types by name."""
    import onnx
    from onnx import TensorProto, helper

    content = onnx.load_from_string(model)
    given: dict[str, str] = {}
    weights: dict[str, TensorProto] = {}
    kept = []
    for old in content.graph.initializer:
        name = old.name.removeprefix("module.").removeprefix("network.layers.")
        if name not in stored and f"{name}:int8" not in stored:
            kept.append(old)
            continue
        given[old.name] = name
        tensor = TensorProto(name=name, data_type=old.data_type, dims=old.dims)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights")
        weights[name] = tensor
    _replace(content.graph.initializer, kept)
    for node in content.graph.node:
        node.input[:] = [given.get(name, name) for name in node.input]
    content = _reduced(content, list(weights.values()))
    used = {name for node in content.graph.node for name in node.input}
    weights = {name: tensor for name, tensor in weights.items() if name in used}
    content.graph.initializer.extend(weights.values())
    for output in content.graph.output:
        # the exporter takes the example's sizes for fixed
        output.type.tensor_type.ClearField("shape")
    for node in content.graph.node:
        node.ClearField("doc_string")
    types = {name: helper.tensor_dtype_to_np_dtype(tensor.data_type).name for name, tensor in weights.items()}
    return content.SerializeToString(), types


def _reduced(content: Any, weights: list[Any]) -> Any:
    """A model with a third of the exporter's nodes, those that every session would remove; its weights are not looked at."""
    import onnx
    import onnxruntime
    from onnx import helper

    inputs = list(content.graph.input)
    # what is given from outside is not folded, so that each weight stays the stored tensor
    content.graph.input.extend(
        helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims) for weight in weights
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # the level whose results are operators of the standard: they run in other releases and on other processors
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "reduced.onnx"))
        onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
        reduced = onnx.load(options.optimized_model_filepath)
    names = {entry.name for entry in inputs}
    _replace(reduced.graph.input, [entry for entry in reduced.graph.input if entry.name in names])
    _replace(reduced.opset_import, [entry for entry in reduced.opset_import if not entry.domain])
    reduced.graph.ClearField("value_info")
    return reduced


def _replace(field: Any, entries: list[Any]) -> None:
    del field[:]
    field.extend(entries)
