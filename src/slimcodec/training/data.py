"""The data of a run, opened when it is first needed: photos, teachers, pseudo-labels, vocabulary; data card and preview."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.data.classifiers import Classifier, load_classifier
from slimcodec.data.contact_sheet import Tile, contact_sheet, overlay
from slimcodec.data.masks import Annotation, Segmenter, read_annotations
from slimcodec.data.photos import Photo, PhotoSet, PhotoStream
from slimcodec.data.sources import open_sources
from slimcodec.entropy.caption import read_vocabulary
from slimcodec.errors import SlimError
from slimcodec.training.batches import Crops, random_caption, shuffled
from slimcodec.training.pseudo_labels import (
    Labeller,
    Photos,
    PseudoLabel,
    PseudoLabelled,
    RoiCaptioner,
)
from slimcodec.training.recipe import Recipe

#: photos that are decoded for the data card
SAMPLE = 400
PREVIEW_PHOTOS, PREVIEW_COLUMNS, PREVIEW_SIDE = 24, 6, 180


class TrainingData:
    """The photos and teachers of a recipe; ``folder`` keeps the pseudo-labels."""

    def __init__(self, recipe: Recipe, folder: Path, accelerator: Accelerator) -> None:
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The tags."""
        return read_vocabulary(self.recipe.data.vocabulary or EMBEDDED_BUNDLE / "vocabulary.txt")

    @cached_property
    def teachers(self) -> list[Classifier]:
        """The frozen classifiers, on the run's device."""
        sources: list[str] = []
        for pattern in self.recipe.teachers.models:
            sources += sorted(glob.glob(str(Path(pattern).expanduser()))) or [pattern]
        device = str(self.accelerator.device)
        return [load_classifier(source, device=device, as_teacher=True) for source in sources]

    @cached_property
    def photo_set(self) -> PhotoSet:
        """All photos, by row, of data that is not streamed."""
        return self._open(self.recipe.data.photos, "data.photos", self._annotations)

    @cached_property
    def thumbnails(self) -> PhotoSet | None:
        """Small labelled pictures for the captioner, or None."""
        sources = self.recipe.data.thumbnails
        return self._open(sources, "data.thumbnails", {}) if sources else None

    def _open(self, sources: Sequence[str], setting: str, annotations: Mapping[str, Annotation]) -> PhotoSet:
        data = self.recipe.data
        return PhotoSet(open_sources(sources, setting, data.split), annotations, int(data.memory * 2**30))

    def photos(self, stage: str, *labels: PseudoLabel) -> Photos:
        """The photos for a stage, pseudo-labelled if the recipe's networks give one of the ``labels`` that it reads."""
        data, options = self.recipe.data, self.recipe.optimisation(stage)
        labelled = bool(self.available.intersection(labels))
        if data.streaming:
            sources = open_sources(data.photos, "data.photos", data.split, streaming=True)
            if len(sources) > 1:
                raise SlimError("data.photos: one source can be streamed at a time")
            steps = max(1, data.window // options.batch)
            label = self.pseudo_label if labelled else None
            return PhotoStream(sources[0], steps, data.window, options.seed, self._annotations, label)
        return self._labelled_set if labelled else self.photo_set

    def crops(self, stage: str, *labels: PseudoLabel) -> Crops:
        """Crops for a stage, of its ``photos``."""
        options, templates = self.recipe.optimisation(stage), self.recipe.data.templates
        photos = self.photos(stage, *labels)
        return Crops(photos, options.crop, options.batch, options.seed, templates, self.shares)

    @cached_property
    def labelled(self) -> bool:
        """Whether classifiers or labels of the vocabulary say what is in the photos; taken for granted of a stream."""
        if self.recipe.teachers.models or self.recipe.data.streaming:
            return True
        sets = [self.photo_set, self.thumbnails]
        return any(photos.labels() & set(self.vocabulary) for photos in sets if photos is not None)

    @cached_property
    def shares(self) -> dict[str, float]:
        """How often photos of a source count when they are drawn, 1 for those that are not named.

        Raises ``SlimError`` for sources that are not there; those of a stream are not known beforehand.
        """
        shares = self.recipe.data.source_shares
        if not shares or self.recipe.data.streaming:
            return shares
        known = self.photo_set.collections()
        if unknown := sorted(set(shares) - known):
            there = ", ".join(sorted(known - {""})) or "no column 'source'"
            raise SlimError(f"data.shares: no photo is of {', '.join(unknown)}; there is {there}")
        largest = max(shares.get(name, 1.0) for name in known)
        if largest == 0:
            raise SlimError("data.shares leaves no photo: give one source more than 0")
        return {name: share / largest for name, share in shares.items()}

    def pseudo_label(self, photo: Photo) -> Photo:
        """A copy of a photo with pseudo-labels, computed on the spot."""
        return self._labeller(photo).added_to(photo)

    @property
    def available(self) -> frozenset[PseudoLabel]:
        """What the recipe's frozen networks can say of a photo."""
        teachers, source = bool(self.recipe.teachers.models), self.recipe.roi.source
        sources: dict[PseudoLabel, bool] = {
            "logits": teachers,
            "mask": source == "segmentation" or (source == "activation" and teachers),
            "caption": bool(self.recipe.data.captioner),
        }
        return frozenset(label for label, is_there in sources.items() if is_there)

    @cached_property
    def _annotations(self) -> Mapping[str, Annotation]:
        path = self.recipe.data.annotations
        return read_annotations(path) if path else {}

    @cached_property
    def _labeller(self) -> Labeller:
        roi, captioner, device = self.recipe.roi, self.recipe.data.captioner, str(self.accelerator.device)
        return Labeller(
            self.teachers,
            Segmenter(roi.segmenter, roi.classes, device) if roi.source == "segmentation" else None,
            RoiCaptioner(captioner, device) if captioner else None,
            activation=roi.source == "activation",
            device=device,
        )

    @cached_property
    def _labelled_set(self) -> PseudoLabelled:
        # the other processes read what the first one has written
        with self.accelerator.main_process_first():
            return PseudoLabelled(self.photo_set, self._labeller, self.folder / "targets.pt")


# ---- a look at the photos before any training ------------------------------------------------------------------


def data_card(photos: Photos, networks: Collection[PseudoLabel] = ()) -> dict[str, Any]:
    """Counts, sizes, labels and mask coverage of a random ``SAMPLE`` of photos (all, where they are fewer).

    ``networks``: what frozen networks will say of photos that nobody annotated. ``mask_coverage``: mean share of a photo's area in annotated masks; ``small_objects``: share of annotated photos under 30 %.
    """
    seen = list(islice(shuffled(photos, np.random.default_rng(0)), SAMPLE))
    decoded = [photo for photo in seen if photo is not None]
    covered = [float(photo.mask.mean()) for photo in decoded if photo.annotated and photo.mask is not None]
    sides = sorted(min(photo.pixels.shape[:2]) for photo in decoded)
    short_side = {"least": sides[0], "median": sides[len(sides) // 2], "most": sides[-1]} if sides else {}
    labels = Counter(photo.label for photo in decoded if photo.label)
    card: dict[str, Any] = {
        "photos": "streamed" if isinstance(photos, PhotoStream) else len(photos.pool(0)),
        "looked_at": len(seen),
        "broken": len(seen) - len(decoded),
        "short_side": short_side,
        "with_label": sum(labels.values()),
        "labels": len(labels),
        "with_caption": sum(bool(photo.captions) for photo in decoded),
        "with_annotated_mask": len(covered),
        "with_mask_of_a_network": len(decoded) - len(covered) if "mask" in networks else 0,
    }
    if covered:
        card["mask_coverage"] = round(float(np.mean(covered)), 3)
        card["small_objects"] = round(float(np.mean(np.array(covered) < 0.3)), 3)
    return card


def card_lines(card: dict[str, Any]) -> Iterator[str]:
    """The card as lines of text."""
    yield f"photos          {card['photos']}, of which {card['looked_at']} were looked at: {card['broken']} broken"
    if sides := card["short_side"]:
        yield f"short side      {sides['least']} to {sides['most']} pixels, median {sides['median']}"
    yield f"labels          {card['with_label']} photos, {card['labels']} different"
    yield f"captions        {card['with_caption']} photos"
    yield f"masks           {card['with_annotated_mask']} annotated, {card['with_mask_of_a_network']} by a network"
    if "mask_coverage" in card:
        small = f"under 30 % in {card['small_objects']:.0%}"
        yield f"coverage        {card['mask_coverage']:.0%} of an annotated photo; {small}"


def preview(data: TrainingData) -> Path:
    """Writes ``<out>/preview.png`` and returns its path: photos with caption and region of interest, and where that is from."""
    recipe, rng = data.recipe, np.random.default_rng(0)
    decoded = (photo for photo in shuffled(data.photos("compressor"), rng) if photo is not None)
    tiles: list[Tile] = []
    for photo in map(data.pseudo_label, islice(decoded, PREVIEW_PHOTOS)):
        thumbnail = Image.fromarray(photo.pixels)
        thumbnail.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        pixels, origin = np.asarray(thumbnail), "no mask"
        if photo.mask is not None:
            pixels = overlay(pixels, photo.mask)
            origin = "annotated" if photo.annotated else recipe.roi.source
        caption = random_caption(photo, rng, recipe.data.templates) or "no caption"
        tiles.append(Tile(pixels, (f"{caption} ({origin})",)))
    path = data.folder / "preview.png"
    data.folder.mkdir(parents=True, exist_ok=True)
    contact_sheet([tiles[n : n + PREVIEW_COLUMNS] for n in range(0, len(tiles), PREVIEW_COLUMNS)]).save(path)
    return path
