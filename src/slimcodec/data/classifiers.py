"""Image classifiers with their preprocessing: judges of decoded pictures, and teachers that training learns from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimcodec.data.networks import (
    ACCEPTED,
    MAPS,
    SIDES,
    EfficientNetLite,
    MobileNet,
    Network,
    OnnxNetwork,
    ScriptNetwork,
    TransformersNetwork,
    quick_copy,
)
from slimcodec.errors import SlimError
from slimcodec.files import file_sha256
from slimcodec.images import Pixels
from slimcodec.models.pretrained.hub import (
    DEFAULT_SIDE,
    Preprocessing,
    image_processor_settings,
    pretrained_folder,
    read_preprocessing,
)

#: outputs of the ImageNet classifiers that have a background class in front
WITH_BACKGROUND = 1001
#: settings of its preprocessing that a result leaves out where they are false
RARE = ("bgr", "keep_shape")
#: keys of the JSON file beside a classifier
SIDECAR = ("side", "mean", "std")
SUFFIXES = frozenset({".onnx", ".pt", ".pth", ".ts"})


class Classifier:
    """A frozen network that scores classes, with its preprocessing.

    As a judge it scores one decoded picture (``scores``, ``judge``). As a teacher it is called with pictures [B, 3, S, S] in
    [0, 1], and gives logits [B, K] and feature maps, differentiably. ``sha256``: of the file, or of the tensors of a transformers
    model; ``classes``: K; ``side``: of its input in pixels, other sizes work too. Of 1001 scores the first, background, is
    left out.
    """

    def __init__(
        self,
        name: str,
        sha256: str,
        preprocessing: Preprocessing,
        network: Network,
        device: str = "cpu",
    ) -> None:
        """Raises ``SlimError`` where the network does not give scores [1, classes] for a picture."""
        self.name, self.sha256, self.preprocessing, self.network = name, sha256, preprocessing, network
        self.device, self._background = torch.device(device), 0
        self.side, side = preprocessing.side or DEFAULT_SIDE, preprocessing.side or 256
        try:
            shape = self._logits(torch.full((1, 3, side, side), 0.5, device=device)).shape
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
            raise SlimError(f"{name}: it cannot judge a picture of {side}x{side} pixels: {reason}") from error
        if len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
            raise SlimError(f"{name}: gives {list(shape)} for a picture, not scores [1, classes]")
        self._background = 1 if shape[1] == WITH_BACKGROUND else 0
        self.classes = shape[1] - self._background

    def describe(self) -> dict[str, Any]:
        """What a result says of this classifier."""
        known = asdict(self.preprocessing)
        preprocessing = {key: value for key, value in known.items() if key not in RARE or value}
        return {
            "name": self.name,
            "sha256": self.sha256,
            "classes": self.classes,
            "preprocessing": preprocessing,
        }

    def scores(self, pixels: Pixels) -> NDArray[np.float32]:
        """Scores [classes] of a picture [H, W, 3] uint8."""
        return self._logits(self.preprocessing.network_input(pixels))[0].numpy()

    def judge(self, pixels: Pixels, label: int) -> tuple[int, int]:
        """The class that is named first, and the rank of ``label``, 0 being first; among equals the lower class is first."""
        scores = self.scores(pixels)
        if not np.isfinite(scores).all():
            raise SlimError(f"{self.name}: its scores are not finite; the file may be damaged")
        rank = int((scores > scores[label]).sum() + (scores[:label] == scores[label]).sum())
        return int(scores.argmax()), rank

    def __call__(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Logits and feature maps, from the input to the output, of pictures [B, 3, S, S] in [0, 1]."""
        with torch.autocast(pictures.device.type, enabled=False):
            logits, *maps = self.network(self.preprocessing.normalise(pictures.float()))
        return logits[:, self._background :], *maps

    def features(
        self, pictures: Tensor, count: int, with_logits: bool = False
    ) -> tuple[Tensor | None, Sequence[Tensor]]:
        """As a call, but with the first ``count`` maps, and logits only if asked for; much faster for a MobileNet-v2."""
        quick = self._quick
        if quick is not None and count <= MAPS and (quick.classes is not None or not with_logits):
            return quick(pictures, count, with_logits)
        logits, *maps = self(pictures)
        return (logits if with_logits else None), maps[:count]

    def _logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x)[0][:, self._background :]

    @cached_property
    def _quick(self) -> MobileNet | None:
        if not isinstance(self.network, ScriptNetwork) or self.preprocessing.normalises:
            return None
        with torch.autocast(self.device.type, enabled=False):
            return quick_copy(self.network.script, self.device)


def load_classifier(
    source: str | Path, protocol: str = "icm-256", device: str = "cpu", *, as_teacher: bool = False
) -> Classifier:
    """A classifier from an ONNX or TorchScript file (.pt, .pth, .ts), a transformers folder, a hub id, or a name of ``SIDES``.

    ``source@SIDE`` sets the input side. Beside a file, ``FILE.json`` may hold "side", "mean" and "std" (of RGB in 0..1);
    without it pictures are given as RGB in [0, 1], at the side that the ONNX file states, else 224. Under protocol
    ``icm-256`` the whole square is the input (a transformers model gets it in its coded size, no 224 crop), under ``full``
    the centre square. ``as_teacher``: with feature maps, which training learns from; an ONNX file has none.

    Raises ``SlimError`` for what is missing, unreadable or no classifier, and where a teacher's feature maps cannot be told.
    """
    name, at, number = str(source).rpartition("@")
    side = int(number) if at and number.isdecimal() else 0
    given, full = Path(name if side else source), protocol == "full"
    if str(given) in SIDES:
        lite = EfficientNetLite(str(given), device)
        preprocessing = Preprocessing(side or lite.side, (0.5,) * 3, (0.5,) * 3, crop=full)
        return Classifier(str(given), file_sha256(lite.file), preprocessing, lite, device)
    path = _found(given)
    if path.is_file():
        is_onnx = path.suffix == ".onnx"
        if is_onnx and as_teacher:
            raise SlimError(f"{path}: an ONNX file has no gradients to learn from; export it as TorchScript")
        network = OnnxNetwork(path) if is_onnx else ScriptNetwork(path, device)
        preprocessing = _file_preprocessing(path, side, network.side, full)
        return Classifier(path.name, file_sha256(path), preprocessing, network, device)
    known = read_preprocessing(path)
    # a teacher's pictures have the side that it was trained on
    given_side = side or (known.side if as_teacher else None)
    model = TransformersNetwork(path, device, given_side if as_teacher else None)
    preprocessing = replace(known, side=given_side, keep_shape=False)
    if full:
        stated, crop, share = stated_size(image_processor_settings(path))
        preprocessing = replace(preprocessing, side=given_side or stated, crop=crop, crop_share=share)
    label = given.name if given.is_dir() else str(given)
    return Classifier(label, model.sha256(), preprocessing, model, device)


def class_activation(classifier: Network, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] and the map [B, h, w] in [0, 1] of where the top class was seen.

    ``pictures`` [B, 3, S, S] in [0, 1] have the classifier's input size. The map is the rectified sum of the last feature
    maps weighted by the mean gradient of the top logit (Grad-CAM, Selvaraju et al. 2017, equations 1 and 2), divided by its
    maximum.
    """
    with torch.enable_grad():
        # the input needs a gradient, else a frozen classifier builds no graph
        logits, *features = classifier(pictures.requires_grad_())
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), features[-1])
    weights = gradient.mean((2, 3), keepdim=True)
    heat = (weights * features[-1].detach()).sum(1).relu()
    return logits.detach(), heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-6)


def stated_size(settings: dict[str, Any]) -> tuple[int, bool, float]:
    """Input side, whether it is a centre crop, and its share of the resized short side, of an image processor's settings."""
    size, crop = settings.get("size") or DEFAULT_SIDE, settings.get("crop_size")
    if isinstance(size, dict) and "shortest_edge" not in size:
        # the whole picture is squeezed to a square, as vision transformers take it
        return int(size.get("height", DEFAULT_SIDE)), False, 1.0
    shortest = int(size["shortest_edge"] if isinstance(size, dict) else size)
    if crop and settings.get("do_center_crop", True):
        side = int(crop["height"] if isinstance(crop, dict) else crop)
        return side, True, side / shortest
    return shortest, True, float(settings.get("crop_pct") or 1.0)


def _found(path: Path) -> Path:
    """The file of a network, or the folder of a model of transformers."""
    if path.is_file():
        return path
    if path.suffix in SUFFIXES and not path.is_dir():
        raise SlimError(f"{path}: no such file; {ACCEPTED}")
    try:
        return pretrained_folder(path)
    except SlimError as error:
        raise SlimError(f"{error} ({ACCEPTED})") from error


def _file_preprocessing(path: Path, side: int, stated: int | None, full: bool) -> Preprocessing:
    """The preprocessing of a file's network: ``side`` as asked, ``stated`` by the network, or as the file beside it says."""
    if stated and side and stated != side:
        raise SlimError(f"{path}: it takes {stated}x{stated} pictures, not {side}x{side}")
    beside, values = Path(f"{path}.json"), dict[str, Any]()
    if beside.is_file():
        try:
            content = json.loads(beside.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or set(content) - set(SIDECAR):
                raise ValueError
            values = {k: int(v) if k == "side" else tuple(map(float, v)) for k, v in content.items()}
        except (ValueError, TypeError) as error:
            raise SlimError(
                f"{beside}: write a JSON object with some of {', '.join(SIDECAR)}, such as "
                '{"side": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
            ) from error
    values["side"] = side or stated or values.get("side", DEFAULT_SIDE)
    return Preprocessing(**values, crop=full)
