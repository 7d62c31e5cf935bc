"""Low-rank adaptation (Hu et al. 2022) of a diffusion UNet, through peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.enhancer import Enhancer
from slimcodec.models.pretrained.denoiser import Denoiser

ADAPTER = "slim"
#: the two matrices of a layer, by their names in peft and in a bundle
MATRICES = {f".lora_A.{ADAPTER}.weight": ".down.weight", f".lora_B.{ADAPTER}.weight": ".up.weight"}


class LowRank(nn.Module):
    """The low-rank matrices of a pretrained UNet, the very parameters, apart from it: what is trained, averaged and saved."""

    strength: Tensor

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        # travels with the weights: the bundle starts denoising where training did
        self.register_buffer("strength", torch.tensor(denoiser.config.strength))
        for name, parameter in denoiser.unet.named_parameters():
            for theirs, ours in MATRICES.items():
                if name.endswith(theirs):
                    # names of parameters hold no dots
                    key = name.removesuffix(theirs) + ours
                    self.register_parameter(key.replace(".", "/"), parameter)


def low_rank_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of ``LowRank`` as a bundle's part, which ``slimcodec.models.pretrained.pipeline.merge_lora`` reads."""
    return {name.replace("/", "."): value for name, value in state.items() if name != "strength"}


def add_lora(enhancer: Enhancer | Denoiser, rank: int, targets: tuple[str, ...]) -> None:
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
