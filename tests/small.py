"""A bundle small enough to build in a test, with every part that slim-tiny has, untrained but for its linear path."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from support import NAMES, photo

from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.bundle import Bundle
from slimcodec.models.captioner import Tagger
from slimcodec.models.compressor import Compressor
from slimcodec.models.config import (
    AutoencoderConfig,
    BundleConfig,
    CaptionerConfig,
    CompressorConfig,
    EnhancerConfig,
    PriorConfig,
)
from slimcodec.models.enhancer import Enhancer, UNetSize, small_text_encoder, small_unet_config
from slimcodec.training.compression_model import CompressionModel, latent_codec_parts

CHANNELS = 16
VOCABULARY = ("cat", "egyptian cat", "espresso", "rocket", "astronaut")


def small_bundle(seed: int = 0, captioner: bool = True) -> Bundle:
    """Builds the bundle; the same for a seed on one machine."""
    torch.manual_seed(seed)
    autoencoder_config = AutoencoderConfig(CHANNELS, (16, 16), (1, 1), (16, 16), (1, 1))
    prior_config = PriorConfig(channels=CHANNELS, hyper_channels=8, width=16, head_width=24, levels=3)
    compressor_config = CompressorConfig(CHANNELS, 1, 16, 1, 1, 16, prior_config)
    autoencoder = PatchAutoencoder(autoencoder_config)
    pictures = torch.stack([torch.from_numpy(np.array(photo(name))).permute(2, 0, 1) for name in NAMES])
    autoencoder.init_linear(pictures.float() / 127.5 - 1)
    codec = CompressionModel(Compressor(compressor_config), autoencoder)
    codec.init_gains(autoencoder.latent_scale() * 127.5, torch.tensor([1e-4, 1e-3, 1e-2]))
    tagger = CaptionerConfig(len(VOCABULARY), 32, threshold=0.0)
    unet: dict[str, Any] = small_unet_config(CHANNELS, UNetSize(text_width=32)) | {
        "block_out_channels": (16, 16),
        "norm_num_groups": 8,
    }
    enhancer_config = EnhancerConfig(latent_channels=CHANNELS, levels=3, unet=unet)
    text = small_text_encoder(VOCABULARY, 300, 32, 1)
    parts = {
        "autoencoder": dict(autoencoder.state_dict()),
        **latent_codec_parts(codec),
        "enhancer": dict(Enhancer(enhancer_config).state_dict()),
        "text": dict(text.state_dict()),
    }
    if captioner:
        parts["captioner-0"] = dict(Tagger(tagger).state_dict())
    config = BundleConfig(
        name="small",
        autoencoder=autoencoder_config,
        compressor=compressor_config,
        captioners=(tagger,) if captioner else (),
        enhancer=enhancer_config,
    )
    tokenizer = json.loads(text.tokenizer.backend_tokenizer.to_str())
    return Bundle(config, parts, VOCABULARY, (tokenizer, text.text_model.config.to_dict()))


def bundle_with_steps() -> Bundle:
    """The small bundle with a map of quantisation steps, and a captioner whose guess of the region is random."""
    plain = small_bundle()
    config = replace(
        plain.config,
        compressor=replace(plain.config.compressor, step_octaves=1.0),
        captioners=(replace(plain.config.captioners[0], roi=True),),
    )
    torch.manual_seed(1)
    compressor, tagger = Compressor(config.compressor), Tagger(config.captioners[0])
    tagger.load_state_dict(plain.captioners[0].state_dict(), strict=False)
    with torch.no_grad():
        tagger.roi_head.weight.normal_()
        for convolution in (compressor.analysis_steps, compressor.synthesis_steps):
            assert convolution is not None
            convolution.weight.zero_()
    parts = {name: dict(state) for name, state in plain.stored.items()}
    # what is stored stays as it is: quantising a second time may round otherwise
    new = {"compressor": ("analysis_steps", "synthesis_steps"), "captioner-0": ("roi",)}
    for part, module in (("compressor", compressor), ("captioner-0", tagger)):
        parts[part] |= {
            name: value for name, value in module.state_dict().items() if name.startswith(new[part])
        }
    return Bundle(config, parts, plain.vocabulary, plain.text)
