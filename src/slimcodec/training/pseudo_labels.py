"""Pseudo-labels of training photos: the soft labels, masks and captions that frozen networks give, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.data.classifiers import class_activation
from slimcodec.data.networks import Network
from slimcodec.data.photos import Photo, PhotoSet, Pool
from slimcodec.entropy.caption import tag_phrase
from slimcodec.errors import SlimError
from slimcodec.files import atomic_open
from slimcodec.models.bundle import Bundle
from slimcodec.models.config import EMBEDDED
from slimcodec.models.pretrained.hub import (
    DEFAULT_SIDE,
    ImageToText,
    Preprocessing,
    clean_caption,
    pretrained_folder,
)
from slimcodec.models.pretrained.part_files import read_json
from slimcodec.processes import track

#: a field of ``PseudoLabels``
PseudoLabel = Literal["logits", "mask", "caption"]
#: side of the kept masks of a segmentation network
MASK_SIDE = 32
#: mask values from here up are region of interest
INSIDE = 0.5


class Photos(Protocol):
    """Photos from which a step draws: a ``PhotoSet``, a ``PhotoStream`` or ``PseudoLabelled`` ones."""

    def pool(self, step: int) -> Pool:
        """What the batch of a step is drawn from."""
        ...


@dataclass(frozen=True)
class PseudoLabels:
    """What frozen networks say of a photo: mean logits [K], a mask [h, w] and a caption, where they gave one."""

    logits: Tensor | None = None
    mask: NDArray[np.float32] | None = None
    caption: str | None = None

    def added_to(self, photo: Photo) -> Photo:
        """A copy of a photo with these; annotated masks, labels and captions stay."""
        mask, captions = self.mask if photo.mask is None else photo.mask, photo.captions
        if self.caption and not captions and not photo.label:
            captions = [self.caption]
        return replace(photo, logits=self.logits, mask=mask, captions=captions)


@dataclass
class Labeller:
    """Asks classifiers, and maybe a segmentation network and a captioner, about a photo.

    Masks are those of the segmentation network where there is one, else the class-activation map of the first classifier. The
    captioner sees the region of interest of photos that have neither label nor caption.
    """

    teachers: Sequence[Network] = ()
    segmenter: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None
    captioner: Callable[[NDArray[np.uint8], NDArray[np.float32] | None], str | None] | None = None
    _: KW_ONLY
    activation: bool = True
    device: str = "cpu"

    def __call__(self, photo: Photo) -> PseudoLabels:
        """The pseudo-labels of a photo."""
        logits, mask = self._classify(photo.pixels) if self.teachers else (None, None)
        if self.segmenter is not None:
            segmented = Image.fromarray(self.segmenter(photo.pixels))
            mask = np.asarray(segmented.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX))
        caption = None
        if self.captioner is not None and not photo.label and not photo.captions:
            caption = self.captioner(photo.pixels, mask if photo.mask is None else photo.mask)
        return PseudoLabels(logits, mask, caption)

    def _classify(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, NDArray[np.float32] | None]:
        side = getattr(self.teachers[0], "side", DEFAULT_SIDE)
        picture = Preprocessing(side).network_input(pixels).to(self.device)
        mask = None
        with torch.no_grad():
            if self.activation and self.segmenter is None:
                first, heat = class_activation(self.teachers[0], picture)
                mask = heat[0].cpu().numpy()
            else:
                first = self.teachers[0](picture)[0]
            others = [teacher(picture.flip(-1))[0] for teacher in self.teachers[1:]]
        return torch.stack([first, *others]).mean(0)[0].cpu(), mask


class PseudoLabelled:
    """A view of a set whose photos have pseudo-labels where nobody annotated them; the set stays as it is.

    They are kept in a file that is made when it is missing; one of another number of photos raises ``SlimError``.
    """

    def __init__(self, photos: PhotoSet, labeller: Callable[[Photo], PseudoLabels], path: Path) -> None:
        self.photos = photos
        if path.exists():
            self._state = torch.load(path, weights_only=True)
            if self._state["rows"] != len(photos):
                raise SlimError(f"{path} belongs to other photos: remove it, or choose another out folder")
            return
        pictures = (photos[row] for row in track(range(len(photos)), "pseudo-labels"))
        labels = [PseudoLabels() if photo is None else labeller(photo) for photo in pictures]
        masks = [None if label.mask is None else torch.from_numpy(label.mask) for label in labels]
        self._state = {
            "rows": len(photos),
            "logits": _stacked([label.logits for label in labels]),
            "masks": _stacked(masks),
            "captions": [label.caption or "" for label in labels],
        }
        with atomic_open(path) as file:
            torch.save(self._state, file)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, row: int) -> Photo | None:
        photo, logits, masks = self.photos[row], self._state["logits"], self._state["masks"]
        if photo is None:
            return None
        labels = PseudoLabels(
            None if logits is None else logits[row].float(),
            None if masks is None else masks[row].float().numpy(),
            self._state["captions"][row] or None,
        )
        return labels.added_to(photo)

    def pool(self, step: int) -> PseudoLabelled:
        """The photos that the batch of a step is drawn from: all of them."""
        return self


def _stacked(values: list[Tensor | None]) -> Tensor | None:
    """The values in half precision, zeros where there is none; None where there is none at all."""
    known = next((value for value in values if value is not None), None)
    if known is None:
        return None
    return torch.stack([torch.zeros_like(known) if value is None else value for value in values]).half()


# ---- captions --------------------------------------------------------------------------------------------------


def label_captions(label: str, templates: Sequence[str] = ()) -> list[str]:
    """The captions of a class name: one a template, or "a photo of a {label}" without templates.

    ``{label}`` is the name, ``{a_label}`` the name with its article; ``SlimError`` for other names in braces.
    """
    with_article = tag_phrase(label).removeprefix("a photo of ")
    try:
        captions = [template.format(label=label, a_label=with_article) for template in templates]
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise SlimError(
            f"caption templates hold {{label}} or {{a_label}} and nothing else in braces ({error!r})"
        ) from error
    return captions or [tag_phrase(label)]


def roi_box(
    mask: NDArray[np.float32] | None, size: tuple[int, int], margin: float = 0.1, smallest: int = 64
) -> tuple[int, int, int, int]:
    """The box (x0, y0, x1, y1) of the region of interest of a photo of ``size`` (width, height), in pixels.

    ``mask`` [h, w] in [0, 1] may be coarser than the photo. Its bounding box grows by ``margin`` of its sides on each side and to
    at least ``smallest`` pixels, within the photo. Without a mask, or where it is empty, the box is the whole photo.
    """
    if mask is None or not (mask >= INSIDE).any():
        return 0, 0, *size
    rows, columns = np.nonzero(mask >= INSIDE)

    def span(places: NDArray[np.intp], cells: int, length: int) -> tuple[int, int]:
        start, end = places.min() * length / cells, (places.max() + 1) * length / cells
        half = max((end - start) * (0.5 + margin), smallest / 2)
        # at the photo's edge the box moves rather than shrinks
        low = min(max((start + end) / 2 - half, 0), max(length - 2 * half, 0))
        return int(np.floor(low)), min(int(np.ceil(low + 2 * half)), length)

    x0, x1 = span(columns, mask.shape[1], size[0])
    y0, y1 = span(rows, mask.shape[0], size[1])
    return x0, y0, x1, y1


def lending_bundle(source: str, device: str = "cpu") -> Bundle | None:
    """The bundle whose captioner a source ("slim-tiny", a folder or a hub id) means; None where it is a model of transformers.

    Raises ``SlimError`` where it is neither, and for a bundle without a captioner.
    """
    if source != EMBEDDED and "bundle_id" not in read_json(pretrained_folder(source) / "config.json"):
        return None
    bundle = Bundle.from_pretrained(source, device)
    if not bundle.config.captioners:
        raise SlimError(f"{source}: this bundle has no captioner; choose another one")
    return bundle


class RoiCaptioner:
    """Captions the region of interest of a photo.

    ``source``: as of ``lending_bundle``; of models of transformers, an image-to-text model that needs no prompt (BLIP, GIT).
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        self.bundle = lending_bundle(source, device)
        if self.bundle is None:
            self.model = ImageToText(pretrained_folder(source), device)

    @torch.no_grad()
    def __call__(self, pixels: NDArray[np.uint8], mask: NDArray[np.float32] | None = None) -> str | None:
        """The caption of a photo [H, W, 3] uint8, seen through ``roi_box`` of its mask: one line of at most 200 bytes.

        None where the captioner has nothing to say, or a bundle's captioner is too unsure.
        """
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = roi_box(mask, (width, height))
        crop = np.ascontiguousarray(pixels[y0:y1, x0:x1])
        if self.bundle is None:
            return self.model.captions([crop])[0]
        seen = torch.from_numpy(crop).to(self.bundle.parts.device)
        picture = seen.permute(2, 0, 1)[None].float() / 127.5 - 1
        tagger = self.bundle.captioners[0]
        logits = tagger(picture)[0].float().cpu().numpy()
        caption = tagger.config.caption(logits, self.bundle.vocabulary)
        return clean_caption(caption or "")
