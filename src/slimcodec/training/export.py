"""The bundle of a run: what its stages left, packed with tables that are fitted to photos and a record of the training."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimcodec import __version__
from slimcodec.codec import Codec
from slimcodec.config import to_plain
from slimcodec.errors import SlimError
from slimcodec.models.bundle import Bundle, BundleConfig
from slimcodec.models.enhancer import EnhancerConfig
from slimcodec.training.batches import is_drawn
from slimcodec.training.compression_model import fitted_tables, latent_codec_parts
from slimcodec.training.create import MEASURED, Parts, measured_strength, with_captioner
from slimcodec.training.recipe import STAGES, Recipe
from slimcodec.training.run import Run, revision
from slimcodec.training.stages.captioner import build_tagger
from slimcodec.training.stages.compressor import latent_autoencoder, load_compression_model
from slimcodec.training.stages.enhance import load_enhancer

logger = logging.getLogger(__name__)

#: photos to whose symbols the tables are fitted
FITTED_PHOTOS = 120


def save_bundle(run: Run) -> Bundle:
    """Packs what the stages left into ``<run>/bundle`` and returns it; a part that was not trained is left out."""
    bundle = make_bundle(run)
    if run.accelerator.is_main_process:
        bundle.save_pretrained(run.folder / "bundle")
        logger.info("%s: bundle %s", run.folder / "bundle", bundle.bundle_id)
    run.accelerator.wait_for_everyone()
    return bundle


def make_bundle(run: Run) -> Bundle:
    """The bundle of a run; on a pretrained model without low-rank matrices, enhancement is zero-shot."""
    recipe, vocabulary, enhanced = run.recipe, run.data.vocabulary, run.has_weights("enhance")
    autoencoder = latent_autoencoder(run)
    model = load_compression_model(run, autoencoder, enhanced)
    parts: Parts = latent_codec_parts(model)
    text: tuple[Any, dict[str, Any]] | None = None
    if run.pretrained is None:
        device = "cpu"
        config = BundleConfig(
            name=recipe.name,
            autoencoder=recipe.autoencoder.network,
            compressor=recipe.compressor.network,
            steps=recipe.defaults.steps,
            guidance=recipe.defaults.guidance,
            machine_guidance=recipe.defaults.machine_guidance,
        )
        parts["autoencoder"] = dict(autoencoder.state_dict())
        if enhanced:
            enhancer, encoder = load_enhancer(run)
            parts |= {"enhancer": dict(enhancer.state_dict()), "text": dict(encoder.state_dict())}
            tokenizer = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
            text = (tokenizer, encoder.text_model.config.to_dict())
            config = replace(config, enhancer=enhancer.config)
    else:
        device = str(run.pretrained.device)
        config = replace(run.pretrained.config, compressor=recipe.compressor.network)
    config = replace(config, training=run_record(run))
    # before tables are fitted: the captioner tells the compressor where to look
    if run.has_weights("captioner"):
        config = replace(config, captioners=(build_tagger(run).config,))
        parts["captioner-0"] = run.load("captioner")
        if run.pretrained is None:
            config, parts = with_more_captioners(config, parts, vocabulary, recipe.captioner.also)
    elif run.pretrained is not None and recipe.ldm.captioner:
        config, parts, vocabulary = with_captioner(config, parts, vocabulary, recipe.ldm.captioner)
    photos = some_photos(run, FITTED_PHOTOS)
    draft = Codec(Bundle(config, parts, vocabulary, text, device=device))
    parts |= latent_codec_parts(model, fitted_tables(draft, photos))
    if run.pretrained is not None:
        unet = config.enhancer or EnhancerConfig()
        if low_rank := run.load("enhance", "lora") if enhanced else {}:
            low, high = low_rank.pop("strength").tolist()
            # names of parameters hold no dots, names of tensors in a bundle do
            parts["lora"] = {name.replace("/", "."): value for name, value in low_rank.items()}
            unet = replace(unet, strength=(low, high))
        else:
            strength = recipe.ldm.strength
            if max(strength) <= 0:
                draft = Codec(Bundle(config, parts, vocabulary, device=device))
                strength = measured_strength(draft, photos[:MEASURED])
            unet = replace(unet, mode="noise", noise=1.0, strength=strength)
        config = replace(config, enhancer=unet)
    return Bundle(config, parts, vocabulary, text)


def with_more_captioners(
    config: BundleConfig, parts: Parts, vocabulary: tuple[str, ...], sources: Sequence[str]
) -> tuple[BundleConfig, Parts]:
    """Configuration and parts with the first captioners of other bundles, which guide beside the run's own."""
    for number, source in enumerate(sources, 1):
        other = Bundle.from_pretrained(source)
        if other.vocabulary != vocabulary or not other.config.captioners:
            raise SlimError(f"captioner.also: {source} has no captioner of the same vocabulary")
        config = replace(config, captioners=(*config.captioners, other.config.captioners[0]))
        parts = parts | {f"captioner-{number}": other.stored["captioner-0"]}
    return config, parts


def some_photos(run: Run, count: int) -> list[NDArray[np.uint8]]:
    """Different photos, of each source as many as the stages draw of it."""
    pool = run.data.photos("compressor").pool(0)
    rng = np.random.default_rng(0)
    photos: list[NDArray[np.uint8]] = []
    for row in rng.permutation(len(pool)).tolist():
        photo = pool[row]
        if photo is not None and is_drawn(photo, run.data.shares, rng):
            photos.append(photo.pixels)
        if len(photos) == count:
            break
    return photos


def run_record(run: Run) -> dict[str, Any]:
    """What made the bundle of a run, as ``training_record`` writes it."""
    stages = {stage: run.about(stage) for stage in STAGES if run.has_weights(stage)}
    teachers = [teacher.sha256 for teacher in run.data.teachers]
    # by their ids: where a bundle lay says nothing to others
    others = run.recipe.captioner.also if run.pretrained is None and "captioner" in stages else ()
    also = [f"BUNDLE-{Bundle.from_pretrained(other).bundle_id}" for other in others]
    return training_record(run.recipe, run.source, run.settings, stages, teachers, also)


def training_record(
    recipe: Recipe,
    source: str,
    settings: Sequence[str],
    stages: dict[str, dict[str, str]],
    teachers: Sequence[str],
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """What made the bundle, and the commands that make it again.

    ``source`` and ``settings``: the recipe's name and the ``key=value`` changes that made it; ``stages``: what is noted beside
    each stage's weights; ``teachers``: their hashes; ``also``: ids of the bundles whose captioners are packed too.
    """
    # where the data lay on the machine that trained says nothing to others
    keys = ("out", "data", "data.photos", "data.thumbnails", "teachers.models", "captioner.also")
    private = tuple(f"{key}=" for key in keys)
    public_settings = [setting for setting in settings if not setting.startswith(private)]
    command = ["slim train all", f"--config {source}", "--set data=PHOTOS"]
    if recipe.data.thumbnails:
        command.append("--set data.thumbnails=THUMBNAILS")
    if recipe.teachers.models:
        command.append("--set teachers.models=CLASSIFIERS")
    if also:
        command += ["--set", shlex.quote(f"captioner.also={json.dumps(list(also), separators=(',', ':'))}")]
    public = replace(recipe, data=replace(recipe.data, photos=(), thumbnails=()), out="")
    public = replace(public, teachers=replace(public.teachers, models=()))
    public = replace(public, captioner=replace(public.captioner, also=tuple(also)))
    commit = revision()
    return {
        "slimcodec": __version__,
        "revision": commit,
        "commands": [
            f"git checkout {commit or 'v' + __version__}",
            " ".join(command + [f"--set {shlex.quote(setting)}" for setting in public_settings]),
        ],
        "stages": stages,
        "teachers": list(teachers),
        "recipe": to_plain(public),
    }
