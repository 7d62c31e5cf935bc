"""Pretrained parts in the computer's memory until they run: the device holds one of them at a time."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn


class Offload:
    """Keeps at most one of its modules on a device, by hooks of Accelerate; serves one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._there: nn.Module | None = None

    def add(self, module: nn.Module) -> None:
        """From now on the module comes to the device when it is called, and leaves when another one comes."""
        add_hook_to_module(module, _Comes(self))

    def bring(self, module: nn.Module | None) -> None:
        """Sends away what is on the device, and brings a module there (None: nothing), for one that is not called as a whole."""
        if self._there is module:
            return
        if self._there is not None:
            self._there.to("cpu")
        # noted last: a module that did not fit is not there
        self._there = None
        if module is not None:
            module.to(self.device)
        self._there = module


class _Comes(ModelHook):  # type: ignore[misc]
    """Brings its module before each call, and the call's arguments with it."""

    def __init__(self, offload: Offload) -> None:
        super().__init__()
        self.offload, self.execution_device = offload, offload.device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Called by Accelerate before the module's ``forward``, and by diffusers before an autoencoder's methods."""
        self.offload.bring(module)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)
