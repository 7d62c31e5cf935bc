"""What a bundle's config.json says: the sizes of its networks, and what is done where the user says nothing. No torch.

And which of it a bundle's id depends on: everything that decoding needs, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimcodec.config import to_plain
from slimcodec.entropy.caption import tag_phrase
from slimcodec.models.pretrained.references import PartReference

EMBEDDED = "slim-tiny"
#: settings that are written only where they are set: bundles of older releases are without them
OPTIONAL = ("ldm", "caption_model")
#: parts of the networks that only the encoder runs: files do not depend on them
ENCODER_ONLY = {
    "autoencoder": ("encoder.", "analysis"),
    "compressor": ("analysis", "enter.", "log_gain", "hyper_analysis.", "log_hyper_gain"),
    "captioner-0": ("roi_",),
}
#: settings that do not change what a file means: those of the encoder, and defaults that a user may override
NOT_IN_ID = (
    "name",
    "training",
    "steps",
    "guidance",
    "machine_guidance",
    "text_scale",
    "autoencoder.encoder_width",
    "autoencoder.encoder_blocks",
    "compressor.analysis_blocks",
    "compressor.hyper_width",
    "captioners.threshold",
    "captioners.roi",
    "captioners.dropout",
    # where a pretrained part comes from: what it is, its hash says
    "caption_model",
    *(f"ldm.parts.{entry.name}" for entry in fields(PartReference) if entry.name not in ("name", "sha256")),
)
#: pixels a side of a latent position of our autoencoder
PATCH = 16
#: positions that a residual block looks to each side
BLOCK_RADIUS = 2
#: the gate of the analysis starts near open, where a sigmoid still learns, and lets ``OPEN`` through
GATE = 3.0
OPEN = 1 / (1 + math.exp(-GATE))
#: side of a hyper-latent position in latent positions
HYPER_STRIDE = 4
#: fractional bits of the prior's means
MEAN_BITS = 4
#: symbol tables, one for every scale index
SCALES = 64
#: fractional bits of the activations of an exact layer
ACTIVATION_BITS = 8
#: anchors around a position of the second pass
CONTEXT = 12


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of a ``PatchAutoencoder``: latent channels, then width and number of blocks at 1/8 and 1/16, each way."""

    latent_channels: int = 128
    encoder_width: tuple[int, int] = (96, 192)
    encoder_blocks: tuple[int, int] = (1, 1)
    decoder_width: tuple[int, int] = (128, 192)
    decoder_blocks: tuple[int, int] = (3, 2)

    @property
    def encoder_radius(self) -> int:
        """Latent positions that an encoded value looks to each side, rounded up."""
        return 2 * self.encoder_blocks[1] + self.encoder_blocks[0]

    @property
    def decoder_radius(self) -> int:
        """Latent positions that a decoded pixel looks to each side, rounded up."""
        return 2 * self.decoder_blocks[1] + self.decoder_blocks[0]


@dataclass(frozen=True)
class LayerConfig:
    """Sizes of a layer of the prior; ``in_bits`` and ``out_bits``: fractional bits of the integers that it reads and gives."""

    inputs: int
    outputs: int
    levels: int = 1
    relu: bool = True
    in_bits: int = ACTIVATION_BITS
    out_bits: int = ACTIVATION_BITS


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of a prior; ``levels`` is the number of trained quality levels."""

    channels: int = 128
    hyper_channels: int = 48
    width: int = 96
    head_width: int = 192
    levels: int = 8

    def layers(self) -> dict[str, LayerConfig]:
        """The layers by name."""
        channels, width, head, levels = self.channels, self.width, self.head_width, self.levels
        layers = {
            "hyper_in": LayerConfig(self.hyper_channels, width, levels, in_bits=0),
            "hyper_up1": LayerConfig(9 * width, 4 * width),
            "hyper_up2": LayerConfig(9 * width, 4 * width),
            "context": LayerConfig(CONTEXT * channels, width, in_bits=MEAN_BITS),
        }
        for name, inputs in (("anchor", width), ("rest", 2 * width)):
            layers[f"{name}_1"] = LayerConfig(inputs, head, levels)
            layers[f"{name}_2"] = LayerConfig(head, head)
            layers[f"{name}_mean"] = LayerConfig(head, channels, levels, False, out_bits=MEAN_BITS)
            layers[f"{name}_scale"] = LayerConfig(head, channels, levels, False, out_bits=0)
        return layers


@dataclass(frozen=True)
class CompressorConfig:
    """Sizes of a ``Compressor``.

    ``patch`` latent positions a side become one coded position (1 for slim-tiny, 2 for latents at 1/8 resolution).
    ``step_octaves``: by how many octaves the step of quantisation is larger outside the region of interest; 0 for one step
    everywhere and no map.
    """

    latent_channels: int = 128
    patch: int = 1
    width: int = 192
    analysis_blocks: int = 1
    synthesis_blocks: int = 2
    hyper_width: int = 96
    prior: PriorConfig = field(default_factory=PriorConfig)
    step_octaves: float = 0.0


@dataclass(frozen=True)
class CaptionerConfig:
    """What a ``Tagger`` sees and names: pictures squeezed to ``side`` pixels, a number of tags; ``roi``: and where that is."""

    tags: int = 1116
    side: int = 128
    dropout: float = 0.2
    #: below this probability no tag is named
    threshold: float = 0.2
    roi: bool = False
    network: str = "mobilenet-v2"

    def caption(self, logits: NDArray[np.float32], vocabulary: Sequence[str]) -> str | None:
        """The caption of a picture by its logits [tags], "a photo of a {tag}", or None where no tag is likely enough."""
        likely = np.exp(logits - logits.max())
        tag = int(likely.argmax())
        return tag_phrase(vocabulary[tag]) if likely[tag] / likely.sum() >= self.threshold else None


@dataclass(frozen=True)
class EnhancerConfig:
    """How the UNet is used; its own configuration travels with its weights.

    ``mode``: "bridge" with a UNet of ours, "noise" or "trained" with a pretrained one. ``noise``: how much joins the decompressed
    latent at the start. ``strength`` (pretrained UNets): share of the scheduler's steps that are run, at quality 1 and at
    quality 100.
    """

    mode: str = "bridge"
    latent_channels: int = 128
    levels: int = 8
    noise: float = 0.5
    strength: tuple[float, float] = (0.5, 0.1)
    unet: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LdmConfig:
    """The pretrained latent diffusion model that a bundle stands on."""

    parts: tuple[PartReference, ...]
    #: pixels a side of a latent position
    stride: int = 8
    #: whether no caption is a state of zeros (SDXL) or the encoded empty text
    zero_empty_caption: bool = False

    def part(self, name: str) -> PartReference | None:
        """The reference to a part, None where the model has none of that name."""
        return next((part for part in self.parts if part.name == name), None)


@dataclass(frozen=True)
class CaptionModelConfig:
    """A pretrained captioner that a bundle names."""

    part: PartReference
    #: what an image-to-text model is asked, or the words that it goes on with
    prompt: str = ""
    #: below this probability a zero-shot tagger names nothing
    threshold: float = 0.2


@dataclass(frozen=True)
class BundleConfig:
    """Configuration of every part, and what made the bundle."""

    name: str = EMBEDDED
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    captioners: tuple[CaptionerConfig, ...] = ()
    enhancer: EnhancerConfig | None = None
    #: denoising steps and strength of caption guidance where the user says nothing
    steps: int = 1
    guidance: float = 0.0
    #: strength of caption guidance in the preset "machine"
    machine_guidance: float = 0.0
    #: strength of classifier-free guidance by the caption, 1 = off
    text_scale: float = 1.0
    #: the recipe, data and revision that made the weights; not part of the id
    training: dict[str, Any] = field(default_factory=dict)
    #: the pretrained model whose latent space, UNet and text encoder stand in for ours
    ldm: LdmConfig | None = None
    #: a pretrained model that names captions, in place of the captioners
    caption_model: CaptionModelConfig | None = None

    @property
    def stride(self) -> int:
        """Pixels a side of a latent position."""
        return self.ldm.stride if self.ldm else PATCH

    @property
    def cell(self) -> int:
        """Pixels a side of a coded position."""
        return self.stride * self.compressor.patch

    def described(self) -> dict[str, Any]:
        """The configuration as it is written to a file."""
        plain = to_plain(self)
        left_out = {name for name in OPTIONAL if plain[name] is None}
        left_out |= {"autoencoder"} if self.ldm else set()
        return {name: value for name, value in plain.items() if name not in left_out}
