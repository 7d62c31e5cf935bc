"""Caption guidance: moves a decoded latent towards what the bundle's taggers know the caption by.

Classifier guidance (Dhariwal & Nichol 2021, equation 10) with a linearised decoder: x = D(z0) + S (z - z0), S the KLT synthesis of
the autoencoder. The loop runs the taggers on a small view of the picture and no decoder; the gradient of a tagger is a forward graph
(``gradient_graph``). Each step, another tagger sees another view: what pleases one network at one place is no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from slimcodec.models.autoencoder import PATCH
from slimcodec.models.captioner import Tagger
from slimcodec.models.gradient_graph import STRIDE, gradient_graph

#: pixels of the short side of a view, and at most of the long one
VIEW_SIDE, LONGEST_VIEW = 192, 768
#: largest cyclic shift of a view, as a share of a side
SHIFT = 0.05
#: each step is this much of the one before
DECAY = 0.75
#: directions follow what was lost to this power: what the file keeps well hardly moves
LOST_POWER = 1.5


class CaptionGuide:
    """Guides pictures by captions with some taggers of one vocabulary; serves several threads."""

    def __init__(self, taggers: Sequence[Tagger], synthesis: Tensor) -> None:
        """``synthesis`` [3 * 16 * 16, C]: the linear path of the decoder, in the order of ``pixel_unshuffle``."""
        self.sessions = [_session(gradient_graph(tagger)) for tagger in taggers]
        self.tags = taggers[0].config.tags
        self.synthesis = synthesis.detach().float().cpu()

    def change(
        self, pixels: Tensor, tag: int, lost: Tensor, *, strength: float, steps: int, seed: int
    ) -> Tensor:
        """The change [1, C, h, w] of the latent of a decoded picture, ``pixels`` [1, 3, 16h, 16w] uint8, towards a tag.

        ``lost`` [C] is the standard deviation of what the compressor lost. The change has a root mean square of at most
        ``strength`` in those units. ``seed`` draws the views.
        """
        rng = np.random.Generator(np.random.Philox(key=seed))
        rows, columns = (side // PATCH for side in pixels.shape[2:])
        cell = _cell(rows, columns)
        basis = self._basis(cell)
        picture = F.interpolate(pixels.cpu(), (rows * cell, columns * cell), mode="bilinear", antialias=True)
        picture = picture.float() / 127.5 - 1
        target = np.zeros((1, self.tags), np.float32)
        target[0, tag] = 1
        lost = lost.detach().float().cpu()[:, None, None]
        shares = DECAY ** np.arange(steps)
        change = torch.zeros(1, len(lost), rows, columns)
        for step, share in enumerate(shares / shares.sum()):
            view = picture + F.pixel_shuffle(F.conv2d(change, basis), cell)
            gradient = _gradient(self.sessions[step % len(self.sessions)], view, target, rng)
            direction = F.conv2d(F.pixel_unshuffle(gradient, cell), basis.transpose(0, 1)) * lost**LOST_POWER
            # few large values would take most of a step: they are clipped at one standard deviation
            direction = _unit(_unit(direction).clamp(-1, 1))
            change = change + strength * float(share) * lost * direction
        return change

    def apply(self, pixels: Tensor, change: Tensor, rows: int) -> Tensor:
        """The picture [1, 3, 16h, 16w] uint8 after a change [1, C, h, w], by the linear path, ``rows`` positions at a time."""
        basis = self._basis(PATCH) * 127.5
        bands = zip(pixels.cpu().split(rows * PATCH, 2), change.split(rows, 2), strict=True)
        moved = [band + F.pixel_shuffle(F.conv2d(part, basis), PATCH) for band, part in bands]
        return torch.cat([band.round_().clamp_(0, 255).to(torch.uint8) for band in moved], 2)

    def _basis(self, cell: int) -> Tensor:
        """The synthesis at ``cell`` pixels a side of a latent position, as the kernel [3 * cell * cell, C, 1, 1]."""
        basis = self.synthesis.T.reshape(-1, 3, PATCH, PATCH)
        if cell != PATCH:
            basis = F.interpolate(basis, (cell, cell), mode="bilinear", antialias=True)
        return basis.flatten(1).T[:, :, None, None].contiguous()


def _cell(rows: int, columns: int) -> int:
    """Pixels a side of a latent position in a view."""
    cell = min(VIEW_SIDE / min(rows, columns), LONGEST_VIEW / max(rows, columns))
    return max(1, min(PATCH, round(cell)))


def _gradient(session: Any, picture: Tensor, target: Any, rng: np.random.Generator) -> Tensor:
    """The gradient [1, 3, H, W] of log p(target) for a picture seen shifted and mirrored at random."""
    size = picture.shape[2:]
    shifts = [int(rng.integers(-int(SHIFT * side), int(SHIFT * side) + 1)) for side in size]
    mirrored = bool(rng.random() < 0.5)
    view = torch.roll(picture, shifts, (2, 3))
    view = view.flip(3) if mirrored else view
    seen = [max(STRIDE, round(side / STRIDE) * STRIDE) for side in size]
    if seen != list(size):
        view = F.interpolate(view, seen, mode="bilinear")
    found = session.run(["gradient"], {"view": view.contiguous().numpy(), "target": target})[0]
    gradient = torch.from_numpy(found)
    if seen != list(size):
        gradient = F.interpolate(gradient, size, mode="bilinear")
    gradient = gradient.flip(3) if mirrored else gradient
    return torch.roll(gradient, [-shift for shift in shifts], (2, 3))


def _unit(x: Tensor) -> Tensor:
    """x over its root mean square."""
    return x / x.square().mean().sqrt().clamp(min=1e-20)


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # idle threads that wait busily take the processor from torch's
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
