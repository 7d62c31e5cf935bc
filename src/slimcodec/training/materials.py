"""What a recipe's data section names, opened when it is first needed: photos, classifiers, their opinions, the vocabulary."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.data.classifiers import Classifier, load_teacher
from slimcodec.data.masks import Annotation, read_annotations
from slimcodec.data.photos import Photo, PhotoSet, PhotoStream, attach
from slimcodec.data.sources import open_sources
from slimcodec.entropy.caption import read_vocabulary
from slimcodec.errors import SlimError
from slimcodec.training.captions import RoiCaptioner
from slimcodec.training.data import Crops, Photos
from slimcodec.training.loop import Optimisation
from slimcodec.training.recipe import Recipe
from slimcodec.training.targets import KeptTargets, Opinions

#: what a stage may want to know of a photo that frozen networks can say: an entry of ``Target``
Answer = Literal["logits", "mask", "caption"]


class Materials:
    """The photos and networks of a recipe; ``folder`` keeps what is computed once."""

    def __init__(self, recipe: Recipe, folder: Path, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The tags."""
        return read_vocabulary(self.recipe.data.vocabulary or EMBEDDED_BUNDLE / "vocabulary.txt")

    @cached_property
    def teachers(self) -> list[Classifier]:
        """The frozen classifiers, on the run's device."""
        found: list[str] = []
        for pattern in self.recipe.teachers.models:
            files = sorted(glob.glob(str(Path(pattern).expanduser())))
            found += files or [pattern]
        return [load_teacher(source, str(self.accelerator.device)) for source in found]

    @cached_property
    def photo_set(self) -> PhotoSet:
        """All photos, by row; not for streamed data."""
        data = self.recipe.data
        if data.streaming:
            raise SlimError("this needs photos by number: set data.streaming=false")
        sources = open_sources(data.photos, "data.photos", data.split)
        return PhotoSet(sources, self._annotations, int(data.memory * 2**30))

    @cached_property
    def thumbnails(self) -> PhotoSet | None:
        """Small labelled pictures for the captioner, or None."""
        data = self.recipe.data
        if not data.thumbnails:
            return None
        sources = open_sources(data.thumbnails, "data.thumbnails", data.split)
        return PhotoSet(sources, memory=int(data.memory * 2**30))

    @property
    def answers(self) -> frozenset[Answer]:
        """What the recipe's frozen networks can say of a photo."""
        teachers, source = bool(self.recipe.teachers.models), self.recipe.roi.source
        known: dict[Answer, bool] = {
            "logits": teachers,
            "mask": source == "segmentation" or (source == "activation" and teachers),
            "caption": bool(self.recipe.data.captioner),
        }
        return frozenset(name for name, there in known.items() if there)

    def photos(self, options: Optimisation, *wanted: Answer) -> Photos:
        """The photos for a stage; frozen networks are asked about them if one can say something that is ``wanted``."""
        data = self.recipe.data
        asked = self._opinions if self.answers.intersection(wanted) else None
        if data.streaming:
            sources = open_sources(data.photos, "data.photos", data.split, streaming=True)
            if len(sources) > 1:
                raise SlimError("data.photos: one source can be streamed at a time")
            steps = max(1, data.window // options.batch)
            stream = PhotoStream(sources[0], steps, data.window, options.seed, self._annotations)
            stream.targets = asked
            return stream
        photos = self.photo_set
        if asked is not None:
            photos.use(self._kept)
        return photos

    def crops(self, options: Optimisation, *wanted: Answer) -> Crops:
        """Crops for a stage; photos without annotation have the masks and captions of networks that are ``wanted``."""
        photos = self.photos(options, *wanted)
        return Crops(
            photos,
            options.crop,
            options.batch,
            options.seed,
            templates=self.recipe.data.templates,
            shares=self.shares,
        )

    @cached_property
    def shares(self) -> dict[str, float]:
        """How often photos of a source count when they are drawn, 1 for those that are not named.

        Raises ``SlimError`` for sources that are not there; those of a stream are not known beforehand.
        """
        data = self.recipe.data
        shares = data.source_shares
        if not shares or data.streaming:
            return shares
        known = self.photo_set.collections()
        if unknown := sorted(set(shares) - known):
            there = ", ".join(sorted(known - {""})) or "no column 'source'"
            raise SlimError(f"data.shares: no photo is of {', '.join(unknown)}; there is {there}")
        largest = max(shares.get(name, 1.0) for name in known)
        if largest == 0:
            raise SlimError("data.shares leaves no photo: give one source more than 0")
        return {name: share / largest for name, share in shares.items()}

    @cached_property
    def _annotations(self) -> Mapping[str, Annotation]:
        path = self.recipe.data.annotations
        return read_annotations(path) if path else {}

    @cached_property
    def _opinions(self) -> Opinions | None:
        if not self.answers:
            return None
        recipe, device = self.recipe, self.accelerator.device
        segmenter: Any = None
        if recipe.roi.source == "segmentation":
            from slimcodec.data.segmentation import Segmenter

            segmenter = Segmenter(recipe.roi.segmenter, recipe.roi.classes, str(device))
        captioner = RoiCaptioner(recipe.data.captioner, str(device)) if recipe.data.captioner else None
        activation = recipe.roi.source == "activation"
        return Opinions(self.teachers, segmenter, captioner, activation=activation, device=device)

    @cached_property
    def _kept(self) -> KeptTargets:
        opinions = self._opinions
        assert opinions is not None

        def track(rows: range) -> Any:
            from rich.progress import track

            return track(rows, "asking frozen networks") if self.accelerator.is_main_process else rows

        # the others read what the first process has written
        with self.accelerator.main_process_first():
            return KeptTargets(self.photo_set, opinions, self.folder / "targets.pt", track)

    def with_opinion(self, row: int, photo: Photo) -> Photo:
        """A copy of a photo with what frozen networks say of it, asked on the spot."""
        copied = replace(photo)
        if self._opinions is not None:
            attach(copied, self._opinions(row, photo))
        return copied
