"""Bundles on a pretrained latent diffusion model: with a trained compressor, or with none, as a transform codec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimcodec.codec import Codec
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.data.sources import generated_rows
from slimcodec.entropy.caption import read_vocabulary
from slimcodec.errors import SlimError
from slimcodec.files import is_hub_id
from slimcodec.images import load_image
from slimcodec.models.bundle import EMBEDDED, Bundle, BundleConfig
from slimcodec.models.compressor import Compressor, CompressorConfig
from slimcodec.models.enhancer import EnhancerConfig
from slimcodec.models.pretrained.hub import CaptionModelConfig, pretrained_folder
from slimcodec.models.pretrained.networks import PretrainedAutoencoder, fitting_strength
from slimcodec.models.pretrained.pipeline import LdmFacts, load_scheduler, refer_ldm
from slimcodec.models.pretrained.references import refer, revision_of
from slimcodec.models.prior import PriorConfig
from slimcodec.training.compression_model import (
    CompressionModel,
    fitted_tables,
    latent_codec_parts,
    start_as_transform,
)

#: pictures from which an untrained compressor's transform and tables are taken, and their side in pixels
SAMPLES, SIDE = 12, 128
#: pictures on which the errors are measured that set the start of denoising
MEASURED = 4
#: weights of the squared error at quality 1 and 100, as in the recipes
LAMBDAS = (6e-5, 2e-2)


Parts = dict[str, dict[str, Tensor]]


def create(
    ldm: str,
    *,
    autoencoder: str = "",
    text_encoder: str = "",
    compressor: str = "",
    captioner: str = EMBEDDED,
    prompt: str = "",
    tags: str = "",
    alternatives: Sequence[str] = (),
    photos: str = "",
    name: str = "",
    steps: int = 1,
    text_scale: float = 1.0,
    strength: tuple[float, float] | None = None,
    device: str = "cpu",
) -> Bundle:
    """A bundle in memory on the pipeline ``ldm``. Sources are folders or hub ids, "" = the pipeline's own, or none.

    ``compressor``: a bundle, or a run's folder, whose compressor (and LoRA) is taken; ``captioner``: a bundle with a tagger, or a
    model of transformers, with its ``prompt`` or file of ``tags``; ``alternatives``: other homes of the pipeline; ``photos``: a
    folder of pictures for the transform of an untrained compressor; ``strength``: share of the schedule at quality 1 and 100, None
    where its noise is as large as what the compressor loses. Raises ``SlimError`` where a part is missing, or two do not fit.
    """
    facts = refer_ldm(ldm, autoencoder, text_encoder, alternatives)
    config = BundleConfig(
        name=name or Path(ldm).name,
        enhancer=EnhancerConfig("noise", facts.latent_channels, noise=1.0),
        steps=steps,
        text_scale=text_scale,
        ldm=facts.config,
    )
    vocabulary = read_vocabulary(EMBEDDED_BUNDLE / "vocabulary.txt")
    pictures = _samples(photos)
    if compressor:
        config, parts, vocabulary = _with_compressor(config, facts, compressor)
    else:
        config, parts = _untrained(config, facts, vocabulary, pictures, device)
    if config.enhancer is not None and config.enhancer.mode == "noise":
        draft = Codec(Bundle(config, parts, vocabulary, device=device))
        strength = strength or measured_strength(draft, pictures)
        config = replace(config, enhancer=replace(config.enhancer, strength=strength))
    if captioner:
        config, parts, vocabulary = with_captioner(config, parts, vocabulary, captioner, prompt, tags)
    return Bundle(config, parts, vocabulary)


def with_captioner(
    config: BundleConfig,
    parts: Parts,
    vocabulary: tuple[str, ...],
    source: str,
    prompt: str = "",
    tags: str = "",
) -> tuple[BundleConfig, Parts, tuple[str, ...]]:
    """Configuration, parts and vocabulary with a captioner: the taggers of another bundle, or a model of transformers.

    ``tags``: a file of tags, a line each, that a zero-shot model chooses from.
    """
    if source != EMBEDDED and not (Path(source).expanduser() / "vocabulary.txt").is_file():
        folder = pretrained_folder(source)
        named = (
            source
            if is_hub_id(source) and not Path(source).is_dir()
            else str(Path(source).expanduser().resolve())
        )
        part = refer("captioner", folder, named, "", revision_of(folder))
        config = replace(config, caption_model=CaptionModelConfig(part, prompt))
        return config, parts, read_vocabulary(tags) if tags else vocabulary
    if tags:
        raise SlimError(
            f"{source}: a bundle's captioner has tags of its own; --tags goes with a zero-shot model"
        )
    other = Bundle.from_pretrained(source)
    if not other.captioners:
        raise SlimError(f"{source}: this bundle has no captioner; choose another one")
    # the first names; more of them would guide, in slim-tiny's latent space alone
    taggers = {"captioner-0": other.stored["captioner-0"]}
    config = replace(config, captioners=other.config.captioners[:1])
    return config, parts | taggers, other.vocabulary


def _with_compressor(
    config: BundleConfig, facts: LdmFacts, source: str
) -> tuple[BundleConfig, Parts, tuple[str, ...]]:
    folder = Path(source).expanduser() / "bundle"
    other = Bundle.from_pretrained(folder if folder.is_dir() else source)
    network = other.config.compressor
    theirs = other.config.ldm.part("vae") if other.config.ldm is not None else None
    ours = facts.config.part("vae")
    assert ours is not None
    if theirs is None or network.latent_channels != facts.latent_channels:
        raise SlimError(
            f"{source}: its compressor codes latents of {network.latent_channels} channels of {other.config.name}, not of this "
            "model; train one with `slim train all -c hub-lora`"
        )
    kept = {name: state for name, state in other.stored.items() if name in ("compressor", "prior")}
    config = replace(config, compressor=network, training=other.config.training)
    if "lora" in other.stored and other.config.ldm == facts.config:
        # what was taught to another UNet means nothing to this one
        kept["lora"] = other.stored["lora"]
        config = replace(config, enhancer=other.config.enhancer)
    return config, kept, other.vocabulary


def measured_strength(codec: Codec, pictures: Iterable[NDArray[np.uint8]]) -> tuple[float, float]:
    """The shares of the model's schedule whose noise is as large as what the compressor loses of pictures [H, W, 3]."""
    errors = []
    for picture in pictures:
        latents = codec.latents(picture)
        coded = zip((1, 100), codec.quantise_each(picture, (1, 100)), strict=True)
        decompressed = [codec.synthesise(symbols, quality)[0] for quality, symbols in coded]
        errors.append([float((rough - latents).square().mean()) for rough in decompressed])
    low, high = (float(error) ** 0.5 for error in np.mean(errors, 0))
    return fitting_strength((low, high), load_scheduler(codec.bundle.pretrained_part("scheduler")))


# ---- an untrained compressor -----------------------------------------------------------------------------------


def default_compressor(latent_channels: int) -> CompressorConfig:
    """Sizes of a compressor of latents at 1/8 of the resolution: patches of 2x2 become one coded position."""
    channels = 4 * latent_channels
    prior = PriorConfig(channels, hyper_channels=24, width=64, head_width=128, levels=8)
    return CompressorConfig(latent_channels, 2, 96, 1, 2, 48, prior)


def _untrained(
    config: BundleConfig,
    facts: LdmFacts,
    vocabulary: tuple[str, ...],
    pictures: Sequence[NDArray[np.uint8]],
    device: str,
) -> tuple[BundleConfig, Parts]:
    network = default_compressor(facts.latent_channels)
    config = replace(config, compressor=network)
    space = Bundle(config, {}, vocabulary, device=device).latent_model.autoencoder
    assert isinstance(space, PretrainedAutoencoder)
    with torch.random.fork_rng(devices=[]):
        # the same model gives the same bundle
        torch.manual_seed(0)
        codec = CompressionModel(Compressor(network), space).to(device)
    compressor = codec.compressor
    levels = network.prior.levels
    low, high = LAMBDAS
    lambdas = low * (high / low) ** torch.linspace(0, 1, levels, device=device)
    stacked = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures])
    start_as_transform(codec, space, stacked.to(device).float() / 127.5 - 1, lambdas, predicted=0.7)
    with torch.no_grad():
        # branches that have learnt nothing say nothing, and neither does the prior: what is left is a static code
        for branch in (compressor.analysis, compressor.synthesis):
            branch.leave.weight.zero_()
        compressor.log_hyper_gain.fill_(-20.0)
        codec.hyper_scale.fill_(-12 / 32)
        layers: Any = codec.prior.layers
        for head in ("anchor", "rest"):
            for value in ("mean", "scale"):
                layers[f"{head}_{value}"].weight.zero_()
    codec.cpu()
    draft = Codec(Bundle(config, latent_codec_parts(codec), vocabulary, device=device))
    return config, latent_codec_parts(codec, fitted_tables(draft, pictures))


def _samples(folder: str) -> list[NDArray[np.uint8]]:
    """Squares of ``SIDE`` pixels from the middle of pictures in a folder, or of generated ones."""
    if not folder:
        return [_middle(load_image(row["image"]["bytes"])) for row in generated_rows(SAMPLES)]
    squares: list[NDArray[np.uint8]] = []
    for path in sorted(path for path in Path(folder).expanduser().rglob("*") if path.is_file()):
        try:
            pixels = load_image(path)
        except SlimError:
            continue
        if min(pixels.shape[:2]) >= SIDE:
            squares.append(_middle(pixels))
        if len(squares) == SAMPLES:
            break
    if not squares:
        raise SlimError(f"{folder}: holds no picture of at least {SIDE}x{SIDE} pixels")
    return squares


def _middle(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top, left = ((length - SIDE) // 2 for length in pixels.shape[:2])
    return np.array(pixels[top : top + SIDE, left : left + SIDE])
