"""Convolutional blocks of our networks, what they ask of levels and types, and convolutions fused with their activations.

No block normalises over space, so a picture cut into overlapping tiles gives the same values as the whole.

PyTorch's plain convolution lays out its weights anew at every call, and the activation is a pass of its own over memory.
oneDNN does both at once, by operators that PyTorch's own compiler calls and that are not public: where they are missing or
fail, the layers run one by one. Without them encoding takes 15 to 17 % longer, decoding 4 to 13 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.models.surroundings import building

#: largest relative difference that the operators may make in a trial
TOLERANCE = 0.02
#: positions beyond which oneDNN lays weights out as for any larger input
LARGE = 64 * 64
#: activations that a convolution may end with: the operator's name for each, and its numbers
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
}
NONE: tuple[str, list[float]] = ("none", [])


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a SiLU, added to the input; the second starts small, so a new block is near identity."""

    #: ``layers`` are added to the input
    residual = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """What is added to the input, in order: ``Fused`` reads it too."""
        return nn.SiLU(), self.conv1, nn.SiLU(), self.conv2

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for layer in self.layers:
            hidden = layer(hidden)
        return x + hidden


class SameConv(nn.Conv2d):
    """A convolution that pads at the right and bottom first, as the networks do whose weights the captioner starts from."""

    def padded(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input, padded where that is uneven, and the even padding that is left to do."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        # plain numbers also where a network is traced for export
        sizes = map(int, x.shape[2:])
        rows, columns = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in sizes)
        if rows % 2 or columns % 2:
            return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)), (0, 0)
        return x, (rows // 2, columns // 2)

    def widened(self, x: Tensor) -> bool:
        """Whether even padding of 1, and a kernel with a row and a column of zeros before it, come to the same for an input.

        Copying a large input into a padded one takes longer than the zeros of a depthwise kernel.
        """
        even = not (x.shape[2] % 2 or x.shape[3] % 2)
        return self.groups > 1 and self.kernel_size == (3, 3) and self.stride == (2, 2) and even

    def forward(self, x: Tensor) -> Tensor:
        x, padding = self.padded(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def small_conv(
    in_channels: int, out_channels: int, gain: float = 0.02, kind: type[nn.Conv2d] = nn.Conv2d
) -> nn.Conv2d:
    """A 1x1 convolution that starts near zero, for the end of a branch that is added to a linear path."""
    conv = kind(in_channels, out_channels, 1)
    with torch.no_grad():
        conv.weight.mul_(gain)
        if conv.bias is not None:
            conv.bias.zero_()
    return conv


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating-point type that the module's parameters have."""
    return next(module.parameters()).dtype


def quality_to_level(quality: Tensor, levels: int) -> Tensor:
    """Quality 1..100 as a position between trained levels, 0..levels-1."""
    return (quality.float() - 1) * ((levels - 1) / 99)


def at_level(table: Tensor, level: Tensor) -> Tensor:
    """Rows of ``table`` [levels, ...] linearly interpolated at ``level`` [B], in 0..levels-1."""
    low = level.floor().clamp(0, table.shape[0] - 1)
    high = (low + 1).clamp(max=table.shape[0] - 1)
    weight = (level - low).reshape(-1, *([1] * (table.dim() - 1)))
    return table[low.long()] * (1 - weight) + table[high.long()] * weight


# ---- fused layers ----------------------------------------------------------------------------------------------


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
        # the operators take no part in autocast, and none in graphs
        plain = torch.is_grad_enabled() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        return self.fused and not (plain or torch.is_autocast_enabled(x.device.type))

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
    if added is None:
        result: Tensor = operator(x, weight, *place, *activation, "")
        return result
    result = operator.binary(x, added, weight, *place, "add", 1.0, None, [], None)
    return result


class FusedConv:
    """A convolution with the activation after it."""

    def __init__(self, conv: nn.Conv2d, activation: tuple[str, list[float]] = NONE) -> None:
        self.conv, self.activation = conv, activation
        self.padding = int(conv.padding[0]), int(conv.padding[1])
        #: the weight as it is, and widened, laid out for an input of so many positions
        self.weights: dict[bool, tuple[int, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # weights as oneDNN lays them out cannot be copied; they are laid out anew
        return self.__dict__ | {"weights": {}}

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """``added`` [B, C, h, w] is added to what a convolution without activation gives."""
        conv, padding, widened = self.conv, self.padding, False
        if isinstance(conv, SameConv):
            widened = conv.widened(x)
            x, padding = (x, (1, 1)) if widened else conv.padded(x)
        positions = min(x.shape[2] * x.shape[3], LARGE)
        area, weight = self.weights.get(widened, (0, conv.weight))
        # weights laid out for a tiny input take four times as long for a larger one, not the other way round
        if positions > 2 * area:
            weight = (F.pad(conv.weight, (1, 0, 1, 0)) if widened else conv.weight).detach().to_mkldnn()
            lay_out: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            weight = lay_out(weight, list(padding), list(conv.stride), [1, 1], conv.groups, list(x.shape))
            self.weights[widened] = positions, weight
        return _convolve(x, weight, conv, padding, self.activation, added)


class Fused:
    """A sequence of layers, convolutions fused with what follows them; weights are laid out at the first call.

    Nothing is differentiated through it, and later changes of the weights are not seen. ``residual``: the last layer, a
    convolution without activation, adds the input.
    """

    def __init__(self, layers: Iterable[nn.Module], residual: bool = False) -> None:
        self.steps, self.residual = list(_steps(list(layers))), residual

    def __call__(self, x: Tensor) -> Tensor:
        hidden = x
        for step in self.steps[:-1]:
            hidden = step(hidden)
        last: Any = self.steps[-1]
        result: Tensor = last(hidden, added=x) if self.residual else last(hidden)
        return result


def _steps(layers: list[Any]) -> Iterator[Callable[[Tensor], Tensor]]:
    while layers:
        layer = layers.pop(0)
        if isinstance(layer, nn.Conv2d) and _fusable(layer):
            activation = ACTIVATIONS.get(type(layers[0])) if layers else None
            if activation is not None:
                layers.pop(0)
            yield FusedConv(layer, activation or NONE)
        elif hasattr(layer, "layers"):
            block = Fused(layer.layers, layer.residual)
            last = block.steps[-1]
            sums = isinstance(last, FusedConv) and last.activation == NONE
            yield block if sums or not layer.residual else layer
        else:
            yield layer


def _fusable(conv: nn.Conv2d) -> bool:
    return conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def works(dtype: torch.dtype) -> bool:
    """Whether the operators are there, wanted, and do in a type what they should."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled) and _tried(dtype)


@lru_cache(maxsize=4)
def _tried(dtype: torch.dtype) -> bool:
    """Whether a few layers of every kind that our networks have give, fused, what they give one by one."""
    with building():
        dense = [nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, 1, 1, groups=32)]
        depthwise, narrow = SameConv(32, 32, 3, 2, groups=32), nn.Conv2d(32, 8, 1)
        clipped = [layer for conv in (*dense, depthwise) for layer in (conv, nn.ReLU6())]
        smooth = [narrow, nn.SiLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.SiLU(), ResBlock(8)]
        strided = [nn.Conv2d(8, 16, 2, 2), nn.Conv2d(16, 8, 4, 2, 1)]
        layers: Any = nn.Sequential(*clipped, *smooth, *strided)
    generator = torch.Generator().manual_seed(0)
    for weight in layers.parameters():
        spread = weight[0].numel() ** -0.5
        weight.data.uniform_(-spread, spread, generator=generator)
    layers = layers.to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.linspace(-20, 20, 3 * 32 * 28, device="cpu").reshape(1, 3, 32, 28).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            plain, fused = layers(x).float(), Fused(layers)(x).float()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((fused - plain).norm() <= TOLERANCE * plain.norm())
