"""Detection agreement: do a detector's boxes survive coding? Its boxes on the original photo are the truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimcodec.data.networks import onnx_session
from slimcodec.errors import SlimError
from slimcodec.images import Pixels
from slimcodec.models.pretrained.hub import weights_sha256

#: boxes on the original count as truth from this score on
TRUTH_SCORE = 0.5
#: boxes on decoded pictures are ranked by score; those below are left out
LEAST_SCORE = 0.05
MATCH_IOU = 0.5
OUTPUTS = ("boxes", "scores", "classes")


@dataclass(frozen=True)
class Boxes:
    """Detections: boxes [N, 4] as x0, y0, x1, y1 in pixels of the photo, scores [N], classes [N], best first."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def above(self, score: float) -> Boxes:
        """Those of at least a score."""
        chosen = self.scores >= score
        return Boxes(self.boxes[chosen], self.scores[chosen], self.classes[chosen])


class Detector:
    """An ONNX detector: input [1, 3, H, W] RGB in [0, 1], outputs "boxes" [N, 4], "scores" [N] and "classes" [N].

    Boxes are x0, y0, x1, y1 in pixels of the input, after its own non-maximum suppression; a leading batch axis of 1 is
    accepted. Outputs of other names are taken in that order. An input of fixed size gets the picture resized to it
    (antialiased bilinear). Raises ``SlimError`` for a file that is missing or has another interface.
    """

    def __init__(self, path: str) -> None:
        self._session = onnx_session(path)
        self.name, self.sha256 = Path(path).name, weights_sha256(Path(path))
        entry = self._session.get_inputs()[0]
        names = [output.name for output in self._session.get_outputs()]
        if len(entry.shape) != 4 or len(names) < 3:
            raise SlimError(
                f"{path}: input {entry.shape}, outputs {names}; a detector takes [1, 3, H, W] and gives "
                f"{', '.join(OUTPUTS)}"
            )
        self._input = entry.name
        self._size = tuple(entry.shape[2:]) if all(isinstance(n, int) for n in entry.shape[2:]) else None
        self._outputs = list(OUTPUTS) if set(OUTPUTS) <= set(names) else names[:3]
        self(np.full((64, 64, 3), 128, np.uint8))

    def describe(self) -> dict[str, Any]:
        """What a result says of this detector."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "input": self._size,
            "truth_score": TRUTH_SCORE,
            "iou": MATCH_IOU,
        }

    def __call__(self, pixels: Pixels) -> Boxes:
        """The detections in a picture [H, W, 3] uint8, those of at least ``LEAST_SCORE``."""
        height, width = pixels.shape[:2]
        picture = Image.fromarray(pixels)
        if self._size:
            picture = picture.resize((self._size[1], self._size[0]), Image.Resampling.BILINEAR)
        x = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
        found = self._session.run(self._outputs, {self._input: np.ascontiguousarray(x)})
        boxes = np.asarray(found[0], np.float32).reshape(-1, 4)
        scores, classes = (np.asarray(values).reshape(-1) for values in found[1:])
        if not len(boxes) == len(scores) == len(classes):
            shapes = [list(np.shape(values)) for values in found]
            raise SlimError(f"{self.name}: outputs of {shapes} do not belong together")
        scale = np.array([width / picture.width, height / picture.height] * 2, np.float32)
        order = np.argsort(-scores, kind="stable")
        ranked = Boxes(
            boxes[order] * scale, scores[order].astype(np.float32), classes[order].astype(np.int64)
        )
        return ranked.above(LEAST_SCORE)


def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes [N, 4] with boxes [M, 4]: [N, M]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).clip(0).prod(1) for x in (a, b))
    union = area_a[:, None] + area_b[None] - shared
    result: NDArray[np.float32] = np.where(union > 0, shared / np.maximum(union, 1e-9), 0).astype(np.float32)
    return result


def matched(found: Boxes, truth: Boxes) -> list[tuple[int, float, bool]]:
    """(class, score, right) of every detection of a photo, best first.

    Right: the free true box of its class that it overlaps most has IoU of at least 0.5; a true box is found once (the rule
    of PASCAL VOC, Everingham et al. 2010, section 4.2, with a box taken being no longer a candidate, as COCO has it).
    """
    overlap = iou(found.boxes, truth.boxes)
    free = np.ones(len(truth.boxes), bool)
    result = []
    for row, (score, class_) in enumerate(zip(found.scores, found.classes, strict=True)):
        candidates = np.where(free & (truth.classes == class_), overlap[row], -1.0)
        best = int(candidates.argmax()) if len(candidates) else -1
        right = best >= 0 and candidates[best] >= MATCH_IOU
        if right:
            free[best] = False
        result.append((int(class_), round(float(score), 4), bool(right)))
    return result


def mean_average_precision(
    detections: Sequence[Sequence[Sequence[Any]]], truths: Sequence[Sequence[int]]
) -> float | None:
    """mAP over classes: area under the precision-recall envelope (all points).

    ``detections``: of every photo, what ``matched`` gives; ``truths``: the classes of its true boxes. None without any.
    """
    total: dict[int, int] = defaultdict(int)
    ranked: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for classes in truths:
        for class_ in classes:
            total[class_] += 1
    for photo in detections:
        for class_, score, right in photo:
            ranked[class_].append((score, right))
    if not total:
        return None
    return float(np.mean([_average_precision(ranked[class_], count) for class_, count in total.items()]))


def _average_precision(ranked: list[tuple[float, bool]], count: int) -> float:
    # among equal scores the wrong ones first, so that the order of photos cannot matter
    right = np.array([hit for _, hit in sorted(ranked, key=lambda pair: (-pair[0], pair[1]))], bool)
    hits = right.cumsum()
    precision = hits / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / count)
