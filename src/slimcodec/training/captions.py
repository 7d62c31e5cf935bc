"""Captions of training photos: from their labels, or from a captioner that looks at the region of interest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from slimcodec.entropy.caption import tag_phrase
from slimcodec.errors import SlimError
from slimcodec.models.bundle import EMBEDDED, Bundle
from slimcodec.models.pretrained.captioner import ImageToText, clean_caption
from slimcodec.models.pretrained.hub import pretrained_folder, read_json

#: mask values from here up are region of interest
INSIDE = 0.5


def label_captions(label: str, templates: Sequence[str] = ()) -> list[str]:
    """The captions of a class name: one a template, or "a photo of a {label}" without templates.

    In a template ``{label}`` is the name and ``{a_label}`` the name with its article. Raises ``SlimError`` for other names in
    braces.
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
    """The box (x0, y0, x1, y1) in pixels of a photo of ``size`` (width, height) that holds the region of interest.

    ``mask`` [h, w] in [0, 1] lies over the whole photo and may be coarser. The bounding box of its values from 0.5 up grows by
    ``margin`` of its sides on each side and to at least ``smallest`` pixels, and stays within the photo. Without a mask, or
    where it is empty, the box is the whole photo.
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


class RoiCaptioner:
    """Captions the region of interest of a photo.

    ``source`` is a bundle with a captioner ("slim-tiny" or a folder), or a folder or hub id of an image-to-text model of
    transformers that needs no prompt (BLIP, GIT). Raises ``SlimError`` where it is neither.
    """

    def __init__(self, source: str = EMBEDDED, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.bundle: Bundle | None = None
        folder: str | Path = EMBEDDED if source == EMBEDDED else pretrained_folder(source)
        if folder == EMBEDDED or "bundle_id" in read_json(Path(folder) / "config.json"):
            self.bundle = Bundle.from_pretrained(folder, device)
            if not self.bundle.captioners:
                raise SlimError(f"{source}: this bundle has no captioner; choose another one")
            return
        self.model = ImageToText(Path(folder), device)

    @torch.no_grad()
    def __call__(self, pixels: NDArray[np.uint8], mask: NDArray[np.float32] | None = None) -> str | None:
        """The caption of a photo [H, W, 3] uint8, seen through ``roi_box`` of its mask: one line of at most 200 bytes.

        None where the captioner has nothing to say, or a bundle's captioner is too unsure.
        """
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = roi_box(mask, (width, height))
        crop = np.ascontiguousarray(pixels[y0:y1, x0:x1])
        if self.bundle is not None:
            picture = torch.from_numpy(crop).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
            tagger = self.bundle.captioners[0]
            (name,) = tagger.name(tagger(picture), self.bundle.vocabulary)
            return clean_caption(name or "")
        return self.model(crop)
