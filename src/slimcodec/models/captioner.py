"""RoI-focused captions without a mask: a tagger that names, from a small copy of the picture, what a machine should see."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.errors import SlimError
from slimcodec.models.blocks import FusableSequential, SameConv, dtype_of
from slimcodec.models.config import CaptionerConfig

#: stride of the first block of each stage, in all networks
STRIDES = (1, 2, 2, 2, 1, 2, 1)
#: channels, blocks and kernel of each stage. MobileNet-v2: Sandler et al. 2018, table 2; EfficientNet-Lite: EfficientNet-B0 and B1 of Tan
#: and Le 2019 with ReLU6, without squeeze-and-excitation
NETWORKS = {
    "mobilenet-v2": ((16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1), (3, 3, 3, 3, 3, 3, 3)),
    "efficientnet-lite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), (3, 3, 5, 3, 5, 5, 3)),
    "efficientnet-lite1": ((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1), (3, 3, 5, 3, 5, 5, 3)),
}
FEATURES = 1280
#: channels inside the head that tells the region of interest
ROI_WIDTH = 64


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, added to the input where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [SameConv(hidden, hidden, kernel, stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Tagger(nn.Module):
    """A network of ``NETWORKS``, its normalisation folded into the convolutions, that scores every tag of the vocabulary."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [SameConv(3, 32, 3, 2), nn.ReLU6(inplace=True)]
        channels = 32
        if config.network not in NETWORKS:
            raise SlimError(f"captioners.network is {config.network!r}; known are {', '.join(NETWORKS)}")
        for stage, (width, blocks, kernel) in enumerate(zip(*NETWORKS[config.network], strict=True)):
            if stage == len(STRIDES) - 2:
                # up to here at a sixteenth of the resolution: where things are is still seen
                self.middle, middle_channels = len(layers), channels
            for number in range(blocks):
                stride, expansion = (1 if number else STRIDES[stage]), (6 if stage else 1)
                layers.append(InvertedResidual(channels, width, stride, expansion, kernel))
                channels = width
        self.body = FusableSequential(*layers, nn.Conv2d(channels, FEATURES, 1), nn.ReLU6(inplace=True))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(FEATURES, config.tags)
        if config.roi:
            self.roi_fine = nn.Conv2d(middle_channels, ROI_WIDTH, 1)
            self.roi_coarse = nn.Conv2d(FEATURES, ROI_WIDTH, 1)
            self.roi_head = nn.Conv2d(ROI_WIDTH, 1, 3, padding=1)
            with torch.no_grad():
                # nothing is known at first: a random guess over so many features would be a loud one
                self.roi_head.weight.zero_()

    def predict(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pictures [B, 3, H, W] in [-1, 1] of any size, squeezed to a square, to logits [B, tags], float32.

        And, with ``config.roi``, logits [B, 1, side/16, side/16] of the region of interest.
        """
        side = self.config.side
        if pictures.shape[2:] != (side, side):
            pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        middle = self.body(pictures.to(dtype_of(self.body)), 0, self.middle)
        last = self.body(middle, self.middle).float()
        logits: Tensor = self.head(self.dropout(last.mean((2, 3))))
        if not self.config.roi:
            return logits, None
        fine = self.roi_fine(middle.float())
        coarse = F.interpolate(self.roi_coarse(last), fine.shape[2:], mode="bilinear")
        return logits, self.roi_head(F.relu(fine + coarse))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to logits [B, tags], float32."""
        return self.predict(pictures)[0]
