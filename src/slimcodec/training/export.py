"""From trained parts to a bundle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimcodec.entropy.tables import SymbolTables
from slimcodec.models.prior import SCALES, quantise_prior, scale_of_index
from slimcodec.training.stages import LatentCodec


def gaussian_tables() -> SymbolTables:
    """The symbol tables that the prior's scale indices mean in training."""
    return SymbolTables.gaussian(scale_of_index(torch.arange(SCALES).double()).numpy())


def latent_codec_parts(model: LatentCodec, tables: SymbolTables | None = None) -> dict[str, dict[str, Tensor]]:
    """The bundle parts ``compressor`` and ``prior`` of a trained latent codec: the prior as integers, with its tables."""
    arrays: dict[str, Any] = (tables or gaussian_tables()).to_arrays()
    prior = quantise_prior(model.prior, model.hyper_index)
    prior |= {f"tables.{name}": torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    return {"compressor": dict(model.compressor.state_dict()), "prior": prior}
