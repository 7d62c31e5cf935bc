"""RoI masks from a segmentation model of transformers, for photos without annotation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from slimcodec.errors import SlimError
from slimcodec.models.pretrained.hub import (
    Preprocessing,
    class_names,
    load_model,
    pretrained_folder,
    read_preprocessing,
)
from slimcodec.models.pretrained.references import read_json

#: models that answer with queries, a class and a mask each, in place of a class for each pixel
QUERY_MODELS = ("maskformer", "mask2former")
#: strides of segmentation models divide this number of pixels
STRIDE = 32


def class_numbers(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Numbers of the classes to look for: those named in ``classes``, or all but a class 0 called background.

    Case does not count, and of a name like "person, individual" each part will do. Raises ``SlimError`` with the known names
    where one is unknown, or where no class is named and the model has no background.
    """
    known = f"the model knows {', '.join(names) or 'numbered labels only'}"
    if not classes:
        if not names or names[0].strip().lower() != "background":
            raise SlimError(
                f"this model has no class called background: name the classes to look for; {known}"
            )
        return list(range(1, len(names)))
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        for alias in (name, *name.split(",")):
            numbers.setdefault(alias.strip().lower(), number)
    unknown = [name for name in classes if name.strip().lower() not in numbers]
    if unknown:
        raise SlimError(f"unknown class {', '.join(map(repr, unknown))}; {known}")
    return sorted({numbers[name.strip().lower()] for name in classes})


def input_size(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """The (width, height) at which a model sees a photo: its square, or the photo's shape with the model's shorter side."""
    if not preprocessing.keep_shape:
        return preprocessing.side, preprocessing.side
    scale = preprocessing.side / min(size)
    width, height = (max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in size)
    return width, height


def query_probabilities(classes: Tensor, masks: Tensor) -> Tensor:
    """Probability of each class at each pixel [B, K, h, w] by queries' logits: classes [B, Q, K + 1], masks [B, Q, h, w].

    The last class of a query is "nothing". ``sum_q softmax(classes)_qk sigmoid(masks)_q`` (Cheng et al. 2021, section 3.4)
    divided by its sum over k.
    """
    scores = torch.einsum("bqk,bqhw->bkhw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    return scores / scores.sum(1, keepdim=True).clamp(min=1e-6)


class Segmenter:
    """Finds the pixels of wanted classes with a semantic (SegFormer and kin) or query (MaskFormer, Mask2Former) model.

    ``source`` is a folder or hub id, ``classes`` and errors are as in ``class_numbers``. The whole photo is seen, scaled
    to the model's input size.
    """

    def __init__(self, source: str, classes: Sequence[str] = (), device: str = "cpu") -> None:
        from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

        folder = pretrained_folder(source)
        self.queries = read_json(folder / "config.json").get("model_type") in QUERY_MODELS
        kind = AutoModelForUniversalSegmentation if self.queries else AutoModelForSemanticSegmentation
        self.model = load_model(kind, folder, device)
        self.preprocessing = read_preprocessing(folder)
        try:
            self.classes = class_numbers(class_names(self.model), classes)
        except SlimError as error:
            raise SlimError(f"{source}: {error}") from error
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probability that each pixel is of a wanted class, [H, W] float32 in [0, 1], for a photo [H, W, 3] uint8."""
        height, width = pixels.shape[:2]
        size = input_size((width, height), self.preprocessing)
        scaled = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        picture = torch.from_numpy(scaled).to(self.device).permute(2, 0, 1)[None].float() / 255
        outputs = self.model(pixel_values=self.preprocessing(picture))
        if self.queries:
            probabilities = query_probabilities(outputs.class_queries_logits, outputs.masks_queries_logits)
        else:
            probabilities = outputs.logits.softmax(1)
        share = probabilities[:, self.classes].sum(1, keepdim=True)
        mask = F.interpolate(share, (height, width), mode="bilinear")[0, 0].clamp(0, 1)
        probability: NDArray[np.float32] = mask.float().cpu().numpy()
        return probability
