"""Recipes: TOML files that say everything about a training run but where the data is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimcodec.config import from_plain
from slimcodec.errors import SlimError
from slimcodec.models.autoencoder import AutoencoderConfig
from slimcodec.models.captioner import CaptionerConfig
from slimcodec.models.compressor import CompressorConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Data:
    """Where photos, labelled thumbnails, the tags and the frozen classifiers are (globs are allowed)."""

    photos: tuple[str, ...] = ()
    thumbnails: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    #: a text file of tags, a line each; the first ones in the order of the classifiers' classes
    vocabulary: str = ""


@dataclass(frozen=True)
class Optimisation:
    """Steps and rates that every stage has."""

    steps: int = 1000
    batch: int = 16
    crop: int = 128
    learning_rate: float = 7e-4
    warmup: int = 150
    ema_decay: float = 0.998
    seed: int = 0


@dataclass(frozen=True)
class Features:
    """Shallow features of frozen classifiers as a loss: weights by stride, from which share of the stage on, how much."""

    weights: tuple[float, ...] = (1.0, 1.0, 0.3)
    start: float = 0.5
    weight: float = 0.3
    #: part of the batch that the classifiers see; they cost as much as the codec
    share: float = 0.5


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Stage ``autoencoder``."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    features: Features = field(default_factory=Features)
    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)


@dataclass(frozen=True)
class CompressorRecipe:
    """Stage ``compressor``: see docs/training.md for the loss."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    features: Features = field(default_factory=Features)
    network: CompressorConfig = field(default_factory=CompressorConfig)
    #: weight of the mean squared error at quality 1 and at quality 100
    lambdas: tuple[float, float] = (6e-5, 2e-2)
    #: fidelity weight outside the region of interest
    background: float = 0.5
    #: use class-activation maps where a photo has no annotation
    activation_maps: bool = True
    #: share of the stage after which scales are trained on rounded symbols
    mixed_start: float = 0.4
    train_decoder: bool = True


@dataclass(frozen=True)
class CaptionerRecipe:
    """Stage ``captioner``; pictures have the tagger's side, whatever ``optimisation.crop`` says."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    network: CaptionerConfig = field(default_factory=CaptionerConfig)
    #: begin with the weights of the first teacher, which then must be a MobileNet-v2
    start_from_teacher: bool = True
    thumbnail_share: float = 0.15


@dataclass(frozen=True)
class EnhanceRecipe:
    """Stage ``enhance``."""

    optimisation: Optimisation = field(default_factory=Optimisation)
    background: float = 0.5
    caption_dropout: float = 0.15
    #: weight of the pictures' error after one step, relative to that of no step
    fidelity: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A whole training run; ``out`` is its folder."""

    name: str = "slim-tiny"
    out: str = "runs/slim-tiny"
    precision: str = "bf16"
    data: Data = field(default_factory=Data)
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    compressor: CompressorRecipe = field(default_factory=CompressorRecipe)
    captioner: CaptionerRecipe = field(default_factory=CaptionerRecipe)
    enhance: EnhanceRecipe = field(default_factory=EnhanceRecipe)


def load_recipe(source: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Reads a recipe by the name of a built-in one or by path, and applies settings ``a.b=value`` (TOML values or text)."""
    path = Path(source)
    if not path.suffix and not path.exists():
        path = RECIPES / f"{source}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        names = ", ".join(sorted(entry.stem for entry in RECIPES.glob("*.toml")))
        raise SlimError(f"{source}: no such recipe; built in are {names}, or give a .toml file") from error
    except (OSError, ValueError) as error:
        raise SlimError(f"{source}: cannot be read as TOML ({error})") from error
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found:
            raise SlimError(f"--set {setting}: write key=value, for example --set compressor.background=0.3")
        *parents, last = key.strip().split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise SlimError(f"--set {setting}: {parent} is a value, not a section")
        place[last] = _parse(text.strip())
    return from_plain(Recipe, values, str(source))


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text
