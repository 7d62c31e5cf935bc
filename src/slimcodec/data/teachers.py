"""Frozen classifiers that training learns from: TorchScript files, or image classifiers of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from slimcodec.data.feature_classifier import FeatureClassifier
from slimcodec.data.mobilenet import (
    MAPS,
    MobileNet,
    classes_of,
    convolution_constants,
    pour,
    quick_copy,
)
from slimcodec.errors import SlimError
from slimcodec.models.captioner import Tagger
from slimcodec.models.pretrained.hub import DEFAULT_SIDE, pretrained_folder, weights_sha256

ACCEPTED = "a teacher is a TorchScript file, a transformers image-classification folder, or a hub id of one"
TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ts")


def start_from_classifier(tagger: Tagger, teacher: Teacher) -> None:
    """Copies a MobileNet-v2 classifier's weights into a tagger whose first tags are the classifier's classes.

    The last convolution is its classes after a background class. Tags beyond them start as very unlikely. Raises ``SlimError``
    where it is no TorchScript of a MobileNet-v2, and where there are more classes than tags.
    """
    way_out = (
        "give a TorchScript MobileNet-v2 first in teachers.models, or set captioner.start_from_weights=false"
    )
    no_mobilenet = f"the captioner cannot start from {teacher.name}, no TorchScript of a MobileNet-v2 of width 1: {way_out}"
    try:
        classes = classes_of(pour(teacher.constants or [], tagger.body))
    except ValueError as error:
        raise SlimError(no_mobilenet) from error
    if classes is None:
        raise SlimError(no_mobilenet)
    weight, bias = classes
    if len(bias) > len(tagger.head.bias):
        raise SlimError(
            f"{teacher.name} has {len(bias)} classes, the vocabulary {len(tagger.head.bias)} tags: {way_out}, or a longer "
            "data.vocabulary"
        )
    with torch.no_grad():
        tagger.head.weight[: len(bias)] = weight
        tagger.head.bias[: len(bias)] = bias
        tagger.head.weight[len(bias) :] = 0
        tagger.head.bias[len(bias) :] = -6


class Teacher:
    """A frozen classifier: pictures [B, 3, S, S] in [0, 1] to (logits [B, K], feature map, ..., last feature map).

    ``path`` is a TorchScript file with these outputs, or the folder of a transformers image classifier. ``side`` is the
    classifier's own input size S (224 for TorchScript; others work too), ``labels`` are its class names or (), and ``name`` and
    ``sha256`` tell it apart.
    """

    def __init__(self, path: str | Path, device: str = "cpu", name: str = "") -> None:
        path = Path(path)
        self.name, self.device = name or path.stem, torch.device(device)
        self.module: nn.Module
        self.side, self.labels = DEFAULT_SIDE, tuple[str, ...]()
        if path.is_dir():
            classifier = FeatureClassifier(path)
            self.side, self.labels = classifier.preprocessing.side, classifier.labels
            self.module = classifier.to(device)
        else:
            try:
                self.module = torch.jit.load(str(path), map_location=device)
            except (ValueError, RuntimeError) as error:
                message = f"{path}: not a TorchScript file that this PyTorch can read ({error}); {ACCEPTED}"
                raise SlimError(message) from error
        self.module.eval()
        # a script has no requires_grad_() of its own
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        self.sha256 = weights_sha256(path)

    @cached_property
    def constants(self) -> list[Tensor] | None:
        """Weight and bias of each convolution of a TorchScript file in order, None where they cannot be told."""
        if not isinstance(self.module, torch.jit.ScriptModule):
            return None
        # a graph that is asked for under autocast has casts between constants and convolutions
        with torch.autocast(self.device.type, enabled=False):
            return convolution_constants(self.module)

    @cached_property
    def _quick(self) -> MobileNet | None:
        if self.constants is None:
            return None
        with torch.autocast(self.device.type, enabled=False):
            return quick_copy(self.module, self.constants)

    def seen(
        self, pictures: Tensor, count: int, answered: bool = False
    ) -> tuple[Tensor | None, Sequence[Tensor]]:
        """Logits [B, K], if ``answered``, and the first ``count`` maps of pictures [B, 3, S, S] in [0, 1].

        Much faster than a call for a MobileNet-v2.
        """
        quick = self._quick
        if quick is not None and count <= MAPS and (quick.classes is not None or not answered):
            return quick(pictures, count, answered)
        answer, *maps = self(pictures)
        return (answer if answered else None), maps[:count]

    def __call__(self, pictures: Tensor) -> tuple[Tensor, ...]:
        # the optimising executor fuses whole subgraphs, after which gradients at inner feature maps are lost
        plain = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with plain, torch.autocast(pictures.device.type, enabled=False):
            outputs: tuple[Tensor, ...] = self.module(pictures.float())
        return outputs


def load_teacher(source: str | Path, device: str = "cpu") -> Teacher:
    """The teacher of a TorchScript file, a transformers image-classification folder, or a hub id.

    Raises ``SlimError`` where there is none or it cannot be read.
    """
    path = Path(source)
    if path.is_file():
        return Teacher(path, device)
    if path.suffix in TORCHSCRIPT_SUFFIXES:
        raise SlimError(f"{source}: no such file; {ACCEPTED}")
    try:
        folder = pretrained_folder(source)
    except SlimError as error:
        raise SlimError(f"{error} ({ACCEPTED})") from error
    # a hub snapshot's folder is called by its revision
    return Teacher(folder, device, name=path.name)
