"""Feature maps and answers of a frozen MobileNet-v2, faster to train through than the script that it comes in.

A step of stage ``compressor`` takes a third less time with it in bfloat16, and a fifth less in float32 (one core). It stops at
the last map that is asked for, works in the type that autocast asks for, with channels last, and computes strided depthwise
convolutions at every position before it takes every other one: their own backward pass took a third of the time on a CPU.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.errors import SlimError
from slimcodec.models.blocks import SameConv
from slimcodec.models.captioner import FEATURES, CaptionerConfig, InvertedResidual, Tagger
from slimcodec.models.pretrained.hub import DEFAULT_SIDE

if TYPE_CHECKING:
    from slimcodec.data.classifiers import Classifier

#: largest relative difference from the script's own maps, and from its answers: networks that were quantised once also clamp their
#: sums to ranges, which is left out here and makes 1 % of maps and 1 to 4 % of answers
TOLERANCE = 0.01
ANSWER_TOLERANCE = 0.05
#: the script's maps are those that strided blocks expand to, from the second such block on, at strides 4, 8 and 16
FIRST_MAP = 1
MAPS = 3


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


class MobileNet(nn.Module):
    """A MobileNet-v2, width 1, with weight and bias of each convolution in order, the last one its classes after a background class."""

    def __init__(self, constants: list[Tensor]) -> None:
        """Raises ``ValueError`` where the shapes are not those of a MobileNet-v2."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            body = Tagger(CaptionerConfig(tags=1, side=224)).body
        left = pour(constants, body)
        for module in body.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = False
            elif isinstance(module, InvertedResidual):
                layers: Any = module.layers
                if layers[-3].stride[0] == 2:
                    layers[-3] = SampledConv(layers[-3])
        kept: Any = body.requires_grad_(False).eval()
        self.body = kept.to(memory_format=torch.channels_last)
        self._typed: dict[torch.dtype, Any] = {}
        #: None where they are not known to give the script's answers
        self.classes = classes_of(left)

    def forward(
        self, pictures: Tensor, count: int, answered: bool = False
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Pictures [B, 3, H, W] in [0, 1] to the first ``count`` maps, float32, at strides 4, 8, 16; and, if asked, logits [B, K]."""
        kind = pictures.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        x = (pictures * 2 - 1).to(dtype).contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = []
        with torch.autocast(kind, enabled=False):
            for layer in self._body(dtype):
                if not isinstance(layer, InvertedResidual):
                    x = layer(x)
                    continue
                layers: Any = layer.layers
                if isinstance(layers[-3], SampledConv):
                    expanded = layers[1](layers[0](x))
                    maps.append(expanded)
                    if len(maps) == FIRST_MAP + count and not answered:
                        break
                    x = layers[4](layers[3](layers[2](expanded)))
                else:
                    x = layer(x)
            answer = None
            if answered and self.classes is not None:
                answer = F.linear(x.float().mean((2, 3)), *self.classes)
        return answer, [features.float() for features in maps[FIRST_MAP : FIRST_MAP + count]]

    def _body(self, dtype: torch.dtype) -> Any:
        if dtype == torch.float32:
            return self.body
        if dtype not in self._typed:
            self._typed[dtype] = copy.deepcopy(self.body).to(dtype)
        return self._typed[dtype]


def start_from_classifier(tagger: Tagger, teacher: Classifier) -> None:
    """Copies a MobileNet-v2 classifier's weights into a tagger whose first tags are the classifier's classes.

    The last convolution is its classes after a background class. Tags beyond them start as very unlikely. Raises ``SlimError``
    where it is no TorchScript of a MobileNet-v2, and where there are more classes than tags.
    """
    way_out = (
        "give a TorchScript MobileNet-v2 first in teachers.models, or set captioner.start_from_weights=false"
    )
    try:
        classes = classes_of(
            pour(convolution_constants(getattr(teacher.network, "script", None)) or [], tagger.body)
        )
    except ValueError:
        classes = None
    if classes is None:
        raise SlimError(
            f"the captioner cannot start from {teacher.name}, no TorchScript of a MobileNet-v2 of width 1: {way_out}"
        )
    weight, bias = classes
    if len(bias) > len(tagger.head.bias):
        raise SlimError(
            f"{teacher.name} has {len(bias)} classes, the vocabulary {len(tagger.head.bias)} tags: {way_out}, or a longer "
            "data.vocabulary"
        )
    with torch.no_grad():
        tagger.head.weight[: len(bias)] = weight
        tagger.head.bias[: len(bias)] = bias
        tagger.head.weight[len(bias) :] = 0
        tagger.head.bias[len(bias) :] = -6


def quick_copy(script: Any) -> MobileNet | None:
    """The network of a TorchScript classifier that gives logits and feature maps; None where it is no MobileNet-v2.

    Maps and answers are compared with the script's on noise.
    """
    constants = convolution_constants(script)
    try:
        network = MobileNet(constants or [])
    except ValueError:
        return None
    assert constants
    device = constants[0].device
    network.to(device)
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    # a script may average its last map by a fixed window: at its own size both answer alike
    pictures = F.interpolate(noise, DEFAULT_SIDE, mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        script_logits, *script_maps = script(pictures)[: 1 + MAPS]
        answer, ours = network(pictures, MAPS, answered=True)
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in script_maps]:
        return None
    if max(map(_difference, ours, script_maps)) >= TOLERANCE:
        return None
    if (
        answer is None
        or answer.shape != script_logits.shape
        or _difference(answer, script_logits) >= ANSWER_TOLERANCE
    ):
        network.classes = None
    return network


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def pour(constants: list[Tensor], body: nn.Module) -> list[Tensor]:
    """Copies weight and bias of each convolution in order into those of a tagger's ``body``; returns those that are left.

    Raises ``ValueError`` where the shapes are not those of a MobileNet-v2.
    """
    parameters = [p for conv in body.modules() if isinstance(conv, nn.Conv2d) for p in conv.parameters()]
    poured, left = constants[: len(parameters)], constants[len(parameters) :]
    if [tensor.shape for tensor in poured] != [parameter.shape for parameter in parameters]:
        raise ValueError("not a MobileNet-v2 of width 1")
    for parameter, constant in zip(parameters, poured, strict=True):
        parameter.copy_(constant)
    return left


def classes_of(left: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Weight [K, features] and bias [K] of the classes among what ``pour`` left: a convolution, after a background class."""
    if len(left) < 2 or left[0].shape[1:] != (FEATURES, 1, 1):
        return None
    return left[0][1:, :, 0, 0], left[1][1:]


def convolution_constants(script: Any) -> list[Tensor] | None:
    """Weight and bias of each convolution of a traced network, in the order in which it computes them; None if they are hidden."""
    if script is None:
        return None
    tensors = dict(script.named_buffers()) | dict(script.named_parameters())
    constants: list[Tensor] = []
    for node in script.inlined_graph.nodes():
        if node.kind() not in ("aten::_convolution", "aten::conv2d"):
            continue
        for value in list(node.inputs())[1:3]:
            source = value.node()
            while source.kind() == "aten::to":
                source = source.inputsAt(0).node()
            path: list[str] = []
            while source.kind() == "prim::GetAttr":
                path.insert(0, source.s("name"))
                source = source.inputsAt(0).node()
            name = ".".join(path)
            if name not in tensors:
                return None
            constants.append(tensors[name].detach().float())
    return constants
