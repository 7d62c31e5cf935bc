"""What is measured of a decoded picture beside its class: PSNR, MS-SSIM, LPIPS, and agreement of a detector's boxes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from slimcodec.data.networks import onnx_session
from slimcodec.errors import SlimError
from slimcodec.files import file_sha256
from slimcodec.images import Pixels

#: measures that give one number for a decoded picture: label, digits that are shown, and digits that are kept
FIDELITY = {
    "psnr": ("PSNR, dB", 2, 3),
    "psnr_roi": ("PSNR of the RoI, dB", 2, 3),
    "psnr_background": ("PSNR of the background, dB", 2, 3),
    "ms_ssim": ("MS-SSIM", 4, 5),
    "lpips": ("LPIPS", 4, 5),
}
#: exponents of the five scales (Wang, Simoncelli & Bovik 2003, section 3.2)
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
#: shortest side for five scales of the window
MS_SSIM_SIDE = WINDOW << (len(MS_SSIM_WEIGHTS) - 1)
#: PSNR of equal pictures is infinite; this stands for it where means are taken
MAX_PSNR = 100.0
#: boxes on the original count as truth from this score on
TRUTH_SCORE = 0.5
#: boxes on decoded pictures are ranked by score; those below are left out
LEAST_SCORE = 0.05
MATCH_IOU = 0.5
OUTPUTS = ("boxes", "scores", "classes")


def psnr(a: Pixels, b: Pixels, where: NDArray[np.bool_] | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB over RGB of [H, W, 3] uint8 pictures, at most 100; of pixels ``where`` [H, W] only.

    None where the mask chooses no pixel.
    """
    error = (a.astype(np.float64) - b) ** 2
    if where is not None:
        error = error[where]
    if not error.size:
        return None
    mean = float(error.mean())
    return MAX_PSNR if mean == 0 else min(MAX_PSNR, float(10 * np.log10(255**2 / mean)))


def ssim_and_contrast(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure term of [C, H, W] pictures in 0..255, Gaussian window of 11, valid positions."""
    half = WINDOW // 2

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(x, SIGMA, radius=half, axes=(1, 2))[:, half:-half, half:-half])

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    ssim = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast
    return float(ssim.mean()), float(contrast.mean())


def ms_ssim(a: Pixels, b: Pixels) -> float | None:
    """Multi-scale structural similarity over RGB (Wang et al. 2003), 0..1; None for a side below 176 pixels.

    Negative contrast terms count as 0, as in the usual implementations.
    """
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    x, y = (picture.transpose(2, 0, 1).astype(np.float64) for picture in (a, b))
    product = 1.0
    for weight in MS_SSIM_WEIGHTS[:-1]:
        product *= max(ssim_and_contrast(x, y)[1], 0.0) ** weight
        x, y = _halve(x), _halve(y)
    return product * max(ssim_and_contrast(x, y)[0], 0.0) ** MS_SSIM_WEIGHTS[-1]


def _halve(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of 2x2 pixels; an odd last row or column is left out."""
    height, width = x.shape[1] // 2, x.shape[2] // 2
    cells = x[:, : 2 * height, : 2 * width].reshape(-1, height, 2, width, 2)
    return np.asarray(cells.mean((2, 4)))


def load_lpips(path: str) -> Callable[[Pixels, Pixels], float]:
    """The distance that a TorchScript module gives for two pictures [1, 3, H, W] in [-1, 1], such as a traced LPIPS network.

    Raises ``SlimError`` where the file is no TorchScript module that maps two pictures to one number.
    """
    try:
        module = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise SlimError(f"{path}: no TorchScript module; export LPIPS with torch.jit.trace") from error

    def distance(a: Pixels, b: Pixels) -> float:
        x, y = (torch.tensor(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (a, b))
        with torch.inference_mode():
            outputs = module(x, y)
        if outputs.numel() != 1:
            raise SlimError(f"{path}: gives {outputs.numel()} numbers for two pictures, LPIPS one distance")
        return float(outputs)

    grey = np.full((64, 64, 3), 128, np.uint8)
    distance(grey, grey)
    return distance


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
        self.name, self.sha256 = Path(path).name, file_sha256(path)
        entry = self._session.get_inputs()[0]
        names = [output.name for output in self._session.get_outputs()]
        if len(entry.shape) != 4 or len(names) < 3:
            raise SlimError(f"{path}: {entry.shape} to {names}; a detector makes {OUTPUTS} of [1, 3, H, W]")
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
            picture = picture.resize(self._size[::-1], Image.Resampling.BILINEAR)
        x = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
        outputs = self._session.run(self._outputs, {self._input: np.ascontiguousarray(x)})
        boxes = np.asarray(outputs[0], np.float32).reshape(-1, 4)
        scores, classes = (np.ravel(values) for values in outputs[1:])
        if not len(boxes) == len(scores) == len(classes):
            shapes = [list(np.shape(values)) for values in outputs]
            raise SlimError(f"{self.name}: outputs of {shapes} do not belong together")
        boxes *= np.array([width / picture.width, height / picture.height] * 2, np.float32)
        order = np.argsort(-scores, kind="stable")
        ranked = Boxes(boxes[order], scores[order].astype(np.float32), classes[order].astype(np.int64))
        return ranked.above(LEAST_SCORE)


def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes [N, 4] with boxes [M, 4]: [N, M]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).clip(0).prod(1) for x in (a, b))
    union = area_a[:, None] + area_b[None] - shared
    return np.where(union > 0, shared / np.maximum(union, 1e-9), 0).astype(np.float32)


def matched(detections: Boxes, truth: Boxes) -> list[tuple[int, float, bool]]:
    """(class, score, right) of every detection of a photo, best first.

    Right: the free true box of its class that it overlaps most has IoU of at least 0.5; a true box is found once (the rule
    of PASCAL VOC, Everingham et al. 2010, section 4.2, with a box taken being no longer a candidate, as COCO has it).
    """
    free = np.ones(len(truth.boxes), bool)
    result = []
    overlaps = iou(detections.boxes, truth.boxes)
    for overlap, score, class_ in zip(overlaps, detections.scores, detections.classes, strict=True):
        candidates = np.where(free & (truth.classes == class_), overlap, -1.0)
        right = bool(candidates.max(initial=-1) >= MATCH_IOU)
        if right:
            free[candidates.argmax()] = False
        result.append((int(class_), round(float(score), 4), right))
    return result


def mean_average_precision(
    detections: Sequence[Sequence[Sequence[Any]]], truths: Sequence[Sequence[int]]
) -> float | None:
    """mAP over classes: area under the precision-recall envelope (all points).

    ``detections``: of every photo, what ``matched`` gives; ``truths``: the classes of its true boxes. None without any.
    """
    total = Counter(chain.from_iterable(truths))
    ranked: dict[int, list[bool]] = defaultdict(list)
    # among equal scores the wrong ones first, so that the order of photos cannot matter
    for class_, _, right in sorted(chain.from_iterable(detections), key=lambda one: (-one[1], one[2])):
        ranked[class_].append(right)
    precisions = [_average_precision(ranked[class_], count) for class_, count in total.items()]
    return float(np.mean(precisions)) if precisions else None


def _average_precision(ranked: list[bool], count: int) -> float:
    right = np.array(ranked, bool)
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / count)
