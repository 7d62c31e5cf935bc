"""Evidence: the encoder rounds values to the side on which the bundle's tagger sees more of what the picture shows. No torch.

Plain rounding is best for squared error. But a value near the middle of two steps costs the same on either side, and a classifier
does care: over a picture, thousands of such choices decide what it sees. So every value moves by a few hundredths of a step before
it is rounded, along the gradient of log p(tag) at the picture that the symbols give, by the linear path that guides pictures too.
The format and the decoder know nothing of it. It is the decoder's classifier guidance (Dhariwal & Nichol 2021, equation 10), moved to
where the picture is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimcodec.models.bundle import Bundle
from slimcodec.models.guidance import CaptionGuide, Gradient, at_quality, mixed, unit, unshuffled
from slimcodec.models.latent_codec import CodedLatent
from slimcodec.models.runtime import unpacked

#: root mean square of what values move by, in steps of quantisation
PULL = 0.05
#: no value moves further: a zero stays one, and flat areas stay flat
FURTHEST = 0.25
Floats = NDArray[np.float32]
#: the decompressed latent [1, C, h, w] of symbols at a quality
Synthesis = Callable[[CodedLatent, int], Floats]


@dataclass(frozen=True)
class Evidence:
    """What rounding keeps of a picture: the first of its tags, by a number of gradient steps of the bundle's ``gradients``."""

    bundle: Bundle
    gradients: Sequence[Gradient]
    tag: int
    steps: int

    @staticmethod
    def possible(bundle: Bundle) -> bool:
        """Whether a bundle has a tagger, and a linear path from its latents to pixels."""
        return bool(bundle.config.captioners) and bundle.linear_path is not None

    def kept(
        self, values: Floats, quality: int, quantise: Callable[[Floats], CodedLatent], synthesise: Synthesis
    ) -> CodedLatent:
        """The symbols of values [1, C, h, w] in steps of quantisation, by ``quantise`` of the values that move."""
        config = self.bundle.config.compressor
        assert self.bundle.linear_path is not None
        guide = CaptionGuide(self.gradients, len(self.bundle.vocabulary), self.bundle.linear_path)
        rows, columns = values.shape[2:]
        views, transform = guide.views(rows, columns, self.tag, seed=0), self.transform(quality)
        # outside the region of interest a step is larger
        scale = 2.0 ** (config.step_octaves * values[:, -1:]) if config.step_octaves else np.float32(1)
        coded, pulls = quantise(values), np.zeros_like(values)
        for step in range(self.steps):
            latent = unshuffled(synthesise(coded, quality), config.patch)
            pulls += unit(scale * mixed(transform, views.pull(step, views.picture(latent))))
            coded = quantise(values + (PULL * unit(pulls)).clip(-FURTHEST, FURTHEST))
        return coded

    def transform(self, quality: int) -> Floats:
        """From the gradient of a coded position's latents to that of its decoded values [channels, C * patch^2], by the linear path."""
        stored = self.bundle.stored["compressor"]
        transform = np.eye(self.bundle.config.compressor.prior.channels, dtype=np.float32)
        if any(name.startswith("leave.") for name in stored):
            # patches of latents have a transform of their own
            transform = unpacked(stored, {"leave.weight": "float32"})["leave.weight"][:, :, 0, 0].T
        gain = at_quality(unpacked(stored, {"log_inverse_gain": "float32"})["log_inverse_gain"], quality)
        transform = np.exp(gain)[:, None] * transform
        if self.bundle.config.compressor.step_octaves:
            # the last channel is the map of steps
            transform[-1] = 0
        return transform
