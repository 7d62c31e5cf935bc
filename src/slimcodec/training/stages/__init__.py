"""The training stages by name: each builds itself from a run. Formulae are in docs/training.md."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from slimcodec.training.loop import Stage
from slimcodec.training.run import Run
from slimcodec.training.stages.captioner import CaptionerStage
from slimcodec.training.stages.compressor import CompressorStage
from slimcodec.training.stages.enhance import enhance_stage
from slimcodec.training.stages.latent_diffusion import AutoencoderStage, DiffusionStage

logger = logging.getLogger(__name__)

#: how each stage is built, and the earlier stages whose weights it reads, in the order in which they build on each other
STAGES: dict[str, tuple[Callable[[Run], Stage[Any]], tuple[str, ...]]] = {
    "autoencoder": (AutoencoderStage, ()),
    "diffusion": (DiffusionStage, ("autoencoder",)),
    "compressor": (CompressorStage.build, ("autoencoder",)),
    "captioner": (CaptionerStage.build, ()),
    # and those of stage diffusion, where it has run
    "enhance": (enhance_stage, ("autoencoder", "compressor")),
}


def train_stage(run: Run, name: str) -> None:
    """Trains a stage of a run, unless a pretrained model makes it needless."""
    if source := run.recipe.replaced.get(name):
        logger.info("%s: skipped, that of %s is taken", name, source)
        return
    build, reads = STAGES[name]
    for earlier in reads:
        if earlier not in run.recipe.replaced:
            run.require(earlier)
    torch.manual_seed(run.recipe.optimisation(name).seed)
    run.train(build(run))
