"""Convolutions with their activations in one call, for inference on a processor.

PyTorch's plain convolution lays out its weights anew at every call, and the activation is a pass of its own over memory; for the
52 small convolutions of the captioner that is a quarter of the time. oneDNN does both at once. PyTorch's own compiler calls the
same operators, which are not public: where they are missing or fail, the layers run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

#: largest relative difference that the operators may make in a trial
TOLERANCE = 0.02


def _lay_out(conv: nn.Conv2d, shape: Iterable[int], padding: tuple[int, int]) -> Tensor:
    weight = conv.weight.detach().to_mkldnn()
    numbers = (list(padding), list(conv.stride), [1, 1], conv.groups, list(shape))
    operator: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    laid_out: Tensor = operator(weight, *numbers)
    return laid_out


def _convolve(
    x: Tensor, weight: Tensor, conv: nn.Conv2d, padding: tuple[int, int], top: float | None
) -> Tensor:
    activation: tuple[Any, ...] = ("none", [], "") if top is None else ("hardtanh", [0.0, top], "")
    operator: Any = torch.ops.mkldnn._convolution_pointwise
    result: Tensor = operator(
        x, weight, conv.bias, list(padding), list(conv.stride), [1, 1], conv.groups, *activation
    )
    return result


class FusedConv:
    """A convolution, and the ReLU6 after it if ``bounded``."""

    def __init__(self, conv: nn.Conv2d, bounded: bool) -> None:
        self.conv, self.top = conv, 6.0 if bounded else None
        # a convolution of ours may pad unevenly, and tells how
        self.padded: Callable[[Tensor], tuple[Tensor, tuple[int, int]]] | None = getattr(conv, "padded", None)
        self.padding = int(conv.padding[0]), int(conv.padding[1])
        self.weight: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # weights as oneDNN lays them out cannot be copied; they are laid out anew
        return self.__dict__ | {"weight": None}

    def __call__(self, x: Tensor) -> Tensor:
        x, padding = (x, self.padding) if self.padded is None else self.padded(x)
        if self.weight is None:
            self.weight = _lay_out(self.conv, x.shape, padding)
        return _convolve(x, self.weight, self.conv, padding, self.top)


class Fused:
    """A sequence of layers, its convolutions fused with the ReLU6 that follows them; weights are laid out at the first call.

    Nothing is differentiated through it, and later changes of the weights are not seen.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.steps: list[Callable[[Tensor], Tensor]] = []
        rest = list(layers)
        while rest:
            layer: Any = rest.pop(0)
            if isinstance(layer, nn.Conv2d):
                bounded = bool(rest) and isinstance(rest[0], nn.ReLU6)
                self.steps.append(FusedConv(layer, bounded))
                rest = rest[1:] if bounded else rest
            elif hasattr(layer, "layers"):
                inner = Fused(layer.layers)
                self.steps.append(_Added(inner) if layer.residual else inner)
            else:
                self.steps.append(layer)

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class _Added:
    """A residual branch, added to its input."""

    def __init__(self, branch: Fused) -> None:
        self.branch = branch

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def works(dtype: torch.dtype) -> bool:
    """Whether the operators are there, wanted, and do in a type what they should."""
    wanted = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return wanted and _tried(dtype)


@lru_cache(maxsize=4)
def _tried(dtype: torch.dtype) -> bool:
    """Whether a few layers of every kind that the captioner has give, fused, what they give one by one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: Any = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.ReLU6(),
            nn.Conv2d(16, 32, 1),
            nn.ReLU6(),
            nn.Conv2d(32, 32, 3, 1, 1, groups=32),
            nn.ReLU6(),
            nn.Conv2d(32, 32, 3, 2, groups=32),
            nn.ReLU6(),
            nn.Conv2d(32, 8, 1),
        )
    layers = layers.to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.linspace(-20, 20, 3 * 33 * 28).reshape(1, 3, 33, 28).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            wanted, ours = layers(x).float(), Fused(layers)(x).float()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((ours - wanted).norm() <= TOLERANCE * wanted.norm())
