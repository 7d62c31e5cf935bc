"""A run: its recipe, its data, its folder with the weights of each stage, and the losses that stages share."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from slimcodec import __version__
from slimcodec.config import to_plain
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.entropy.caption import read_vocabulary
from slimcodec.errors import SlimError
from slimcodec.files import atomic_write, file_sha256
from slimcodec.models.bundle import Bundle
from slimcodec.models.config import EMBEDDED, BundleConfig, EnhancerConfig
from slimcodec.models.pretrained.pipeline import refer_ldm
from slimcodec.training.create import bundle_on
from slimcodec.training.data import TrainingData, data_card
from slimcodec.training.log import load_tensors
from slimcodec.training.loop import Stage, restore, train
from slimcodec.training.losses import Features, Fidelity, RateDistortion
from slimcodec.training.recipe import Recipe

logger = logging.getLogger(__name__)

#: what a revision ends with where the source tree was edited
CHANGED = "-changed"
#: sections of a recipe from which every stage learns
SHARED = ("data", "roi", "teachers", "ldm")


class Run:
    """A recipe, its data, and its folder with the weights of each stage."""

    def __init__(
        self, recipe: Recipe, resume: bool = False, source: str = "RECIPE", settings: tuple[str, ...] = ()
    ) -> None:
        """``source`` and ``settings``: the recipe's name and the ``key=value`` changes to it, for the record."""
        #: when training stops (``time.monotonic``), see ``loop.train``
        self.deadline = math.inf
        self.recipe, self.resume, self.source, self.settings = recipe, resume, source, settings
        self.folder = Path(recipe.out)
        self.accelerator = Accelerator(mixed_precision=recipe.precision, cpu=recipe.device == "cpu")
        alone = self.accelerator.num_processes == 1 and "WORLD_SIZE" not in os.environ
        if "MASTER_PORT" in os.environ and alone:
            logger.warning(
                "one process is running: `accelerate launch --cpu` starts several through MPI only; see docs/training.md"
            )
        self.data = TrainingData(recipe, self.folder, self.accelerator)

    @cached_property
    def card(self) -> dict[str, Any]:
        """What the run learns from, in numbers."""
        return data_card(self.data.photos("compressor"), self.data.available)

    def write_records(self) -> None:
        """Leaves the recipe and the data card in the run folder (made if missing): what follows is made by them."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in (("recipe", to_plain(self.recipe)), ("data_card", self.card)):
                atomic_write(self.folder / f"{name}.json", json.dumps(content, indent=2).encode())
        self.accelerator.wait_for_everyone()

    @cached_property
    def pretrained(self) -> Bundle | None:
        """The pretrained model that the recipe names, if any, as a bundle with no parts of ours.

        Raises ``SlimError`` where it is missing, or the recipe's compressor does not fit its latents.
        """
        ldm, network = self.recipe.ldm, self.recipe.compressor.network
        if not ldm.source:
            return None
        model, channels = refer_ldm(ldm.source, ldm.autoencoder, ldm.text_encoder)
        if network.latent_channels != channels or network.patch < 2:
            raise SlimError(
                f"compressor.network: latents of {ldm.source} have {channels} channels; set "
                f"latent_channels={channels}, patch=2 and prior.channels={4 * channels}"
            )
        config = BundleConfig(self.recipe.name, machine_guidance=self.recipe.defaults.machine_guidance)
        enhancer = EnhancerConfig("trained", channels, noise=ldm.noise, strength=ldm.strength)
        return bundle_on(model, config, enhancer, str(self.accelerator.device))

    @cached_property
    def replaced(self) -> dict[str, str]:
        """The stages that are not trained, with the model or bundle whose part is taken instead, "" for none.

        A captioner has nothing to learn from photos without labels: the embedded one is as good for the same vocabulary.
        """
        ldm = self.recipe.ldm
        replaced = dict.fromkeys(("autoencoder", "diffusion"), ldm.source) if ldm.source else {}
        if ldm.source and ldm.captioner:
            replaced["captioner"] = ldm.captioner
        if self.pretrained is not None and self.pretrained.config.enhancer is None:
            replaced["enhance"] = ""
        if "captioner" not in replaced and not self.data.labelled:
            same = self.data.vocabulary == read_vocabulary(EMBEDDED_BUNDLE / "vocabulary.txt")
            replaced["captioner"] = EMBEDDED if same else ""
        return replaced

    @cached_property
    def also(self) -> list[Bundle]:
        """The bundles of ``captioner.also``; ``SlimError`` for one without a captioner of the run's vocabulary."""
        bundles = [Bundle.from_pretrained(source) for source in self.recipe.captioner.also]
        for source, bundle in zip(self.recipe.captioner.also, bundles, strict=True):
            if bundle.vocabulary != self.data.vocabulary or not bundle.config.captioners:
                raise SlimError(f"captioner.also: {source} has no captioner of the same vocabulary")
        return bundles

    def fidelity(self, background: float, features: Features | None = None) -> Fidelity:
        """The fidelity loss, with the teachers' features if they have a weight; None: without."""
        if features is None or not features.weight:
            return Fidelity(background)
        teachers, recipe = self.data.teachers, self.recipe.teachers
        if not teachers:
            logger.warning(
                "teachers.models is not set: fidelity is squared error alone, which classifiers like less"
            )
        return Fidelity(background, features, teachers, recipe.scales, recipe.shift)

    def rate_distortion(self, warm: bool = False) -> RateDistortion:
        """The compressor's loss; ``warm``: as at the end of stage ``compressor``, from the first step on."""
        recipe = self.recipe.compressor
        features = replace(recipe.features, start=0.0) if warm else recipe.features
        fidelity = self.fidelity(recipe.background, features)
        return RateDistortion(recipe.lambdas, fidelity, 0.0 if warm else recipe.mixed_start)

    def train(self, stage: Stage[Any], origin: str, state: dict[str, Any] | None = None) -> None:
        """Trains a stage, from the checkpoint ``state`` on, and leaves its weights in the run folder."""
        options = self.recipe.optimisation(stage.name)
        about = {
            "origin": origin,
            "stage": stage.name,
            "steps": str(options.steps),
            "slimcodec": __version__,
            "revision": revision() or "unknown",
            "processes": str(self.accelerator.num_processes),
        }
        if state is not None:
            about |= earlier_revisions(state["about"], about["revision"], state["step"])
        weights = train(
            stage,
            self.folder,
            options,
            self.recipe.reports,
            self.accelerator,
            workers=self.recipe.data.workers,
            state=state,
            about=about,
            deadline=self.deadline,
        )
        if self.accelerator.is_main_process:
            tensors = {name: value.cpu().contiguous() for name, value in weights.items()}
            atomic_write(self.weights_path(stage.name), save(tensors, about))
        self.accelerator.wait_for_everyone()

    def weights_path(self, stage: str) -> Path:
        """The file of a stage's weights."""
        return self.folder / f"{stage}.safetensors"

    def has_weights(self, stage: str) -> bool:
        """Whether a stage has left its weights."""
        return self.weights_path(stage).exists()

    def about(self, stage: str) -> dict[str, str]:
        """What is noted beside a stage's weights."""
        with safe_open(self.weights_path(stage), "pt") as file:
            return dict(file.metadata() or {})

    def has_begun(self, stage: str) -> bool:
        """Whether a stage, or "bundle", has left anything that training it again would replace."""
        return (
            self.has_weights(stage) or any(self.folder.glob(f"{stage}.pt*")) or (self.folder / stage).is_dir()
        )

    def origin(self, stage: str, reads: Sequence[str], shared: Sequence[str] = SHARED) -> str:
        """What a stage's weights come from, JSON of short hashes: its settings, the data, and the weights that it ``reads``."""
        plain = to_plain(self.recipe)
        sections = {name: dict(plain[name]) for name in (*SHARED, stage)}
        # a stage goes on for more steps
        sections[stage]["optimisation"] = {**sections[stage]["optimisation"], "steps": 0}
        if "also" in sections[stage]:
            # other bundles' captioners, which are packed and not trained
            sections[stage]["also"] = ()
        # how data are read teaches nothing, nor where they lie
        sections["data"] |= dict.fromkeys(("streaming", "window", "memory", "workers"))
        for section, key in (("data", "photos"), ("data", "thumbnails"), ("teachers", "models")):
            sections[section][key] = [Path(name).name for name in sections[section][key]]
        contents = {name: json.dumps(sections[name], sort_keys=True).encode() for name in (*shared, stage)}
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        for earlier in filter(self.has_weights, reads):
            hashes[f"weights of {earlier}"] = file_sha256(self.weights_path(earlier))
        return json.dumps({name: digest[:12] for name, digest in hashes.items()})

    def is_finished(self, stage: str) -> bool:
        """Whether a stage's weights are there, from as many steps as the recipe says."""
        steps = str(self.recipe.optimisation(stage).steps)
        return self.has_weights(stage) and self.about(stage).get("steps") == steps

    def checkpoint(self, stage: str) -> dict[str, Any] | None:
        """The checkpoint from which a stage goes on, None where it has left none."""
        return load_tensors(self.folder / f"{stage}.pt")

    def check_origin(self, stage: str, origin: str, state: dict[str, Any] | None = None) -> None:
        """Raises ``SlimError`` where a stage's weights, or its checkpoint, come from something else than ``origin`` says."""
        path, about = self.folder / f"{stage}.pt", state["about"] if state else {}
        if self.has_weights(stage):
            path, about = self.weights_path(stage), self.about(stage)
        # those of earlier releases say nothing
        before, now = json.loads(about.get("origin", "{}")), json.loads(origin)
        if changed := sorted(name for name in before.keys() & now.keys() if before[name] != now[name]):
            raise SlimError(
                f"{path} was made with other settings ({', '.join(changed)}): give the settings that it was made with, "
                "train it again with --overwrite, or choose another folder with --set out="
            )

    def load(self, stage: str, part: str = "") -> dict[str, Tensor]:
        """A stage's weights, or those of a ``part`` of its model; ``SlimError`` where it has not run."""
        if not self.has_weights(stage):
            raise SlimError(
                f"{self.weights_path(stage)} is missing: run `slim train {stage}` with the same recipe and --set out= first"
            )
        weights, prefix = load_file(self.weights_path(stage)), f"{part}." if part else ""
        return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}

    def restore(self, module: nn.Module, stage: str, part: str = "") -> None:
        """Fills a module with a stage's weights, or with those of a ``part`` of its model."""
        restore(module, self.load(stage, part), self.weights_path(stage))


def earlier_revisions(before: dict[str, str], revision: str, step: int) -> dict[str, str]:
    """The entry ``earlier``, if other revisions of the program began the stage: "REVISION to step 2000, ..."."""
    earlier = [before["earlier"]] if "earlier" in before else []
    if before.get("revision", revision) != revision:
        earlier.append(f"{before['revision']} to step {step}")
    return {"earlier": ", ".join(earlier)} if earlier else {}


def revision() -> str | None:
    """The git revision of the source tree, "-changed" added where it was edited, or None in an installed package."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        edited = git("status", "--porcelain", "--untracked-files=no", "--", "..")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + (CHANGED if edited else "")
