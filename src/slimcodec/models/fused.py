"""Convolutions with their activations in one call, for inference on a processor.

PyTorch's plain convolution lays out its weights anew at every call, and the activation is a pass of its own over memory; for the
52 small convolutions of the captioner that is a quarter of the time, for the residual blocks of the codec a tenth. oneDNN does both
at once. PyTorch's own compiler calls the same operators, which are not public: where they are missing or fail, the layers run one
by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.models.blocks import ResBlock, SameConv

#: largest relative difference that the operators may make in a trial
TOLERANCE = 0.02
#: activations that a convolution may end with: the operator's name for each, and its numbers
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
}
NONE: tuple[str, list[float]] = ("none", [])


class Fusable(nn.Module):
    """Layers that inference on a processor may fuse; training and other devices run them one by one."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._may_fuse = False
        #: the fused layers, by which they are
        self._fused: dict[Any, Callable[[Tensor], Tensor]] = {}

    def fuse(self) -> None:
        """From now on inference takes fused layers, if the processor can: the weights must not change in place."""
        first = next(self.parameters(), None)
        self._may_fuse = first is not None and first.device.type == "cpu" and works(first.dtype)

    @property
    def fused(self) -> bool:
        """Whether a call takes fused layers, where gradients are off."""
        return self._may_fuse and bool(torch.backends.mkldnn.enabled)

    def _takes(self, x: Tensor) -> bool:
        # the operators take no part in autocast
        return self.fused and not (torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type))

    def _apply(self, *arguments: Any, **named: Any) -> Fusable:
        # on another device or in another type
        self._forget()
        moved: Fusable = super()._apply(*arguments, **named)  # type: ignore[no-untyped-call]
        return moved

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*arguments, **named)

    def _forget(self) -> None:
        self._may_fuse = False
        self._fused = {}


class FusableSequential(Fusable, nn.Sequential):
    """Layers one after another.

    Among them may be blocks: modules with ``layers``, and ``residual``, whether these are added to their input.
    """

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """The layers from ``start`` to before ``stop``."""
        if not self._takes(x):
            for layer in list(self)[start:stop]:
                x = layer(x)
            return x
        if (start, stop) not in self._fused:
            self._fused[start, stop] = Fused(list(self)[start:stop])
        return self._fused[start, stop](x)


class FusableConv(Fusable, nn.Conv2d):
    """A convolution alone, whose weights are laid out once."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self._takes(x) and _fusable(self)):
            return super().forward(x)
        if None not in self._fused:
            self._fused[None] = FusedConv(self)
        return self._fused[None](x)


def fuse(module: nn.Module) -> None:
    """Lets all that can be fused in a module be, for inference (see ``Fusable.fuse``)."""
    for part in module.modules():
        if isinstance(part, Fusable):
            part.fuse()


def _lay_out(weight: Tensor, conv: nn.Conv2d, shape: Iterable[int], padding: tuple[int, int]) -> Tensor:
    numbers = (list(padding), list(conv.stride), [1, 1], conv.groups, list(shape))
    operator: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    laid_out: Tensor = operator(weight.detach().to_mkldnn(), *numbers)
    return laid_out


def _convolve(
    x: Tensor,
    weight: Tensor,
    conv: nn.Conv2d,
    padding: tuple[int, int],
    activation: tuple[str, list[float]],
    added: Tensor | None,
) -> Tensor:
    """``activation(conv(x))``, or ``conv(x) + added``."""
    place = (conv.bias, list(padding), list(conv.stride), [1, 1], conv.groups)
    operator: Any = torch.ops.mkldnn._convolution_pointwise
    result: Tensor
    if added is None:
        name, numbers = activation
        result = operator(x, weight, *place, name, numbers, "")
    else:
        result = operator.binary(x, added, weight, *place, "add", 1.0, None, [], None)
    return result


class FusedConv:
    """A convolution with the activation after it."""

    def __init__(self, conv: nn.Conv2d, activation: tuple[str, list[float]] = NONE) -> None:
        self.conv, self.activation = conv, activation
        self.padding = int(conv.padding[0]), int(conv.padding[1])
        #: the weight as it is, and widened
        self.weights: dict[bool, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # weights as oneDNN lays them out cannot be copied; they are laid out anew
        return self.__dict__ | {"weights": {}}

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """``added`` [B, C, h, w] is added to what a convolution without activation gives."""
        conv, padding, widened = self.conv, self.padding, False
        if isinstance(conv, SameConv):
            widened = conv.widened(x)
            x, padding = (x, (1, 1)) if widened else conv.padded(x)
        if widened not in self.weights:
            weight = F.pad(conv.weight, (1, 0, 1, 0)) if widened else conv.weight
            self.weights[widened] = _lay_out(weight, conv, x.shape, padding)
        return _convolve(x, self.weights[widened], conv, padding, self.activation, added)


class Fused:
    """A sequence of layers, convolutions fused with what follows them; weights are laid out at the first call.

    Nothing is differentiated through it, and later changes of the weights are not seen.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.steps = list(_steps(list(layers)))

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def _steps(layers: list[Any]) -> Iterator[Callable[[Tensor], Tensor]]:
    while layers:
        layer = layers.pop(0)
        if isinstance(layer, nn.Conv2d) and _fusable(layer):
            activation = ACTIVATIONS.get(type(layers[0])) if layers else None
            if activation is not None:
                layers.pop(0)
            yield FusedConv(layer, activation or NONE)
        elif hasattr(layer, "layers"):
            inner = Fused(layer.layers)
            last = inner.steps[-1]
            if not layer.residual:
                yield inner
            elif isinstance(last, FusedConv) and last.activation == NONE:
                yield _Added(inner.steps[:-1], last)
            else:
                yield layer
        else:
            yield layer


def _fusable(conv: nn.Conv2d) -> bool:
    return conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class _Added:
    """A residual branch, whose ``last`` convolution adds the input."""

    def __init__(self, first: Sequence[Callable[[Tensor], Tensor]], last: FusedConv) -> None:
        self.first, self.last = list(first), last

    def __call__(self, x: Tensor) -> Tensor:
        hidden = x
        for step in self.first:
            hidden = step(hidden)
        return self.last(hidden, added=x)


def works(dtype: torch.dtype) -> bool:
    """Whether the operators are there, wanted, and do in a type what they should."""
    wanted = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return wanted and _tried(dtype)


@lru_cache(maxsize=4)
def _tried(dtype: torch.dtype) -> bool:
    """Whether a few layers of every kind that our networks have give, fused, what they give one by one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: Any = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.ReLU6(),
            nn.Conv2d(16, 32, 1),
            nn.ReLU6(),
            nn.Conv2d(32, 32, 3, 1, 1, groups=32),
            nn.ReLU6(),
            SameConv(32, 32, 3, 2, groups=32),
            nn.ReLU6(),
            nn.Conv2d(32, 8, 1),
            nn.SiLU(),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.SiLU(),
            ResBlock(8),
            nn.Conv2d(8, 16, 2, 2),
            nn.Conv2d(16, 8, 4, 2, 1),
        )
    layers = layers.to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.linspace(-20, 20, 3 * 32 * 28).reshape(1, 3, 32, 28).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            wanted, ours = layers(x).float(), Fused(layers)(x).float()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((ours - wanted).norm() <= TOLERANCE * wanted.norm())
