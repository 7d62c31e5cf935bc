"""What frozen networks say of a training photo: soft labels, masks and captions, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.data.classifiers import class_activation
from slimcodec.data.networks import Network
from slimcodec.data.photos import Photo, PhotoSet, Target
from slimcodec.errors import SlimError
from slimcodec.training.journal import save_atomic

#: side of the kept masks of a segmentation network
MASK_SIDE = 32
#: side of the square that a classifier sees
SIDE = 224


def classifier_input(pixels: NDArray[np.uint8], side: int = SIDE) -> Tensor:
    """A whole photo squeezed to the classifier's square, [3, side, side] in [0, 1]."""
    picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()).float() / 255


class Opinions:
    """Asks classifiers, and maybe a segmentation network and a captioner, about a photo.

    The masks are of the segmentation network where there is one, else the class-activation map of the first classifier. A
    captioner is asked only about photos without words, and sees their region of interest.
    """

    def __init__(
        self,
        teachers: Sequence[Network] = (),
        segmenter: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None,
        captioner: Callable[[NDArray[np.uint8], NDArray[np.float32] | None], str | None] | None = None,
        *,
        activation: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.teachers, self.segmenter, self.captioner = list(teachers), segmenter, captioner
        self.activation, self.device = activation, device or torch.device("cpu")

    def __call__(self, row: int, photo: Photo) -> Target:
        """The target of a photo."""
        logits, mask = self._classify(photo.pixels)
        if self.segmenter is not None:
            drawn = Image.fromarray(self.segmenter(photo.pixels))
            mask = np.asarray(drawn.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX))
        caption = None
        if self.captioner is not None and not photo.label and not photo.captions:
            caption = self.captioner(photo.pixels, mask if photo.mask is None else photo.mask)
        return Target(logits, mask, caption)

    def _classify(self, pixels: NDArray[np.uint8]) -> tuple[Tensor | None, NDArray[np.float32] | None]:
        if not self.teachers:
            return None, None
        picture = classifier_input(pixels, getattr(self.teachers[0], "side", SIDE))[None].to(self.device)
        mask = None
        if self.activation and self.segmenter is None:
            first, heat = class_activation(self.teachers[0], picture)
            mask = heat[0].cpu().numpy()
        else:
            with torch.no_grad():
                first = self.teachers[0](picture)[0]
        with torch.no_grad():
            others = [teacher(picture.flip(-1))[0] for teacher in self.teachers[1:]]
        return torch.stack([first, *others]).mean(0)[0].cpu(), mask


class KeptTargets:
    """The targets of all rows of a set, from a file that is made when it is missing.

    A file that was made of another number of photos raises ``SlimError``.
    """

    def __init__(
        self,
        photos: PhotoSet,
        opinions: Opinions,
        cache: Path,
        track: Callable[[range], Any] = iter,
    ) -> None:
        """``track`` wraps the rows to show progress."""
        if cache.exists():
            self._state = torch.load(cache, weights_only=True)
            if self._state["rows"] != len(photos):
                raise SlimError(f"{cache} belongs to other photos: remove it, or choose another out folder")
            return
        found: list[Target] = []
        for row in track(range(len(photos))):
            photo = photos[row]
            found.append(Target() if photo is None else opinions(row, photo))
        self._state = {
            "rows": len(photos),
            "logits": _stacked([target.logits for target in found]),
            "masks": _stacked(
                [None if target.mask is None else torch.from_numpy(target.mask) for target in found]
            ),
            "captions": [target.caption or "" for target in found],
        }
        save_atomic(self._state, cache)

    def __call__(self, row: int, photo: Photo) -> Target:
        """The target of a row."""
        logits, masks = self._state["logits"], self._state["masks"]
        return Target(
            None if logits is None else logits[row].float(),
            None if masks is None else masks[row].float().numpy(),
            self._state["captions"][row] or None,
        )


def _stacked(values: list[Tensor | None]) -> Tensor | None:
    """The values in half precision, zeros where there is none; None where there is none at all."""
    known = next((value for value in values if value is not None), None)
    if known is None:
        return None
    return torch.stack([torch.zeros_like(known) if value is None else value for value in values]).half()
