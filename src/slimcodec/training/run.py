"""Runs the stages of a recipe in its run folder: each reads what the ones before wrote."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from slimcodec.config import to_plain
from slimcodec.data.mobilenet import start_from_classifier
from slimcodec.entropy.caption import tag_phrase
from slimcodec.errors import SlimError
from slimcodec.files import atomic_write
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.bundle import Bundle
from slimcodec.models.captioner import Tagger
from slimcodec.models.compressor import Compressor
from slimcodec.models.enhancer import Enhancer, EnhancerConfig, small_unet_config
from slimcodec.models.native import CaptionEncoder, small_text_encoder
from slimcodec.models.pretrained.autoencoder import Autoencoder, PretrainedAutoencoder
from slimcodec.training.card import card_lines, data_card
from slimcodec.training.compression_model import CompressionModel
from slimcodec.training.data import LabelledViews, Photos, wanted
from slimcodec.training.export import Made
from slimcodec.training.history import history, revision
from slimcodec.training.hub import open_model, pretrained_bundle
from slimcodec.training.loop import Optimisation, Stage, restore, train
from slimcodec.training.lora import add_lora, merge_lora
from slimcodec.training.losses import FeatureLoss, Features, Fidelity
from slimcodec.training.materials import Answer, Materials
from slimcodec.training.own import own_bundle
from slimcodec.training.recipe import STAGES, Recipe
from slimcodec.training.stages import (
    AutoencoderStage,
    CaptionerStage,
    CompressorStage,
    DiffusionStage,
    EnhanceStage,
    PretrainedEnhanceStage,
)
from slimcodec.training.stages.compressor import RateFidelity
from slimcodec.version import __version__

logger = logging.getLogger(__name__)

#: photos to whose symbols the tables are fitted
FITTED_PHOTOS = 120


class Run:
    """A recipe, its run folder, and the parts that its stages share."""

    def __init__(
        self, recipe: Recipe, resume: bool = False, source: str = "RECIPE", settings: tuple[str, ...] = ()
    ) -> None:
        """``source`` and ``settings``: the recipe's name and the ``key=value`` changes that made it, for the record."""
        recipe.check()
        self.recipe, self.resume, self.source, self.settings = recipe, resume, source, settings
        self.folder = Path(recipe.out)
        self.accelerator = Accelerator(mixed_precision=recipe.precision, cpu=recipe.device == "cpu")
        if (
            "MASTER_PORT" in os.environ
            and "WORLD_SIZE" not in os.environ
            and self.accelerator.num_processes == 1
        ):
            logger.warning(
                "one process is running: `accelerate launch --cpu` starts several through MPI only; see docs/training.md"
            )
        self.materials = Materials(recipe, self.folder, self.accelerator)
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / "recipe.json", json.dumps(to_plain(recipe), indent=2).encode())
        self.accelerator.wait_for_everyone()

    # ---- stages ------------------------------------------------------------------------------------------------

    def autoencoder(self) -> None:
        """The latent space."""
        if self._skipped("autoencoder", "the latent space"):
            return
        recipe = self.recipe.autoencoder
        self._begin(recipe.optimisation)
        stage = AutoencoderStage(
            PatchAutoencoder(recipe.network),
            self.materials.crops(recipe.optimisation),
            self._fidelity(1.0, recipe.features),
        )
        stage.init_linear()
        self._train(stage, recipe.optimisation)

    def diffusion(self) -> None:
        """A text-conditioned UNet on the latent space."""
        if self._skipped("diffusion", "the UNet"):
            return
        recipe = self.recipe.diffusion
        self._begin(recipe.optimisation)
        stage = DiffusionStage(
            self._load_own_autoencoder(),
            Enhancer.build(self._enhancer_config),
            self._text_encoder(),
            self.materials.crops(recipe.optimisation, "caption"),
            caption_dropout=recipe.caption_dropout,
        )
        self._train(stage, recipe.optimisation)

    def compressor(self) -> None:
        """The latent compressor and its prior: stage 1 of SLIM."""
        recipe = self.recipe.compressor
        self._begin(recipe.optimisation)
        stage = CompressorStage(
            self._load_autoencoder(),
            Compressor(recipe.network),
            self.materials.crops(recipe.optimisation, "mask"),
            self._objective(),
            train_encoder=recipe.train_encoder,
            train_decoder=recipe.train_decoder,
        )
        self._train(stage, recipe.optimisation)

    def captioner(self) -> None:
        """The tagger."""
        if self.recipe.ldm.source and self.recipe.ldm.captioner:
            logger.info("captioner: skipped, that of %s is taken", self.recipe.ldm.captioner)
            return
        recipe = self.recipe.captioner
        self._begin(recipe.optimisation)
        tagger = self._tagger()
        teachers = self.materials.teachers
        if recipe.start_from_weights:
            if teachers:
                start_from_classifier(tagger, teachers[0])
            else:
                self._start_from_embedded(tagger)
        watching = teachers if recipe.teachers_see_views else []
        # opinions are dear: they are asked for whole photos' answers, or for masks that the tagger learns
        wanted: list[Answer] = [] if watching else ["logits"]
        if tagger.config.roi:
            wanted.append("mask")
        views = LabelledViews(
            self.materials.photos(recipe.optimisation, *wanted),
            self.materials.vocabulary,
            self.materials.thumbnails,
            size=watching[0].side if watching else tagger.config.side,
            batch=recipe.optimisation.batch,
            seed=recipe.optimisation.seed,
            thumbnail_share=recipe.thumbnail_share,
            smallest_area=recipe.smallest_area,
            watched=bool(watching),
        )
        stage = CaptionerStage(
            tagger, views, self.materials.vocabulary, watching, train_body=recipe.train_body
        )
        self._train(stage, recipe.optimisation)

    def enhance(self) -> None:
        """The diffusion enhancer: stage 2 of SLIM."""
        recipe = self.recipe.enhance
        self._begin(recipe.optimisation)
        autoencoder = self._load_autoencoder()
        codec = self._load_codec(autoencoder, {})
        options: dict[str, Any] = {
            "objective": self._objective(warm=True) if recipe.rate else None,
            "caption_dropout": recipe.caption_dropout,
            "denoising_weight": recipe.denoising,
            "fidelity_weight": recipe.fidelity,
            "rate_weight": recipe.rate,
        }
        crops = self.materials.crops(recipe.optimisation, "mask", "caption")
        fidelity = self._fidelity(recipe.background, recipe.features)
        if self.pretrained is not None:
            denoiser: Any = self.pretrained.latent_model.enhancer
            prompts: Any = self.pretrained.latent_model.text_encoder
            add_lora(denoiser, recipe.lora_rank, recipe.lora_targets)
            adapted = PretrainedEnhanceStage(
                cast(PretrainedAutoencoder, autoencoder),
                codec.to(self.accelerator.device),
                denoiser,
                prompts,
                crops,
                fidelity,
                **options,
            )
            adapted.measure_errors()
            self._train(adapted, recipe.optimisation)
            return
        enhancer, text = Enhancer.build(self._enhancer_config), self._text_encoder()
        if diffused := self._load_made("diffusion"):
            self._fill(enhancer, text, "diffusion", diffused)
        if recipe.lora_rank:
            add_lora(enhancer, recipe.lora_rank, recipe.lora_targets)
            text.requires_grad_(False)
        stage = EnhanceStage(
            autoencoder,
            codec,
            enhancer,
            text,
            crops,
            fidelity,
            **options,
        )
        stage.measure_errors()
        self._train(stage, recipe.optimisation)

    def bundle(self) -> Bundle:
        """Packs what the stages made into ``<run>/bundle`` and returns it; a part that was not trained is left out."""
        if self.pretrained is not None:
            made = self._made(self.pretrained.latent_model.autoencoder)
            bundle = pretrained_bundle(self.recipe, self.pretrained, made, self._some_photos(FITTED_PHOTOS))
        else:
            autoencoder = self._load_own_autoencoder()
            made = self._made(autoencoder)
            bundle = own_bundle(self.recipe, autoencoder, made, self._some_photos(FITTED_PHOTOS))
        if self.accelerator.is_main_process:
            bundle.save_pretrained(self.folder / "bundle")
            logger.info("%s: bundle %s", self.folder / "bundle", bundle.bundle_id)
        self.accelerator.wait_for_everyone()
        return bundle

    def _made(self, autoencoder: Autoencoder) -> Made:
        enhanced, tagger = self._load_made("enhance"), self._load_made("captioner")
        return Made(
            codec=self._load_codec(autoencoder, enhanced),
            vocabulary=self.materials.vocabulary,
            tagger=(self._tagger().config, tagger) if tagger else None,
            enhancer=self._load_enhancer(enhanced) if enhanced and self.pretrained is None else None,
            low_rank=part_of(enhanced, "lora") if self.pretrained is not None else {},
            training=self._history(),
        )

    @cached_property
    def pretrained(self) -> Bundle | None:
        """The pretrained model that the recipe names, as a bundle with no parts of ours; None where it names none."""
        return open_model(self.recipe, str(self.accelerator.device)) if self.recipe.ldm.source else None

    def _skipped(self, stage: str, what: str) -> bool:
        source = self.recipe.ldm.source
        if source:
            logger.info("%s: skipped, %s is that of %s", stage, what, source)
        return bool(source)

    # ---- shared parts ------------------------------------------------------------------------------------------

    def card(self) -> dict[str, Any]:
        """The data card, printed and kept in the run folder."""
        photos: Photos = self.materials.photos(self.recipe.compressor.optimisation)
        card = data_card(photos)
        for line in card_lines(card):
            logger.info(line)
        atomic_write(self.folder / "data_card.json", json.dumps(card, indent=2).encode())
        return card

    def finished(self, stage: str) -> bool:
        """Whether a stage's weights are there, made by as many steps as the recipe wants."""
        if not self._weights(stage).exists():
            return False
        steps: int = getattr(self.recipe, stage).optimisation.steps
        return self._about(stage).get("steps") == str(steps)

    def _begin(self, options: Optimisation) -> None:
        torch.manual_seed(options.seed)

    def _train(self, stage: Stage, options: Optimisation) -> None:
        about = {
            "stage": stage.name,
            "steps": str(options.steps),
            "slimcodec": __version__,
            "revision": revision() or "unknown",
            "processes": str(self.accelerator.num_processes),
        }
        weights = train(
            stage,
            self.folder,
            options,
            self.recipe.reports,
            self.accelerator,
            workers=self.recipe.data.workers,
            resume=self.resume,
            about=about,
        )
        if self.accelerator.is_main_process:
            tensors = {name: value.cpu().contiguous() for name, value in weights.items()}
            atomic_write(self._weights(stage.name), save(tensors, about))
        self.accelerator.wait_for_everyone()

    def _weights(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"

    def _about(self, stage: str) -> dict[str, str]:
        with safe_open(self._weights(stage), "pt") as file:
            return dict(file.metadata() or {})

    def _load(self, stage: str) -> dict[str, Tensor]:
        path = self._weights(stage)
        if not path.exists():
            raise SlimError(f"{path} is missing: run `slim train {stage}` with the same --set out= first")
        return load_file(path)

    def _load_made(self, stage: str) -> dict[str, Tensor]:
        """What a stage made, {} where it has not run."""
        return self._load(stage) if self._weights(stage).exists() else {}

    def _load_autoencoder(self) -> Autoencoder:
        if self.pretrained is not None:
            return self.pretrained.latent_model.autoencoder
        return self._load_own_autoencoder()

    def _load_own_autoencoder(self) -> PatchAutoencoder:
        autoencoder = PatchAutoencoder(self.recipe.autoencoder.network)
        restore(autoencoder, self._load("autoencoder"), self._weights("autoencoder"))
        return autoencoder.requires_grad_(False)

    def _load_codec(self, autoencoder: Autoencoder, enhanced: dict[str, Tensor]) -> CompressionModel:
        """The latent codec as stage ``compressor`` left it, or as ``enhance`` did whose state tuned it."""
        # its state holds our own autoencoder too, as tuned by the compressor stage
        codec = CompressionModel(Compressor(self.recipe.compressor.network), autoencoder)
        restore(codec, self._load("compressor"), self._weights("compressor"))
        if tuned := part_of(enhanced, "codec"):
            restore(codec, tuned, self._weights("enhance"))
        return codec.requires_grad_(False)

    def _load_enhancer(self, enhanced: dict[str, Tensor]) -> tuple[Enhancer, CaptionEncoder]:
        enhancer, text = Enhancer.build(self._enhancer_config), self._text_encoder()
        if self.recipe.enhance.lora_rank:
            add_lora(enhancer, self.recipe.enhance.lora_rank, self.recipe.enhance.lora_targets)
        self._fill(enhancer, text, "enhance", enhanced)
        if self.recipe.enhance.lora_rank:
            merge_lora(enhancer)
        return enhancer, text

    def _fill(self, enhancer: Enhancer, text: CaptionEncoder, stage: str, state: dict[str, Tensor]) -> None:
        """Loads a UNet and its text encoder from the state of stage ``diffusion`` or ``enhance``."""
        restore(enhancer, part_of(state, "enhancer"), self._weights(stage))
        restore(text, part_of(state, "text"), self._weights(stage))

    def _fidelity(self, background: float, features: Features) -> Fidelity:
        loss = None
        if features.weight and not self.materials.teachers:
            logger.warning(
                "teachers.models is not set: fidelity is squared error alone, which classifiers like less"
            )
        elif features.weight:
            teachers = self.recipe.teachers
            loss = FeatureLoss(
                self.materials.teachers, features.weights, features.logits, teachers.scales, teachers.shift
            )
        return Fidelity(background, loss, features)

    def _objective(self, warm: bool = False) -> RateFidelity:
        recipe = self.recipe.compressor
        features = replace(recipe.features, start=0.0) if warm else recipe.features
        fidelity = self._fidelity(recipe.background, features)
        return RateFidelity(recipe.lambdas, fidelity, 0.0 if warm else recipe.mixed_start)

    def _some_photos(self, count: int) -> list[NDArray[np.uint8]]:
        """Different photos, of each source as many as the stages draw of it."""
        pool: Any = self.materials.photos(self.recipe.compressor.optimisation).pool(0)
        rng, shares = np.random.default_rng(0), self.materials.shares
        found: list[NDArray[np.uint8]] = []
        for row in rng.permutation(len(pool)).tolist():
            photo = pool[row]
            if photo is not None and wanted(photo, shares, rng):
                found.append(photo.pixels)
            if len(found) == count:
                break
        return found

    def _start_from_embedded(self, tagger: Tagger) -> None:
        embedded = Bundle.from_pretrained()
        if embedded.vocabulary != self.materials.vocabulary:
            raise SlimError(
                "the captioner cannot start from the embedded one, whose vocabulary is another: set teachers.models, or "
                "captioner.start_from_weights=false"
            )
        # where things are may still be to learn
        tagger.load_state_dict(embedded.captioners[0].state_dict(), strict=False)

    def _tagger(self) -> Tagger:
        return Tagger(replace(self.recipe.captioner.network, tags=len(self.materials.vocabulary)))

    @property
    def _enhancer_config(self) -> EnhancerConfig:
        channels = self.recipe.autoencoder.network.latent_channels
        return EnhancerConfig(
            latent_channels=channels,
            levels=self.recipe.compressor.network.prior.levels,
            unet=small_unet_config(channels, self.recipe.diffusion.unet),
            scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler"},
        )

    def _text_encoder(self) -> CaptionEncoder:
        phrases = [tag_phrase(tag) for tag in self.materials.vocabulary]
        return small_text_encoder(phrases, width=self.recipe.diffusion.unet.text_width)

    def _history(self) -> dict[str, Any]:
        stages = {stage: self._about(stage) for stage in STAGES if self._weights(stage).exists()}
        teachers = [teacher.sha256 for teacher in self.materials.teachers]
        # by their ids: where a bundle lay says nothing to others
        others = self.recipe.captioner.also if self.pretrained is None and "captioner" in stages else ()
        also = [f"BUNDLE-{Bundle.from_pretrained(other).bundle_id}" for other in others]
        return history(self.recipe, self.source, self.settings, stages, teachers, also)


def part_of(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of a stage's state that belong to one of its parts."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def stages(run: Run) -> dict[str, Callable[[], object]]:
    """The stages in the order in which they build on each other, and ``bundle`` that packs them."""
    return {name: getattr(run, name) for name in (*STAGES, "bundle")}
