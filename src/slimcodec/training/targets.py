"""What frozen classifiers say of every training photo, computed once: soft labels and class-activation maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.errors import SlimError
from slimcodec.roi.cam import Classifier, class_activation
from slimcodec.training.data import PhotoSet
from slimcodec.training.loop import save_atomic


def classifier_input(pixels: NDArray[np.uint8], side: int = 224) -> Tensor:
    """A whole photo squeezed to the classifier's square, [3, side, side] in [0, 1]."""
    picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()).float() / 255


def teacher_targets(
    photos: PhotoSet, teachers: Sequence[Classifier], cache: Path
) -> tuple[Tensor, NDArray[np.float32]]:
    """Mean logits [rows, K] of the teachers and maps [rows, h, w] of the first one, zeros and ones where a row is bad.

    They are kept in ``cache``; one that was made of another number of photos raises ``SlimError``.
    """
    if cache.exists():
        state = torch.load(cache, weights_only=True)
        if len(state["logits"]) != len(photos):
            raise SlimError(f"{cache} belongs to other photos: remove it, or choose another out folder")
    else:
        logits: list[Tensor] = []
        maps: list[Tensor] = []
        for row in range(len(photos)):
            photo = photos[row]
            grey = np.full((1, 1, 3), 128, np.uint8)
            picture = classifier_input(grey if photo is None else photo.pixels)[None]
            first, heat = class_activation(teachers[0], picture)
            with torch.no_grad():
                others = [teacher(picture.flip(-1))[0] for teacher in teachers[1:]]
            known = 0.0 if photo is None else 1.0
            logits.append(known * torch.stack([first, *others]).mean(0)[0])
            maps.append(heat[0] if known else torch.ones_like(heat[0]))
        state = {"logits": torch.stack(logits).half(), "maps": torch.stack(maps).half()}
        save_atomic(state, cache)
    return state["logits"].float(), state["maps"].float().numpy()
