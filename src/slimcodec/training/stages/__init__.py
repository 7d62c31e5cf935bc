"""The training stages: what each trains, on what, and its loss. Formulae are in docs/training.md."""

from slimcodec.training.stages.autoencoder import AutoencoderStage
from slimcodec.training.stages.captioner import CaptionerStage
from slimcodec.training.stages.compressor import CompressorStage
from slimcodec.training.stages.diffusion import DiffusionStage
from slimcodec.training.stages.enhance import EnhanceStage
from slimcodec.training.stages.enhance_pretrained import PretrainedEnhanceStage

__all__ = [
    "AutoencoderStage",
    "CaptionerStage",
    "CompressorStage",
    "DiffusionStage",
    "EnhanceStage",
    "PretrainedEnhanceStage",
]
