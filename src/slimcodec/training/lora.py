"""Low-rank adaptation (Hu et al. 2022) of a diffusion UNet, through peft."""

from __future__ import annotations

from typing import Any

from slimcodec.errors import SlimError
from slimcodec.models.enhancer import Enhancer

ADAPTER = "slim"


def add_lora(enhancer: Enhancer, rank: int, targets: tuple[str, ...]) -> None:
    """Freezes the UNet and adds trainable low-rank matrices beside the layers whose names end in one of ``targets``."""
    from peft import LoraConfig

    unet: Any = enhancer.unet
    unet.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), init_lora_weights="gaussian")
    try:
        unet.add_adapter(config, adapter_name=ADAPTER)
    except ValueError as error:
        raise SlimError(
            f"enhance.lora_targets: no layer of the UNet is meant by {', '.join(targets)}"
        ) from error


def merge_lora(enhancer: Enhancer) -> None:
    """Adds the low-rank matrices to the weights that they stand beside and removes them."""
    unet: Any = enhancer.unet
    unet.fuse_lora(adapter_names=[ADAPTER])
    unet.unload_lora()
