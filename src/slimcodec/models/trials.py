"""Values by trial: where the analysis strays from its linear path, both are coded, and every position takes the better. No torch.

The branch of the analysis is trained on photos. On patterns that photos do not have it may answer with values without bound,
which cost many bits and mean another picture; values of the linear path decode well nearly everywhere. Files and decoder know
nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from slimcodec.models.config import OPEN, CompressorConfig
from slimcodec.models.latent_codec import LatentCodec
from slimcodec.models.runtime import Run

Floats = NDArray[np.float32]
#: side in positions, odd, of the windows over which values are compared
WINDOW = 5
#: root mean square in steps of quantisation, and share of the linear path's (and of ``FLOOR`` steps), by which the values of
#: photos leave the linear path; one photo in hundreds goes further
FAR, SHARE, FLOOR = 1.0, 0.55, 0.25
#: positions a side that are tried together, and around them, where neighbours look at each other in synthesis and prior
BLOCK, MARGIN = 16, 4
#: squared steps that a bit is worth: the slope of error over bits of photos, which is 0.18 to 0.23 at all qualities
BIT = 0.2
#: strengths of the linear path that are tried; at low qualities a strong pattern is not worth its bits
STRENGTHS = (1.0, 0.5, 0.25)
#: steps of refinement of the linear path's values by what synthesis makes of them, and the share of the error that each takes
REFINEMENTS, RATE = 3, 0.5


@dataclass(frozen=True)
class Trials:
    """Tries values of latents [1, C, h, w] under an interest [1, 1, h, w] at a quality; ``run`` runs a network by its name."""

    run: Run
    coder: LatentCodec
    config: CompressorConfig
    quality: int

    def bounded(self, latent: Floats, values: Floats, interest: Floats) -> Floats:
        """The analysis' values [1, channels, h / patch, w / patch], in the blocks where they stray the best that was tried."""
        patch, linear = self.config.patch, self._linear(latent, interest)
        # in the steps of the region of interest everywhere
        finer = 2.0 ** (self.config.step_octaves * linear[:, -1:]) if self.config.step_octaves else 1.0
        blocks = strays(values * finer, linear * finer)
        if blocks:
            values = values.copy()
        for block in blocks:
            top, left = (BLOCK * place for place in block)
            rows, columns = (slice(max(start - MARGIN, 0), start + BLOCK + MARGIN) for start in (top, left))
            fine_rows, fine_columns = (slice(patch * one.start, patch * one.stop) for one in (rows, columns))
            best = self.best(
                linear[..., rows, columns],
                values[..., rows, columns],
                interest[..., fine_rows, fine_columns],
            )
            inner = best[..., top - rows.start :, left - columns.start :][..., :BLOCK, :BLOCK]
            values[..., top : top + BLOCK, left : left + BLOCK] = inner
        return values

    def best(self, linear: Floats, values: Floats, interest: Floats) -> Floats:
        """Of the analysis' values, the linear path's and a mixture by position those of the least error and bits."""
        coded = self.coder.coded
        tried = [values, *(_with_map(strength * linear[:, :coded], linear) for strength in STRENGTHS)]
        refined = linear
        for _ in range(REFINEMENTS):
            lost = self._lost(linear, refined, interest)
            refined = _with_map(refined[:, :coded] + np.float32(RATE) * lost, linear)
        tried.append(refined)
        costs = [self._cost(linear, one, interest) for one in tried]
        choice = np.stack([_mean(cost, 3) for cost in costs]).argmin(0)
        tried.append(np.take_along_axis(np.concatenate(tried), choice[None, None], 0))
        totals = [cost.sum() for cost in (*costs, self._cost(linear, tried[-1], interest))]
        return tried[int(np.argmin(totals))]

    def _linear(self, latent: Floats, interest: Floats) -> Floats:
        return self.run("analyse_linearly", latent, np.array([self.quality]), interest)[0]

    def _lost(self, linear: Floats, values: Floats, interest: Floats) -> Floats:
        """What the latent of the ``linear`` values has and others lack [1, coded channels, h, w], in steps of quantisation."""
        (decompressed,) = self.run("synthesise", values, np.array([self.quality]))
        lost = linear - self._linear(decompressed, interest)
        return lost[:, : self.coder.coded] / np.float32(OPEN)

    def _cost(self, linear: Floats, values: Floats, interest: Floats) -> Floats:
        """Squared error in steps, and what the bits are worth [h, w]."""
        (hyper,) = self.run("hyper_analyse", values, np.array([self.quality]))
        symbols = self.coder.quantise(values, hyper, self.quality)
        lost = self._lost(linear, symbols.values, interest)
        return np.square(lost).sum((0, 1)) + BIT * self.coder.bit_map(symbols)


def strays(values: Floats, linear: Floats) -> list[tuple[int, int]]:
    """Where values [1, C, h, w] leave those of the linear path further than photos' do: the blocks, by row and column."""

    def size(x: Floats) -> Floats:
        return np.sqrt(_mean(np.square(x).mean((0, 1)), WINDOW))

    beyond = size(values - linear) > np.minimum(SHARE * (size(linear) + FLOOR), FAR)
    rows, columns = (places // BLOCK for places in beyond.nonzero())
    return sorted(set(zip(rows.tolist(), columns.tolist(), strict=True)))


def _mean(x: Floats, side: int) -> Floats:
    """Means of [h, w] over the window around every position; the border is repeated."""
    return sliding_window_view(np.pad(x, side // 2, "edge"), (side, side)).mean((2, 3))


def _with_map(coded: Floats, linear: Floats) -> Floats:
    """Values with the map of steps that the linear path's have, if any."""
    return np.concatenate([coded, linear[:, coded.shape[1] :]], 1)
