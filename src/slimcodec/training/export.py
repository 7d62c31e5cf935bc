"""From trained parts to a bundle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimcodec.codec import Codec
from slimcodec.entropy.tables import SymbolTables
from slimcodec.models.bundle import Bundle
from slimcodec.models.captioner import CaptionerConfig
from slimcodec.models.enhancer import Enhancer
from slimcodec.models.exact import FloatLayer
from slimcodec.models.native import CaptionEncoder
from slimcodec.models.prior import SCALES, quantise_prior, scale_of_index
from slimcodec.training.compression_model import CompressionModel

#: low qualities are close together in bits: more of them
FITTED_QUALITIES = (1, 10, 20, 30, 45, 60, 80, 100)


@dataclass(frozen=True)
class Made:
    """What the stages of a run made, None or {} where one has not run."""

    codec: CompressionModel
    vocabulary: tuple[str, ...]
    tagger: tuple[CaptionerConfig, dict[str, Tensor]] | None
    #: our own UNet and text encoder
    enhancer: tuple[Enhancer, CaptionEncoder] | None
    #: the state of a pretrained UNet's low-rank matrices
    low_rank: dict[str, Tensor]
    #: recipe and history, for the record
    training: dict[str, Any]


def gaussian_tables() -> SymbolTables:
    """The symbol tables that the prior's scale indices mean in training."""
    return SymbolTables.gaussian(_scales())


def _scales() -> NDArray[np.float64]:
    return scale_of_index(torch.arange(SCALES).double()).numpy()


def fitted_tables(codec: Codec, pictures: Iterable[NDArray[np.uint8]]) -> SymbolTables:
    """Symbol tables fitted to the symbols of real pictures [H, W, 3] at all qualities, Gaussian where none were seen."""
    tables = codec.bundle.coder.tables
    counts = np.zeros(len(tables.frequencies), np.int64)
    for picture in pictures:
        for coded in codec.quantise_each(picture, FITTED_QUALITIES):
            for part in coded.all_passes:
                counts += tables.count(part.symbols, part.indices)
    return SymbolTables.from_counts(_scales(), counts)


def latent_codec_parts(
    model: CompressionModel, tables: SymbolTables | None = None
) -> dict[str, dict[str, Tensor]]:
    """The bundle parts ``compressor`` and ``prior`` of a trained latent codec: the prior as integers, with its tables."""
    arrays: dict[str, Any] = (tables or gaussian_tables()).to_arrays()
    prior = quantise_prior(model.prior, model.hyper_index)
    prior |= {f"tables.{name}": torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    return {"compressor": dict(model.compressor.state_dict()), "prior": prior}


def restore_latent_codec(bundle: Bundle) -> CompressionModel:
    """The trainable latent codec of a bundle (loaded in float32): the float twin of its integer prior, weights as stored."""
    model = CompressionModel(bundle.compressor, bundle.latent_model.autoencoder)
    tensors = bundle.stored["prior"]
    with torch.no_grad():
        for name, layer in model.prior.layers.items():
            assert isinstance(layer, FloatLayer)
            # the layer's grids say how many fractional bits the stored weights have
            bits = int(tensors[f"{name}.meta"][0]) - layer.in_bits + layer.out_bits
            layer.weight.copy_(tensors[f"{name}.weight"].double() / 2.0**bits)
            layer.bias.copy_(tensors[f"{name}.bias"].double() / 2.0 ** (layer.in_bits + bits))
        model.hyper_scale.copy_((tensors["hyper_index"] / 16 - 12) / 32)
    return model
