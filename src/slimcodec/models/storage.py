"""Weights as a bundle stores them: large matrices as 8-bit integers with a scale per row, the rest as it is."""

from __future__ import annotations

import torch
from torch import Tensor

#: matrices with fewer values stay in floating point
SMALLEST_INT8 = 2048


def _rows(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0],) + (1,) * (x.dim() - 1)


def to_storage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large weights as int8 with a scale per row; what already is stored so stays as it is.

    The autoencoder's linear path, gains and other tables are no ``.weight`` and keep their precision.
    """
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        # scales are vectors and int8 is no float, so stored tensors pass unchanged
        weight = name.endswith(".weight") and value.is_floating_point() and value.dim() >= 2
        if not weight or value.numel() < SMALLEST_INT8:
            stored[name] = value
            continue
        scale = value.float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        stored[f"{name}:int8"] = (value.float() / scale.reshape(_rows(value))).round().to(torch.int8)
        stored[f"{name}:scale"] = scale
    return stored


def from_storage(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(":scale"):
            continue
        if name.endswith(":int8"):
            base = name.removesuffix(":int8")
            tensors[base] = value.float() * stored[f"{base}:scale"].reshape(_rows(value))
        else:
            tensors[name] = value
    return tensors
