"""Image classifiers of transformers with the outputs of a teacher: logits and feature maps."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.pretrained.hub import class_names, load_model, read_preprocessing

#: maps of a smaller stride hold edges rather than features
SMALLEST_STRIDE = 4


def last_of_each_stride(maps: tuple[Tensor, ...], side: int) -> tuple[Tensor, ...]:
    """Of feature maps [B, C, h, w], from the input to the output, the last one at each stride from 4 up."""
    last = {round(side / features.shape[-1]): features for features in maps}
    return tuple(last[stride] for stride in sorted(last) if stride >= SMALLEST_STRIDE)


class FeatureClassifier(nn.Module):
    """An image classifier from a folder: pictures [B, 3, S, S] in [0, 1] to (logits [B, K], feature map, ...).

    Convolutional networks (ResNet, ConvNeXt, MobileNet) give their last map at each stride from 4 up. Vision transformers of
    one grid (ViT, DeiT, DINOv2) give one map: the patches' tokens before the last block, since after it only the class
    token matters to the logits, and a gradient there says nothing of places. Raises ``SlimError`` for other networks.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModelForImageClassification

        self.model: Any = load_model(AutoModelForImageClassification, folder)
        self.preprocessing = read_preprocessing(folder)
        self.labels = class_names(self.model)
        # a vision transformer refuses other sizes than that of its training unless told to interpolate
        known = inspect.signature(self.model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}
        side = self.preprocessing.side
        with torch.no_grad():
            states = self._states(torch.zeros(1, 3, side, side))
            self.has_tokens = bool(states) and all(state.dim() == 3 for state in states)
            if self.has_tokens and len({state.shape for state in states}) == 1:
                patch = self.model.config.patch_size
                self.patch = int(patch if isinstance(patch, int) else patch[0])
                lists = [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]
                self.last_block = max(lists, key=len)[-1]
            elif not states or any(state.dim() != 4 for state in states):
                raise SlimError(
                    f"{folder}: its feature maps cannot be told from its hidden states; choose a convolutional network "
                    "(ResNet, ConvNeXt, MobileNet) or a plain vision transformer (ViT, DeiT, DINOv2)"
                )
            if len(self(torch.zeros(1, 3, side, side))) < 2:
                raise SlimError(f"{folder}: has no feature map of stride {SMALLEST_STRIDE} or more")

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Logits and feature maps; differentiable, also with respect to the maps."""
        inputs = self.preprocessing(pictures)
        if not self.has_tokens:
            outputs = self.model(inputs, output_hidden_states=True, return_dict=True)
            return outputs.logits, *last_of_each_stride(outputs.hidden_states, pictures.shape[-1])
        grids: list[Tensor] = []
        rows, columns = (side // self.patch for side in pictures.shape[2:])

        def through_grid(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            tokens, *others = arguments
            special = tokens.shape[1] - rows * columns
            grids.append(tokens[:, special:].transpose(1, 2).unflatten(2, (rows, columns)))
            # the block must see tokens that come from the map, else the logits have no gradient there
            return torch.cat([tokens[:, :special], grids[0].flatten(2).transpose(1, 2)], 1), *others

        hook = self.last_block.register_forward_pre_hook(through_grid)
        try:
            logits: Tensor = self.model(inputs, return_dict=True, **self.options).logits
        finally:
            hook.remove()
        return logits, *grids

    def _states(self, pictures: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(
            self.preprocessing(pictures), output_hidden_states=True, return_dict=True, **self.options
        )
        return tuple(outputs.hidden_states or ())
