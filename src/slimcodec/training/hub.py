"""A run on a pretrained latent diffusion model: the model that its recipe names, and the bundle that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from slimcodec.codec import Codec
from slimcodec.errors import SlimError
from slimcodec.models.bundle import Bundle, BundleConfig
from slimcodec.models.enhancer import EnhancerConfig
from slimcodec.models.pretrained.pipeline import refer_ldm
from slimcodec.training.create import MEASURED, measured_strength, with_captioner
from slimcodec.training.export import Made, fitted_tables, latent_codec_parts
from slimcodec.training.lora import low_rank_part
from slimcodec.training.recipe import Recipe


def open_model(recipe: Recipe, device: str) -> Bundle:
    """The pretrained model that a recipe names, as a bundle with no parts of ours.

    Raises ``SlimError`` where it is missing, or the recipe's compressor does not fit its latents.
    """
    named, network = recipe.ldm, recipe.compressor.network
    facts = refer_ldm(named.source, named.autoencoder, named.text_encoder)
    if network.latent_channels != facts.latent_channels or network.patch < 2:
        raise SlimError(
            f"compressor.network: latents of {named.source} have {facts.latent_channels} channels; set "
            f"latent_channels={facts.latent_channels}, patch=2 and prior.channels={4 * facts.latent_channels}"
        )
    enhancer = EnhancerConfig("trained", facts.latent_channels, noise=named.noise, strength=named.strength)
    return Bundle(BundleConfig(recipe.name, enhancer=enhancer, ldm=facts.config), {}, (), device=device)


def pretrained_bundle(
    recipe: Recipe, model: Bundle, made: Made, photos: Sequence[NDArray[np.uint8]]
) -> Bundle:
    """The bundle of a run on ``model``, its symbol tables fitted to ``photos`` [H, W, 3].

    Without low-rank matrices enhancement is zero-shot.
    """
    device, vocabulary = str(model.device), made.vocabulary
    config = replace(model.config, compressor=recipe.compressor.network, training=made.training)
    parts = latent_codec_parts(made.codec)
    # first, since it tells the compressor where to look
    if made.tagger is not None:
        config, parts["captioner-0"] = replace(config, captioners=(made.tagger[0],)), made.tagger[1]
    elif recipe.ldm.captioner:
        config, parts, vocabulary = with_captioner(config, parts, vocabulary, recipe.ldm.captioner)
    draft = Codec(Bundle(config, parts, vocabulary, device=device))
    parts |= latent_codec_parts(made.codec, fitted_tables(draft, photos))
    enhancer = config.enhancer or EnhancerConfig()
    if made.low_rank:
        state = dict(made.low_rank)
        low, high = (float(share) for share in state.pop("strength"))
        parts["lora"] = low_rank_part(state)
        enhancer = replace(enhancer, strength=(low, high))
    else:
        strength = recipe.ldm.strength
        if max(strength) <= 0:
            strength = measured_strength(Bundle(config, parts, vocabulary, device=device), photos[:MEASURED])
        enhancer = replace(enhancer, mode="noise", noise=1.0, strength=strength)
    return Bundle(replace(config, enhancer=enhancer), parts, vocabulary)
