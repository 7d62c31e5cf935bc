"""Low-rank changes of a network's weights (LoRA, Hu et al. 2022) as a bundle holds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def merge(network: Any, changes: dict[str, Tensor]) -> None:
    """Adds the product of ``<layer>.up.weight`` and ``<layer>.down.weight`` to every layer's weight, in float32.

    Raises ``KeyError`` or ``ValueError`` where a layer is not there, or the product has not its shape.
    """
    for name, down in changes.items():
        if not name.endswith(".down.weight"):
            continue
        layer = name.removesuffix(".down.weight")
        try:
            weight = network.get_parameter(f"{layer}.weight")
        except AttributeError as error:
            raise KeyError(f"lora: the UNet has no layer {layer}") from error
        up = changes[f"{layer}.up.weight"]
        change = (up.flatten(1).float() @ down.flatten(1).float()).reshape(weight.shape)
        weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))
