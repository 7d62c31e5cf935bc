"""The training stages by name: each builds itself from a run, and says what it reads. Formulae are in docs/training.md."""

import logging

import torch

from slimcodec.training.run import Run
from slimcodec.training.stages.captioner import CaptionerStage
from slimcodec.training.stages.compressor import CompressorStage
from slimcodec.training.stages.enhance import EnhanceStage
from slimcodec.training.stages.latent_diffusion import AutoencoderStage, DiffusionStage

logger = logging.getLogger(__name__)

AnyStage = (
    type[AutoencoderStage]
    | type[DiffusionStage]
    | type[CompressorStage]
    | type[CaptionerStage]
    | type[EnhanceStage]
)
#: in the order in which they build on each other
STAGES: dict[str, AnyStage] = {
    "autoencoder": AutoencoderStage,
    "diffusion": DiffusionStage,
    "compressor": CompressorStage,
    "captioner": CaptionerStage,
    "enhance": EnhanceStage,
}


def train_stage(run: Run, name: str) -> None:
    """Trains a stage of a run, unless a pretrained model makes it needless."""
    if source := run.recipe.replaced.get(name):
        logger.info("%s: skipped, that of %s is taken", name, source)
        return
    for earlier in STAGES[name].reads_weights:
        if earlier not in run.recipe.replaced:
            run.require(earlier)
    torch.manual_seed(run.options(name).seed)
    run.train(STAGES[name].build(run))
