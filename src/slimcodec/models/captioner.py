"""RoI-focused captions without a mask: a tagger that names, from a small copy of the picture, what a machine should see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.entropy.caption import tag_phrase
from slimcodec.models.blocks import dtype_of

#: MobileNet-v2 (Sandler et al. 2018, table 2): expansion, channels, blocks, stride of the first block
STAGES = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
FEATURES = 1280


@dataclass(frozen=True)
class CaptionerConfig:
    """What a ``Tagger`` sees and names: pictures squeezed to ``side`` pixels, a number of tags."""

    tags: int = 1116
    side: int = 128
    dropout: float = 0.2
    #: below this probability no tag is named
    threshold: float = 0.2


class SameConv(nn.Conv2d):
    """A convolution that pads at the right and bottom first, as the networks do whose weights the tagger starts from."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:])
        if rows % 2 or columns % 2:
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            rows = columns = 0
        return F.conv2d(
            x, self.weight, self.bias, self.stride, (rows // 2, columns // 2), self.dilation, self.groups
        )


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, added to the input where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [SameConv(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Tagger(nn.Module):
    """A MobileNet-v2, its normalisation folded into the convolutions, that scores every tag of the vocabulary."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [SameConv(3, 32, 3, 2), nn.ReLU6(inplace=True)]
        channels = 32
        for expansion, width, blocks, stride in STAGES:
            for number in range(blocks):
                layers.append(InvertedResidual(channels, width, stride if number == 0 else 1, expansion))
                channels = width
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, FEATURES, 1), nn.ReLU6(inplace=True))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(FEATURES, config.tags)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] of any size, squeezed to a square, to logits [B, tags], float32."""
        side = self.config.side
        if pictures.shape[2:] != (side, side):
            pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        pooled = self.body(pictures.to(dtype_of(self.body))).float().mean((2, 3))
        logits: Tensor = self.head(self.dropout(pooled))
        return logits

    @torch.no_grad()
    def name(self, pictures: Tensor, vocabulary: Sequence[str]) -> list[str | None]:
        """The caption of each picture, "a photo of a {tag}", or None where no tag is likely enough."""
        probability, tag = self(pictures).softmax(1).max(1)
        return [
            tag_phrase(vocabulary[int(index)]) if float(p) >= self.config.threshold else None
            for p, index in zip(probability, tag, strict=True)
        ]
