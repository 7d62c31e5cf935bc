"""The modules of a bundle: each part's network in torch, built when it is first used; and those of a latent diffusion model."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError, failed_import
from slimcodec.models.runtime import Stored, check_shapes, unpacked
from slimcodec.models.surroundings import building

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def tensors_of(stored: Stored) -> dict[str, Tensor]:
    """Stored tensors by the names that they had before ``to_storage``, in floating point, as torch's."""
    names = [name.removesuffix(":int8") for name in stored if not name.endswith(":scale")]
    unpacked_tensors = unpacked(stored, dict.fromkeys(names, ""))
    return {name: torch.from_numpy(np.array(value)) for name, value in unpacked_tensors.items()}


class Parts:
    """The networks of a bundle on a device, each built when it is first used, once, whatever the thread."""

    def __init__(self, stored: Mapping[str, Stored], device: str, dtype: torch.dtype) -> None:
        """``stored`` maps a part's name to its stored tensors."""
        self.stored, self.device, self.dtype = stored, torch.device(device), dtype
        #: guards building, and tokenizers, which serve one thread at a time
        self.lock = threading.RLock()
        self._built: dict[str, Any] = {}
        self._process = os.getpid()

    def get(self, name: str, build: Callable[[], T]) -> T:
        """The part of a name, by ``build`` where it is not built yet; ``SlimError`` where tensors and configuration differ."""
        if self._process != os.getpid():
            # forked: another thread may have held the lock, and what was built may count on threads that stayed behind
            self.lock, self._built, self._process = threading.RLock(), {}, os.getpid()
        with self.lock:
            if name not in self._built:
                try:
                    # weights must serve guidance's gradients also where the caller runs in inference mode
                    with building():
                        self._built[name] = build()
                except SlimError:
                    raise
                except Exception as error:
                    if reason := failed_import(error):
                        raise SlimError(f"the bundle's part {name}: {reason}") from error
                    if not isinstance(error, KeyError | ValueError | TypeError | RuntimeError):
                        raise
                    message = f"the bundle's part {name} does not fit its configuration: {error}"
                    raise SlimError(message) from error
            return self._built[name]

    def network(self, name: str, build: Callable[[], M], fast: Sequence[str] = (), *, meta: bool = True) -> M:
        """The part of a name as a module on the device, frozen, with the stored tensors.

        ``fast``: children that run in ``dtype``, all others in float32; ``meta``: weights may be replaced, not only filled.
        """

        def load() -> M:
            # on the meta device a module costs no memory: a configuration gets as much of it as its weights have
            with torch.device("meta"):
                module = build()
            shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
            check_shapes(shapes, self.stored[name])
            if not meta:
                module = build().float()  # where the caller's default is another type
            module.load_state_dict(tensors_of(self.stored[name]), strict=True, assign=meta)
            # channels-last convolutions are faster on processors and on GPUs
            module.requires_grad_(False).eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for child, part in module.named_children():
                if child in fast:
                    part.to(self.dtype)
            return module

        return self.get(name, load)


@dataclass(frozen=True)
class CaptionEmbedding:
    """Captions as a denoiser reads them: hidden states [B, tokens, D] and, for SDXL, the pooled states [B, P]."""

    states: Tensor
    pooled: Tensor | None = None


class LatentModel(ABC):
    """A latent diffusion model: ours (``enhancer``), or a pipeline of diffusers (``pretrained.pipeline``).

    Its networks are the properties ``autoencoder`` (``encode`` and ``decode``), ``enhancer`` (see ``Enhancer.forward``) and
    ``text_encoder``. Pictures are [B, 3, H, W] in [-1, 1], latents [B, C, H / stride, W / stride], both float32. Every network
    is loaded when it is first needed. ``SlimError`` names a network that the model lacks, and why.
    """

    #: what ``offload`` has set up, after which the device holds one network at a time, that which runs
    offloaded: Any = None
    parts: Parts

    @property
    @abstractmethod
    def text_encoder(self) -> Any:
        """Tokenizers and text encoders: captions to a ``CaptionEmbedding``."""

    def embed_captions(self, captions: Sequence[str | None]) -> CaptionEmbedding:
        """Captions as the enhancer takes them; None is no caption."""
        with self.parts.lock, torch.no_grad():
            return self.text_encoder(captions)

    def make_room(self, module: Any = None) -> None:  # noqa: B027  networks that stay on the device need none
        """With ``offload``: takes the network on the device away, and brings another ``module`` there."""
