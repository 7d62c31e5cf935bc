"""The training stages by name: each builds itself from a run. Formulae are in docs/training.md."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from slimcodec.models.captioner import Tagger
from slimcodec.training.loop import Stage
from slimcodec.training.run import Run
from slimcodec.training.stages.captioner import CaptionerStage, start_from_weights, tagger_config
from slimcodec.training.stages.compressor import CompressorStage, LatentStage
from slimcodec.training.stages.enhance import enhance_stage
from slimcodec.training.stages.latent_diffusion import AutoencoderStage, DiffusionStage

logger = logging.getLogger(__name__)

#: how each stage is built, and the earlier stages whose weights it reads
BUILDERS: dict[str, tuple[Callable[[Run], Stage[Any]], tuple[str, ...]]] = {
    "autoencoder": (AutoencoderStage, ()),
    "diffusion": (DiffusionStage, ("autoencoder",)),
    "latents": (LatentStage, ("autoencoder",)),
    "compressor": (CompressorStage, ("autoencoder", "latents")),
    "captioner": (CaptionerStage, ()),
    "enhance": (enhance_stage, ("autoencoder", "compressor", "diffusion")),
}


def check_stages(run: Run, names: Sequence[str]) -> None:
    """Says what stages will do without, and raises ``SlimError`` for what they cannot, before hours are spent on others."""
    recipe, data = run.recipe, run.data
    for name in names:
        if name in run.replaced:
            source = run.replaced[name]
            logger.info(
                "%s: not trained, %s", name, f"that of {source} is taken" if source else "there is none"
            )
    if "captioner" in names and "captioner" not in run.replaced:
        _ = data.thumbnails
        if recipe.captioner.start_from_weights:
            start_from_weights(Tagger(tagger_config(run)), run)
    elif "captioner" in names and not (recipe.ldm.source and recipe.ldm.captioner):
        logger.warning(
            "the photos have no label of the vocabulary and teachers.models is not set: no captioner can be trained"
        )
    if recipe.roi.source == "activation" and not recipe.teachers.models:
        logger.warning("teachers.models is not set: photos without annotation get no mask")
    if "bundle" in names and not recipe.ldm.source:
        _ = run.also


def train_stage(run: Run, name: str) -> None:
    """Trains a stage of a run, unless a pretrained model makes it needless, or a resumed run has it."""
    if name in run.replaced:
        logger.info("%s: skipped", name)
        return
    build, reads = BUILDERS[name]
    origin, state = run.origin(name, reads), None
    if run.resume:
        finished = run.is_finished(name)
        state = None if finished else run.checkpoint(name)
        run.check_origin(name, origin, state)
        if finished:
            logger.info("%s is finished", name)
            return
    torch.manual_seed(run.recipe.optimisation(name).seed)
    stage = build(run)
    run.write_records()
    run.train(stage, origin, state)


def check_origins(run: Run) -> None:
    """Raises ``SlimError`` where the recipe is not the one of the weights in the run folder; their data may be others."""
    for name, (_, reads) in BUILDERS.items():
        if run.has_weights(name):
            run.check_origin(name, run.origin(name, reads, shared=()))
