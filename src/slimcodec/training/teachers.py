"""Frozen classifiers that training learns from: TorchScript files that return logits and feature maps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from slimcodec.errors import SlimError


class Teacher:
    """A TorchScript classifier: pictures [B, 3, S, S] in [0, 1] to (logits [B, K], feature map, ..., last feature map)."""

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        try:
            self.module = torch.jit.load(str(path), map_location=device).eval()
        except (ValueError, RuntimeError) as error:
            raise SlimError(f"{path}: not a TorchScript file that this PyTorch can read ({error})") from error

    def __call__(self, pictures: Tensor) -> tuple[Tensor, ...]:
        # the optimising executor fuses whole subgraphs, after which gradients at inner feature maps are lost
        plain = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with plain, torch.autocast(pictures.device.type, enabled=False):
            outputs: tuple[Tensor, ...] = self.module(pictures.float())
        return outputs
