"""What runs the networks of a bundle: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

#: runs a network of a bundle by its name (see ``networks``)
Run = Callable[..., tuple[NDArray[Any], ...]]


class Runtime(Protocol):
    """``OnnxRuntime`` or ``TorchRuntime``; both serve several threads."""

    #: "onnx" or "torch"
    name: str

    @property
    def dtype(self) -> str:
        """The type that the convolutional networks run in."""

    def run(self, name: str, *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """What the network of a name (see ``networks``) gives for its inputs; ``SlimError`` where its weights do not fit."""

    def own(self, array: NDArray[Any]) -> Any:
        """An array as callers of the codec get it."""
