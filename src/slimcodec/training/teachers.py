"""Frozen classifiers that training learns from: TorchScript files that return logits and feature maps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.captioner import Tagger


def start_from_classifier(tagger: Tagger, teacher: Teacher) -> None:
    """Copies a MobileNet-v2 classifier's weights into a tagger whose first tags are the classifier's classes.

    The teacher's constants are weight and bias of each convolution in order, the last one its classes after a background
    class. Tags beyond them start as very unlikely. Raises ``SlimError`` where the shapes are not those of a MobileNet-v2.
    """
    tensors = [tensor.float() for _, tensor in teacher.module.named_buffers()]
    convolutions = [module for module in tagger.body.modules() if isinstance(module, nn.Conv2d)]
    parameters = [parameter for conv in convolutions for parameter in conv.parameters()]
    if [tuple(tensor.shape) for tensor in tensors[:-2]] != [
        tuple(parameter.shape) for parameter in parameters
    ]:
        raise SlimError("the first teacher is no MobileNet-v2 of width 1: the captioner cannot start from it")
    with torch.no_grad():
        for parameter, tensor in zip(parameters, tensors[:-2], strict=True):
            parameter.copy_(tensor)
        classes = len(tensors[-1]) - 1
        tagger.head.weight[:classes] = tensors[-2][1:, :, 0, 0]
        tagger.head.bias[:classes] = tensors[-1][1:]
        tagger.head.weight[classes:] = 0
        tagger.head.bias[classes:] = -6


class Teacher:
    """A TorchScript classifier: pictures [B, 3, S, S] in [0, 1] to (logits [B, K], feature map, ..., last feature map)."""

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        try:
            self.module = torch.jit.load(str(path), map_location=device).eval()
        except (ValueError, RuntimeError) as error:
            raise SlimError(f"{path}: not a TorchScript file that this PyTorch can read ({error})") from error

    def __call__(self, pictures: Tensor) -> tuple[Tensor, ...]:
        # the optimising executor fuses whole subgraphs, after which gradients at inner feature maps are lost
        plain = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with plain, torch.autocast(pictures.device.type, enabled=False):
            outputs: tuple[Tensor, ...] = self.module(pictures.float())
        return outputs
