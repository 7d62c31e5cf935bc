"""RoI masks from a classifier: Grad-CAM (Selvaraju et al. 2017) of what it recognises, for photos without annotation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: a differentiable classifier: pictures [B, 3, S, S] in [0, 1] to (logits, feature map, ..., last feature map)
Classifier = Callable[[Tensor], tuple[Tensor, ...]]


def class_activation(classifier: Classifier, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] and the map [B, h, w] in [0, 1] of where the top class was seen.

    ``pictures`` [B, 3, S, S] in [0, 1] have the classifier's input size. The map is the rectified sum of the last feature
    maps weighted by the mean gradient of the top logit (Grad-CAM, equations 1 and 2), divided by its maximum.
    """
    with torch.enable_grad():
        # the input needs a gradient, else a frozen classifier builds no graph
        logits, *features = classifier(pictures.requires_grad_())
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), features[-1])
    weights = gradient.mean((2, 3), keepdim=True)
    heat = (weights * features[-1].detach()).sum(1).relu()
    return logits.detach(), heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-6)
