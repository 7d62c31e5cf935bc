"""A run on a latent space of our own: the bundle that comes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimcodec.codec import Codec
from slimcodec.errors import SlimError
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.bundle import Bundle, BundleConfig
from slimcodec.training.export import Made, fitted_tables, latent_codec_parts
from slimcodec.training.recipe import Recipe


def own_bundle(
    recipe: Recipe, autoencoder: PatchAutoencoder, made: Made, photos: Sequence[NDArray[np.uint8]]
) -> Bundle:
    """The bundle of a run on ``autoencoder``, its symbol tables fitted to ``photos`` [H, W, 3]."""
    parts = {"autoencoder": dict(autoencoder.state_dict()), **latent_codec_parts(made.codec)}
    config = BundleConfig(
        name=recipe.name,
        autoencoder=recipe.autoencoder.network,
        compressor=recipe.compressor.network,
        steps=recipe.defaults.steps,
        guidance=recipe.defaults.guidance,
        machine_guidance=recipe.defaults.machine_guidance,
        training=made.training,
    )
    text: tuple[Any, dict[str, Any]] | None = None
    if made.tagger is not None:
        config, parts["captioner-0"] = replace(config, captioners=(made.tagger[0],)), made.tagger[1]
        for number, source in enumerate(recipe.captioner.also, 1):
            other = Bundle.from_pretrained(source)
            if other.vocabulary != tuple(made.vocabulary) or not other.config.captioners:
                raise SlimError(f"captioner.also: {source} has no captioner of the same vocabulary")
            config = replace(config, captioners=(*config.captioners, other.config.captioners[0]))
            parts[f"captioner-{number}"] = other.stored["captioner-0"]
    if made.enhancer is not None:
        enhancer, encoder = made.enhancer
        parts["enhancer"], parts["text"] = dict(enhancer.state_dict()), dict(encoder.state_dict())
        tokenizer = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
        text = (tokenizer, encoder.text_model.config.to_dict())
        config = replace(config, enhancer=enhancer.config)
    draft = Codec(Bundle(config, parts, made.vocabulary, text))
    parts |= latent_codec_parts(made.codec, fitted_tables(draft, photos))
    return Bundle(config, parts, made.vocabulary, text)
