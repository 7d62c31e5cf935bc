"""The networks of a bundle in torch, on any device and in any type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from slimcodec.models.networks import networks
from slimcodec.models.surroundings import undisturbed

if TYPE_CHECKING:
    from slimcodec.models.bundle import Bundle


class TorchRuntime:
    """Runs networks by name, as ``OnnxRuntime`` does."""

    name = "torch"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.networks = bundle, networks(bundle.config)

    def __reduce__(self) -> tuple[Any, ...]:
        return TorchRuntime, (self.bundle,)

    @property
    def dtype(self) -> str:
        """The type that the convolutional networks run in."""
        return str(self.bundle.dtype).removeprefix("torch.")

    @undisturbed
    def run(self, name: str, *arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """What a network (see ``networks``) gives for its inputs; ``SlimError`` where it does not fit its weights."""
        network = self.networks[name]
        if name.startswith("gradient"):
            # in half the time, and in float32 whatever the codec's type
            return self.bundle.onnx.run(name, *arrays)
        found = network.function(self.bundle.module(network.part), *map(self._tensor, arrays))
        results = found if isinstance(found, tuple) else (found,)
        # a caller's autocast leaves some in half precision
        return tuple((x.float() if x.is_floating_point() else x).cpu().numpy() for x in results)

    def own(self, array: NDArray[Any]) -> torch.Tensor:
        """An array as callers of the codec get it: a tensor on the codec's device."""
        return torch.from_numpy(array).to(self.bundle.device)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        # torch takes an array's strides as they are; it warns of memory that it may not write
        array = array if array.flags.writeable else np.copy(array, order="K")
        return torch.from_numpy(array).to(self.bundle.device)
