"""Bundles on a pretrained latent diffusion model: with a trained compressor, or with none, as a transform codec."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
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
from slimcodec.entropy.tables import SymbolTables
from slimcodec.errors import SlimError
from slimcodec.images import load_image
from slimcodec.models.autoencoder import patch_rows
from slimcodec.models.bundle import Bundle
from slimcodec.models.compressor import Compressor
from slimcodec.models.config import (
    EMBEDDED,
    BundleConfig,
    CaptionModelConfig,
    CompressorConfig,
    EnhancerConfig,
    LdmConfig,
    PriorConfig,
)
from slimcodec.models.guidance import at_side
from slimcodec.models.pretrained.hub import pretrained_folder
from slimcodec.models.pretrained.networks import PretrainedAutoencoder, fitting_strength
from slimcodec.models.pretrained.pipeline import load_scheduler, refer_ldm
from slimcodec.models.pretrained.references import refer
from slimcodec.training.batches import scaled
from slimcodec.training.compression_model import (
    TABLE_SCALES,
    CompressionModel,
    latent_codec_parts,
    start_as_transform,
)
from slimcodec.training.pseudo_labels import lending_bundle
from slimcodec.training.recipe import CompressorRecipe, DefaultsRecipe

logger = logging.getLogger(__name__)

#: pictures from which an untrained compressor's transform and tables are taken, and their side in pixels
SAMPLES, SIDE = 12, 128
#: pictures on which the errors are measured that set the start of denoising
MEASURED = 4
#: qualities to whose symbols tables are fitted: low ones are close together in bits, so there are more of them
FITTED_QUALITIES = (1, 10, 20, 30, 45, 60, 80, 100)
#: weight of the squared coefficients in the fit of the linear map, relative to the latents' energy
RIDGE = 1e-2


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
    model, channels = refer_ldm(ldm, autoencoder, text_encoder, alternatives)
    config = BundleConfig(
        name or Path(ldm).name,
        steps=steps,
        machine_guidance=DefaultsRecipe.machine_guidance,
        text_scale=text_scale,
    )
    bundle = bundle_on(model, config, EnhancerConfig("noise", channels, noise=1.0), device)
    bundle = changed(bundle, vocabulary=read_vocabulary(EMBEDDED_BUNDLE / "vocabulary.txt"))
    pictures, enhancer = _samples(photos), bundle.config.enhancer
    if compressor:
        bundle = with_compressor(bundle, channels, compressor)
    else:
        bundle = with_transform_code(bundle, channels, pictures)
    if enhancer is not None and bundle.config.enhancer == enhancer:
        strength = strength or measured_strength(bundle, pictures)
        bundle = changed(bundle, enhancer=replace(enhancer, strength=strength))
    if captioner:
        bundle = with_captioner(bundle, captioner, prompt, tags)
    return with_guide(bundle, pictures)


def bundle_on(ldm: LdmConfig, config: BundleConfig, enhancer: EnhancerConfig, device: str) -> Bundle:
    """A bundle on a pretrained model with no parts of ours; an autoencoder without a denoiser gets no enhancer, and no steps."""
    known: dict[str, Any] = {"enhancer": enhancer} if ldm.part("unet") else {"steps": 0}
    return Bundle(replace(config, ldm=ldm, **known), {}, (), device=device)


def changed(
    bundle: Bundle,
    parts: Mapping[str, Mapping[str, NDArray[Any] | Tensor]] | None = None,
    vocabulary: tuple[str, ...] = (),
    **settings: Any,
) -> Bundle:
    """A copy of a bundle with other settings, and with ``parts`` added or replaced."""
    return Bundle(
        replace(bundle.config, **settings),
        bundle.stored | dict(parts or {}),
        vocabulary or bundle.vocabulary,
        bundle.text,
        str(bundle.parts.device),
    )


def with_captioner(bundle: Bundle, source: str, prompt: str = "", tags: str = "") -> Bundle:
    """A bundle with a captioner: the tagger of another bundle, with its vocabulary, or a model of transformers.

    ``tags``: a file of tags, a line each, that a zero-shot model chooses from.
    """
    other = lending_bundle(source)
    if other is None:
        part = refer("captioner", pretrained_folder(source), source)
        vocabulary = read_vocabulary(tags) if tags else ()
        return changed(bundle, None, vocabulary, caption_model=CaptionModelConfig(part, prompt))
    if tags:
        raise SlimError(
            f"{source}: a bundle's captioner has tags of its own; --tags goes with a zero-shot model"
        )
    # one is enough to name and to guide
    parts = {"captioner-0": other.stored["captioner-0"]}
    return changed(bundle, parts, other.vocabulary, captioners=other.config.captioners[:1])


def with_compressor(bundle: Bundle, latent_channels: int, source: str) -> Bundle:
    """A bundle with another one's compressor, and with its LoRA where that was taught to the same UNet."""
    folder = Path(source).expanduser() / "bundle"
    other = Bundle.from_pretrained(folder if folder.is_dir() else source)
    network, ldm = other.config.compressor, other.config.ldm
    if ldm is None or ldm.part("vae") is None or network.latent_channels != latent_channels:
        raise SlimError(
            f"{source}: its compressor codes latents of {network.latent_channels} channels of {other.config.name}, not of this "
            "model; train one with `slim train all -c hub-lora`"
        )
    settings: dict[str, Any] = {"compressor": network, "training": other.config.training}
    names = ["compressor", "prior"]
    own, its = (model.part("vae") if model else None for model in (bundle.config.ldm, ldm))
    if "guide" in other.stored and own and its and own.sha256 == its.sha256:
        names.append("guide")
    if "lora" in other.stored and ldm == bundle.config.ldm:
        names.append("lora")
        settings["enhancer"] = other.config.enhancer
    return changed(bundle, {name: other.stored[name] for name in names}, other.vocabulary, **settings)


def with_guide(bundle: Bundle, pictures: Sequence[NDArray[np.uint8]]) -> Bundle:
    """A bundle whose tagger can guide: the encoder by a linear map from latents to pixels, the decoder by patterns of pixels.

    The map takes a coded position, a patch of latents: of single latents it knows less of their pixels. It is fitted to
    ``pictures`` [H, W, 3]. The patterns are the KLT of photos, that of slim-tiny's autoencoder; what files lose of them is
    measured. Of our own latent model, or where a guide is there, the bundle as it is.
    """
    config = bundle.config
    if config.ldm is None or "guide" in bundle.stored:
        return bundle
    codec, levels = Codec(bundle), config.compressor.prior.levels
    patch, cell = config.compressor.patch, config.cell
    qualities = np.linspace(1, 100, levels).round().astype(int).tolist()
    basis = patterns(cell)
    # where patches are small, patterns are nearly those of others
    side, inverse = math.isqrt(len(basis) // 3), np.linalg.pinv(basis, rcond=1e-2)
    rows: list[NDArray[Any]] = []
    pixels: list[NDArray[Any]] = []
    losses = []
    for number, picture in enumerate(pictures):
        height, width = (length // cell * cell for length in picture.shape[:2])
        picture = picture[:height, :width]
        latents, rough = decompressed(codec, picture, qualities if number < MEASURED else ())
        image = picture.transpose(2, 0, 1) / np.float32(127.5) - 1
        rows.append(patches(latents, patch))
        pixels.append(patches(image, cell))
        if rough:
            decoded = (codec.decoder.pixels(one[None])[0] / np.float32(127.5) - 1 for one in rough)
            losses.append([np.square(patches(one - image, side) @ inverse.T).mean(0) for one in decoded])
    x, y = np.concatenate(rows), np.concatenate(pixels)
    # a little of ridge regression: an untrained compressor has few photos
    square = (known := np.pad(x, ((0, 0), (0, 1)), constant_values=1).astype(np.float64)).T @ known
    ridge = RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    solution = np.linalg.solve(square + ridge, known.T @ y).astype(np.float32)
    error = np.square(x @ solution[:-1] + solution[-1] - y).mean()
    logger.info("linear map of latents to pixels: %.1f dB", 10 * np.log10(4 / max(error, 1e-9)))
    tables = {
        "synthesis": solution[:-1].T.astype(np.float32),
        "basis": basis,
        "error_scale": np.sqrt(np.mean(losses, 0)).astype(np.float32),
    }
    return changed(bundle, {"guide": tables})


def patterns(cell: int) -> NDArray[np.float32]:
    """Patterns of pixels [3 * P * P, C] of photos, P dividing ``cell``: the KLT synthesis of slim-tiny's autoencoder."""
    klt = Bundle.from_pretrained().linear_path
    assert klt is not None
    return at_side(klt, math.gcd(math.isqrt(len(klt) // 3), cell))


def patches(array: NDArray[Any], side: int) -> NDArray[Any]:
    """``patch_rows`` of an array [C, H, W]."""
    return patch_rows(torch.from_numpy(array)[None], side).numpy()


def decompressed(
    codec: Codec, picture: NDArray[np.uint8], qualities: Iterable[int]
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """The latent [C, h, w] of a picture [H, W, 3], and what the compressor leaves of it at qualities."""
    (latent,) = codec.encoder.latents([picture])
    interest = codec.encoder.interest(picture, "auto")
    coded = ((codec.encoder.quantise(latent, quality, interest), quality) for quality in qualities)
    return latent[0], [codec.decoder.synthesise(symbols, quality)[0] for symbols, quality in coded]


def measured_strength(bundle: Bundle, pictures: Iterable[NDArray[np.uint8]]) -> tuple[float, float]:
    """The shares of the model's schedule whose noise is as large as what the compressor loses of pictures [H, W, 3]."""
    codec, errors = Codec(bundle), []
    for picture in pictures:
        latents, rough = decompressed(codec, picture, (1, 100))
        errors.append([float(np.square(one - latents).mean()) for one in rough])
    low, high = (float(error) ** 0.5 for error in np.mean(errors, 0))
    return fitting_strength((low, high), load_scheduler(bundle.pretrained_part("scheduler")))


def with_transform_code(
    bundle: Bundle, latent_channels: int, pictures: Sequence[NDArray[np.uint8]]
) -> Bundle:
    """A bundle with an untrained compressor: patches of 2x2 latents become one position, coded by a KLT with static tables."""
    channels, levels = 4 * latent_channels, 8
    prior = PriorConfig(channels, hyper_channels=24, width=64, head_width=128, levels=levels)
    network = CompressorConfig(latent_channels, 2, 96, 1, 2, 48, prior)
    autoencoder = bundle.latent_model.autoencoder
    assert isinstance(autoencoder, PretrainedAutoencoder)
    with torch.random.fork_rng(devices=[]):
        # the same model gives the same bundle
        torch.manual_seed(0)
        model = CompressionModel(Compressor(network), autoencoder).to(bundle.parts.device)
    low, high = CompressorRecipe.lambdas
    lambdas = low * (high / low) ** torch.linspace(0, 1, levels, device=bundle.parts.device)
    batch = scaled([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures])
    start_as_transform(model, autoencoder, batch.to(bundle.parts.device), lambdas, predicted=0.7)
    with torch.no_grad():
        # branches that have learnt nothing say nothing, and neither does the prior: what is left is a static code
        for branch in (model.compressor.analysis, model.compressor.synthesis):
            branch.leave.weight.zero_()
        model.compressor.log_hyper_gain.fill_(-20.0)
        model.hyper_scale.fill_(-12 / 32)
        layers: Any = model.prior.layers
        for name in ("anchor_mean", "anchor_scale", "rest_mean", "rest_scale"):
            layers[name].weight.zero_()
    model.cpu()
    return with_fitted_tables(changed(bundle, latent_codec_parts(model), compressor=network), pictures)


def with_fitted_tables(bundle: Bundle, pictures: Iterable[NDArray[np.uint8]]) -> Bundle:
    """A bundle whose Gaussian tables are fitted to the symbols of pictures [H, W, 3] at all qualities, where any were seen."""
    codec = Codec(bundle)
    tables = codec.coder.tables
    counts = np.zeros(len(tables.frequencies), np.int64)
    for picture in pictures:
        for coded in codec.quantise_each(picture, FITTED_QUALITIES, effort=0):
            for part in coded.passes:
                counts += tables.count(part.symbols, part.indices)
    fitted = SymbolTables.from_counts(TABLE_SCALES, counts)
    return changed(bundle, {"prior": bundle.stored["prior"] | fitted.tensors()})


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
