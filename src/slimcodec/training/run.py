"""Runs the stages of a recipe in its run folder: each reads what the ones before wrote."""

from __future__ import annotations

import glob
import json
import logging
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from slimcodec.codec import Codec
from slimcodec.config import to_plain
from slimcodec.entropy.caption import read_vocabulary, tag_phrase
from slimcodec.errors import SlimError
from slimcodec.files import atomic_write
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.bundle import Bundle, BundleConfig
from slimcodec.models.captioner import Tagger
from slimcodec.models.compressor import Compressor
from slimcodec.models.enhancer import Enhancer, EnhancerConfig, small_unet_config
from slimcodec.models.text import CaptionEncoder, small_text_encoder
from slimcodec.training.data import Crops, PhotoSet
from slimcodec.training.export import fitted_tables, latent_codec_parts
from slimcodec.training.loop import Stage, train
from slimcodec.training.losses import FeatureLoss
from slimcodec.training.recipe import Data, Features, Optimisation, Recipe
from slimcodec.training.stages import (
    AutoencoderStage,
    CaptionerStage,
    CompressorStage,
    EnhanceStage,
    LatentCodec,
)
from slimcodec.training.targets import teacher_targets
from slimcodec.training.teachers import Teacher, start_from_classifier
from slimcodec.version import __version__

logger = logging.getLogger(__name__)

#: photos to whose symbols the tables are fitted
FITTED_PHOTOS = 120


class Run:
    """A recipe, its run folder, and the parts that its stages share."""

    def __init__(self, recipe: Recipe, resume: bool = False) -> None:
        self.recipe, self.resume = recipe, resume
        self.folder = Path(recipe.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / "recipe.json", json.dumps(to_plain(recipe), indent=2).encode())

    # ---- stages ------------------------------------------------------------------------------------------------

    def autoencoder(self) -> None:
        """The latent space."""
        recipe = self.recipe.autoencoder
        torch.manual_seed(recipe.optimisation.seed)
        features, options = self._features(recipe.features)
        stage = AutoencoderStage(
            PatchAutoencoder(recipe.network), self._crops(recipe.optimisation), features, **options
        )
        stage.init_linear()
        self._train(stage, recipe.optimisation)

    def compressor(self) -> None:
        """The latent compressor and its prior: stage 1 of SLIM."""
        recipe = self.recipe.compressor
        torch.manual_seed(recipe.optimisation.seed)
        maps = self._targets[1] if recipe.activation_maps and self._teachers else None
        features, options = self._features(recipe.features)
        stage = CompressorStage(
            self._load_autoencoder(),
            Compressor(recipe.network),
            self._crops(recipe.optimisation, maps),
            lambdas=recipe.lambdas,
            background=recipe.background,
            features=features,
            mixed_start=recipe.mixed_start,
            train_decoder=recipe.train_decoder,
            **options,
        )
        self._train(stage, recipe.optimisation)

    def captioner(self) -> None:
        """The tagger."""
        recipe = self.recipe.captioner
        torch.manual_seed(recipe.optimisation.seed)
        soft = self._targets[0]
        tagger = self._tagger()
        if recipe.start_from_teacher:
            start_from_classifier(tagger, self._teachers[0])
        stage = CaptionerStage(
            tagger,
            self._photos,
            self._vocabulary,
            soft,
            PhotoSet(self._files("thumbnails")) if self.recipe.data.thumbnails else None,
            batch=recipe.optimisation.batch,
            thumbnail_share=recipe.thumbnail_share,
            seed=recipe.optimisation.seed,
        )
        self._train(stage, recipe.optimisation)

    def enhance(self) -> None:
        """The diffusion enhancer: stage 2 of SLIM."""
        recipe = self.recipe.enhance
        torch.manual_seed(recipe.optimisation.seed)
        autoencoder = self._load_autoencoder()
        codec = self._load_codec(autoencoder)
        maps = self._targets[1] if self._teachers else None
        stage = EnhanceStage(
            autoencoder,
            codec,
            Enhancer.build(self._enhancer_config),
            self._text_encoder(),
            self._crops(recipe.optimisation, maps),
            background=recipe.background,
            caption_dropout=recipe.caption_dropout,
            fidelity=recipe.fidelity,
        )
        stage.measure_errors()
        self._train(stage, recipe.optimisation)

    def bundle(self) -> Bundle:
        """Packs what the stages made into ``<run>/bundle`` and returns it; a part that was not trained is left out."""
        autoencoder = self._load_autoencoder()
        codec = self._load_codec(autoencoder)
        parts: dict[str, dict[str, Tensor]] = {
            "autoencoder": dict(autoencoder.state_dict()),
            **latent_codec_parts(codec),
        }
        config = BundleConfig(
            name=self.recipe.name,
            autoencoder=self.recipe.autoencoder.network,
            compressor=self.recipe.compressor.network,
            training={
                "slimcodec": __version__,
                "revision": _revision(),
                "photos": len(self._photos),
                # where the data lay on the machine that trained says nothing to others
                "recipe": to_plain(replace(self.recipe, data=Data(), out="")),
            },
        )
        text: tuple[Any, dict[str, Any]] | None = None
        if self._weights("captioner").exists():
            parts["captioner-0"] = load_file(self._weights("captioner"))
            config = replace(config, captioners=(self._tagger().config,))
        if self._weights("enhance").exists():
            state = load_file(self._weights("enhance"))
            for part in ("enhancer", "text"):
                prefix = f"{part}."
                parts[part] = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            encoder = self._text_encoder()
            tokenizer = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
            text = (tokenizer, encoder.text_model.config.to_dict())
            config = replace(config, enhancer=self._enhancer_config)
        draft = Codec(Bundle(config, parts, self._vocabulary, text))
        parts |= latent_codec_parts(codec, fitted_tables(draft, self._some_photos(FITTED_PHOTOS)))
        bundle = Bundle(config, parts, self._vocabulary, text)
        bundle.save_pretrained(self.folder / "bundle")
        logger.info("%s: bundle %s", self.folder / "bundle", bundle.bundle_id)
        return bundle

    # ---- shared parts ------------------------------------------------------------------------------------------

    def _train(self, stage: Stage, options: Optimisation) -> None:
        weights = train(
            stage,
            self.folder,
            steps=options.steps,
            learning_rate=options.learning_rate,
            warmup=options.warmup,
            ema_decay=options.ema_decay,
            seed=options.seed,
            precision=self.recipe.precision,
            resume=self.resume,
        )
        atomic_write(
            self._weights(stage.name), save({name: value.contiguous() for name, value in weights.items()})
        )

    def _weights(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"

    def _load(self, stage: str) -> dict[str, Tensor]:
        path = self._weights(stage)
        if not path.exists():
            raise SlimError(f"{path} is missing: run `slim train {stage}` with the same --set out= first")
        return load_file(path)

    def _load_autoencoder(self) -> PatchAutoencoder:
        autoencoder = PatchAutoencoder(self.recipe.autoencoder.network)
        autoencoder.load_state_dict(self._load("autoencoder"))
        return autoencoder.requires_grad_(False)

    def _load_codec(self, autoencoder: PatchAutoencoder) -> LatentCodec:
        # its state holds the autoencoder's decoder too, as tuned by the compressor stage
        codec = LatentCodec(Compressor(self.recipe.compressor.network), autoencoder)
        codec.load_state_dict(self._load("compressor"))
        return codec.requires_grad_(False)

    def _crops(self, options: Optimisation, maps: NDArray[np.float32] | None = None) -> Crops:
        photos = self._photos if maps is None else PhotoSet(self._files("photos"), maps)
        return Crops(photos, options.crop, options.batch, options.seed)

    def _features(self, features: Features) -> tuple[FeatureLoss | None, dict[str, float]]:
        loss = FeatureLoss(self._teachers, features.weights) if self._teachers else None
        return loss, {
            "feature_weight": features.weight,
            "feature_start": features.start,
            "feature_share": features.share,
        }

    def _files(self, kind: str) -> list[str]:
        patterns: Sequence[str] = getattr(self.recipe.data, kind)
        found = [sorted(glob.glob(str(Path(pattern).expanduser()))) for pattern in patterns]
        for pattern, files in zip(patterns, found, strict=True):
            if not files:
                raise SlimError(f"data.{kind}: {pattern} matches no file")
        if not found:
            raise SlimError(
                f"data.{kind} is not set; say where it is, for example --set 'data.{kind}=[\"photos/*.parquet\"]'"
            )
        return [file for files in found for file in files]

    def _some_photos(self, count: int) -> Iterator[NDArray[np.uint8]]:
        rows = np.random.default_rng(0).permutation(len(self._photos))[:count]
        return (photo.pixels for photo in map(self._photos.__getitem__, rows.tolist()) if photo is not None)

    @cached_property
    def _photos(self) -> PhotoSet:
        return PhotoSet(self._files("photos"))

    @cached_property
    def _teachers(self) -> list[Teacher]:
        return [Teacher(path) for path in self._files("teachers")] if self.recipe.data.teachers else []

    @cached_property
    def _targets(self) -> Any:
        if not self._teachers and not (self.folder / "targets.pt").exists():
            raise SlimError("data.teachers is not set: this stage learns from frozen classifiers")
        return teacher_targets(self._photos, self._teachers, self.folder / "targets.pt")

    @cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        from slimcodec.container import EMBEDDED_BUNDLE

        return read_vocabulary(self.recipe.data.vocabulary or EMBEDDED_BUNDLE / "vocabulary.txt")

    def _tagger(self) -> Tagger:
        return Tagger(replace(self.recipe.captioner.network, tags=len(self._vocabulary)))

    @property
    def _enhancer_config(self) -> EnhancerConfig:
        channels = self.recipe.autoencoder.network.latent_channels
        return EnhancerConfig(
            latent_channels=channels,
            levels=self.recipe.compressor.network.prior.levels,
            unet=small_unet_config(channels),
            scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler"},
        )

    def _text_encoder(self) -> CaptionEncoder:
        return small_text_encoder([tag_phrase(tag) for tag in self._vocabulary])


def _revision() -> str | None:
    """The git revision of the source tree, or None in an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def stages(run: Run) -> dict[str, Callable[[], object]]:
    """The stages in the order in which they build on each other, and ``bundle`` that packs them."""
    return {
        "autoencoder": run.autoencoder,
        "compressor": run.compressor,
        "captioner": run.captioner,
        "enhance": run.enhance,
        "bundle": run.bundle,
    }
