"""The bundle of a run: what its stages left, packed with tables that are fitted to photos and a record of the training."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimcodec import __version__
from slimcodec.config import to_plain
from slimcodec.files import is_hub_id
from slimcodec.models.bundle import Bundle
from slimcodec.models.config import BundleConfig
from slimcodec.models.graphs import FOLDER, export
from slimcodec.models.pretrained.networks import Autoencoder
from slimcodec.training import STAGES
from slimcodec.training.batches import is_drawn, shuffled
from slimcodec.training.compression_model import latent_codec_parts
from slimcodec.training.create import (
    MEASURED,
    changed,
    measured_strength,
    with_captioner,
    with_fitted_tables,
    with_guide,
)
from slimcodec.training.run import CHANGED, Run, revision
from slimcodec.training.stages import check_origins
from slimcodec.training.stages.captioner import tagger_config
from slimcodec.training.stages.compressor import latent_autoencoder, load_compression_model
from slimcodec.training.stages.enhance import load_enhancer

logger = logging.getLogger(__name__)

#: photos to whose symbols the tables are fitted
FITTED_PHOTOS = 120
#: photos to which the linear map of a pretrained latent space is fitted
GUIDE_PHOTOS = 40


def save_bundle(run: Run) -> None:
    """Packs what the stages left into ``<run>/bundle``; a part that was not trained is left out.

    A bundle of our own networks holds their ONNX graphs too.
    """
    check_origins(run)
    run.write_records()
    bundle = make_bundle(run)
    if run.accelerator.is_main_process:
        if bundle.config.ldm is None:
            # first: a folder with a configuration is whole, and runs without torch
            export(bundle, run.folder / "bundle" / FOLDER, weights=False)
        bundle.save_pretrained(run.folder / "bundle")
        logger.info("%s: bundle %s", run.folder / "bundle", bundle.bundle_id)
    run.accelerator.wait_for_everyone()


def make_bundle(run: Run) -> Bundle:
    """The bundle of a run; on a pretrained model without low-rank matrices, enhancement is zero-shot."""
    recipe, pretrained, enhanced = run.recipe, run.pretrained, run.has_weights("enhance")
    autoencoder = latent_autoencoder(run)
    model = load_compression_model(run, autoencoder, enhanced)
    if pretrained is None:
        bundle = own_bundle(run, autoencoder, enhanced)
    else:
        bundle = changed(pretrained, vocabulary=run.data.vocabulary)
    bundle = changed(
        bundle, latent_codec_parts(model), compressor=recipe.compressor.network, training=training_record(run)
    )
    # before tables are fitted: the captioner tells the compressor where to look
    if run.has_weights("captioner"):
        parts = {"captioner-0": run.load("captioner")}
        bundle = changed(bundle, parts, captioners=(tagger_config(run),))
        if pretrained is None:
            bundle = with_more_captioners(bundle, run.also)
    elif source := run.replaced.get("captioner"):
        bundle = with_captioner(bundle, source)
    photos = some_photos(run, FITTED_PHOTOS)
    bundle = with_guide(with_fitted_tables(bundle, photos), photos[:GUIDE_PHOTOS])
    enhancer = bundle.config.enhancer
    if pretrained is None or enhancer is None:
        return bundle
    if low_rank := run.load("enhance", "lora") if enhanced else {}:
        low, high = low_rank.pop("strength").tolist()
        # names of parameters hold no dots, names of tensors in a bundle do
        lora = {name.replace("/", "."): value for name, value in low_rank.items()}
        return changed(bundle, {"lora": lora}, enhancer=replace(enhancer, strength=(low, high)))
    strength = recipe.ldm.strength
    if max(strength) <= 0:
        strength = measured_strength(bundle, photos[:MEASURED])
    return changed(bundle, enhancer=replace(enhancer, mode="noise", noise=1.0, strength=strength))


def own_bundle(run: Run, autoencoder: Autoencoder, enhanced: bool) -> Bundle:
    """A bundle of our own autoencoder, and of the UNet and text encoder where stage ``enhance`` has run."""
    recipe, parts = run.recipe, {"autoencoder": dict(autoencoder.state_dict())}
    config = BundleConfig(recipe.name, recipe.autoencoder.network, **asdict(recipe.defaults))
    if not enhanced:
        return Bundle(config, parts, run.data.vocabulary)
    enhancer, encoder = load_enhancer(run)
    parts |= {"enhancer": dict(enhancer.state_dict()), "text": dict(encoder.state_dict())}
    tokenizer = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    text = (tokenizer, encoder.text_model.config.to_dict())
    return Bundle(replace(config, enhancer=enhancer.config), parts, run.data.vocabulary, text)


def with_more_captioners(bundle: Bundle, others: Sequence[Bundle]) -> Bundle:
    """A bundle with the first captioners of other bundles, which guide beside its own."""
    for number, other in enumerate(others, 1):
        parts = {f"captioner-{number}": other.stored["captioner-0"]}
        captioners = (*bundle.config.captioners, other.config.captioners[0])
        bundle = changed(bundle, parts, captioners=captioners)
    return bundle


def some_photos(run: Run, count: int) -> list[NDArray[np.uint8]]:
    """Different photos, of each source as many as the stages draw of it."""
    rng = np.random.default_rng(0)
    photos = shuffled(run.data.photos("compressor"), rng)
    drawn = (p.pixels for p in photos if p is not None and is_drawn(p, run.data.shares, rng))
    return list(islice(drawn, count))


def training_record(run: Run) -> dict[str, Any]:
    """What made the bundle of a run, and the commands that make it again."""
    recipe = run.recipe
    stages = {stage: run.about(stage) for stage in STAGES if run.has_weights(stage)}
    for about in stages.values():
        about.pop("origin", None)
    # by their ids: where a bundle, or the data, lay on the machine that trained says nothing to others
    others = run.also if run.pretrained is None and "captioner" in stages else ()
    also = [f"BUNDLE-{other.bundle_id}" for other in others]
    keys = [
        "out",
        "data",
        "data.photos",
        "data.thumbnails",
        "data.vocabulary",
        "teachers.models",
        "captioner.also",
    ]
    local = bool(recipe.ldm.source) and not is_hub_id(recipe.ldm.source)
    if local:
        keys.append("ldm.source")
    private = tuple(f"{key}=" for key in keys)
    public_settings = [setting for setting in run.settings if not setting.startswith(private)]
    command = ["slim train all", f"--config {run.source}", "--set data=PHOTOS"]
    if recipe.data.thumbnails:
        command.append("--set data.thumbnails=THUMBNAILS")
    if recipe.data.vocabulary:
        command.append("--set data.vocabulary=VOCABULARY")
    if recipe.teachers.models:
        command.append("--set teachers.models=CLASSIFIERS")
    if local:
        command.append("--set ldm.source=MODEL")
    if also:
        command += ["--set", shlex.quote(f"captioner.also={json.dumps(also, separators=(',', ':'))}")]
    public = replace(
        recipe,
        out="",
        ldm=replace(recipe.ldm, source="MODEL") if local else recipe.ldm,
        data=replace(recipe.data, photos=(), thumbnails=(), vocabulary=Path(recipe.data.vocabulary).name),
        teachers=replace(recipe.teachers, models=()),
        captioner=replace(recipe.captioner, also=tuple(also)),
    )
    commit = revision()
    return {
        "slimcodec": __version__,
        "revision": commit,
        "commands": [
            f"git checkout {commit.removesuffix(CHANGED) if commit else 'v' + __version__}",
            " ".join(command + [f"--set {shlex.quote(setting)}" for setting in public_settings]),
        ],
        "stages": stages,
        "teachers": [teacher.sha256 for teacher in run.data.teachers],
        "recipe": to_plain(public),
    }
