"""Caption guidance: moves a decoded picture towards what the bundle's taggers know the caption by. No torch.

Classifier guidance (Dhariwal & Nichol 2021, equation 10) with a linearised decoder: x = D(z0) + S c, S the KLT synthesis of our
autoencoder, whatever model decodes z0. The loop runs the taggers on a small view of the picture and no decoder; the gradient of a
tagger is a network that runs forward (``tag_gradient``). Each step, another tagger sees another view: what pleases one network at
one place is no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimcodec.models.runtime import Run

if TYPE_CHECKING:
    from slimcodec.models.bundle import Bundle

#: pixels of the short side of a view, and at most of the long one
VIEW_SIDE, LONGEST_VIEW = 192, 768
#: sides of what a tagger sees are multiples of its stride
STRIDE = 32
#: largest cyclic shift of a view, as a share of a side
SHIFT = 0.05
#: each step is this much of the one before
DECAY = 0.75
#: directions follow what was lost to this power: what the file keeps well hardly moves
LOST_POWER = 1.5
#: share of a patch, from its edge, over which a jump to the next one is spread; spreading over half a patch loses evidence
JOINT = 0.25
Floats = NDArray[np.float32]


def at_quality(table: Floats, quality: int) -> Floats:
    """The row [C] of a table [levels, C], from quality 1 to 100, at a quality."""
    low, weight = divmod((quality - 1) * (len(table) - 1) / 99, 1)
    rows = table[int(low)], table[min(int(low) + 1, len(table) - 1)]
    return np.asarray(rows[0] * (1 - weight) + rows[1] * weight, np.float32)


def at_side(synthesis: Floats, side: int) -> Floats:
    """A synthesis [3 * P * P, C] of patches, at another side of theirs [3 * side * side, C]."""
    patch = math.isqrt(len(synthesis) // 3)
    patterns = resized(synthesis.T.reshape(-1, 3, patch, patch), (side, side))
    return patterns.reshape(len(patterns), -1).T


class CaptionGuide:
    """Moves one picture towards a tag, by the gradients of a bundle's taggers at small views of it.

    A view has ``cell`` pixels for a side of a patch, and ``basis`` [3 * cell * cell, C] is the synthesis at that size.
    """

    def __init__(
        self, run: Run, bundle: Bundle, synthesis: Floats, size: Sequence[int], tag: int, seed: int
    ) -> None:
        """``run`` runs a network by its name; the bundle has taggers.

        ``synthesis`` [3 * P * P, C]: from what moves, C values a patch, to its P x P pixels, rows in the order of
        ``pixel_unshuffle``. ``size``: height and width of the picture, whole patches. ``seed`` draws the views.
        """
        self.run, self.taggers, self.synthesis = run, len(bundle.config.captioners), synthesis
        self.patch = math.isqrt(len(self.synthesis) // 3)
        self.rows, self.columns = (side // self.patch for side in size)
        cell = min(VIEW_SIDE / min(self.rows, self.columns), LONGEST_VIEW / max(self.rows, self.columns))
        self.cell = max(1, min(self.patch, round(cell)))
        self.basis = at_side(synthesis, self.cell)
        self.target = np.eye(1, len(bundle.vocabulary), tag, dtype=np.float32)
        self.rng = np.random.Generator(np.random.Philox(key=seed))

    def picture(self, latent: Floats) -> Floats:
        """The picture [1, 3, cell * h, cell * w] of values [1, C, h, w] by the synthesis alone."""
        return _shuffled(mixed(self.basis, latent), self.cell)

    def view(self, pixels: NDArray[np.uint8]) -> Floats:
        """A picture [1, 3, P h, P w] as [1, 3, cell * h, cell * w] in [-1, 1]."""
        small = Image.fromarray(pixels[0].transpose(1, 2, 0)).resize(
            (self.columns * self.cell, self.rows * self.cell), Image.Resampling.BILINEAR
        )
        return np.asarray(small, np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1

    def pull(self, step: int, picture: Floats) -> Floats:
        """The gradient [1, C, h, w] of log p(tag), along the basis, of the tagger whose turn it is.

        It sees the picture [1, 3, cell * h, cell * w] shifted and mirrored at random.
        """
        size = picture.shape[2:]
        shifts = [int(self.rng.integers(-int(SHIFT * side), int(SHIFT * side) + 1)) for side in size]
        mirror = slice(None, None, -1 if self.rng.random() < 0.5 else None)
        view = np.roll(picture, shifts, (2, 3))[..., mirror]
        seen = [max(STRIDE, round(side / STRIDE) * STRIDE) for side in size]
        view = np.ascontiguousarray(resized(view, seen, smooth=False))
        (found,) = self.run(f"gradient-{step % self.taggers}", view, self.target)
        gradient = resized(found, size, smooth=False)[..., mirror]
        gradient = np.roll(gradient, [-shift for shift in shifts], (2, 3))
        return mixed(self.basis.T, unshuffled(gradient, self.cell))

    def change(self, pixels: NDArray[np.uint8], lost: Floats, *, strength: float, steps: int) -> Floats:
        """The change [1, C, h, w] of the decoded picture, ``pixels`` [1, 3, P h, P w], towards the tag.

        ``lost`` [C] is the standard deviation of what the file lost. The change has a root mean square of at most
        ``strength`` in those units.
        """
        picture, lost = self.view(pixels), lost[:, None, None]
        shares = DECAY ** np.arange(steps, dtype=np.float32)
        change = np.zeros((1, len(lost), self.rows, self.columns), np.float32)
        for step, share in enumerate(shares / shares.sum()):
            direction = self.pull(step, picture + self.picture(change)) * lost**LOST_POWER
            # few large values would take most of a step: they are clipped at one standard deviation
            direction = unit(unit(direction).clip(-1, 1))
            change = change + strength * share * lost * direction
        return change.astype(np.float32)

    def apply(self, pixels: NDArray[np.uint8], change: Floats, rows: int) -> NDArray[np.uint8]:
        """The picture [1, 3, P h, P w] after a change [1, C, h, w], by the synthesis with its patches joined.

        ``rows`` positions are worked on at a time.
        """
        basis = self.synthesis * np.float32(127.5)
        moved = np.empty_like(pixels)
        for top in range(0, change.shape[2], rows):
            # a position more on either side: the edges of a band have neighbours too
            first = max(top - 1, 0)
            patches = _shuffled(mixed(basis, change[:, :, first : top + rows + 1]), self.patch)
            inner = slice((top - first) * self.patch, (top - first + rows) * self.patch)
            band = slice(top * self.patch, (top + rows) * self.patch)
            difference = _joined(patches, self.patch)[:, :, inner]
            moved[:, :, band] = (pixels[:, :, band] + difference).round().clip(0, 255)
        return moved


def resized(x: NDArray[Any], size: Sequence[int], *, smooth: bool = True) -> Floats:
    """x [..., H, W] at another size, by bilinear interpolation; ``smooth``: averaged where it becomes smaller."""
    if x.shape[-2:] == tuple(size):
        return x.astype(np.float32)
    rows, columns = (_resizing(*sides, smooth) for sides in zip(x.shape[-2:], size, strict=True))
    return rows @ x.astype(np.float32) @ columns.T


def _resizing(before: int, after: int, smooth: bool) -> Floats:
    """The matrix [after, before] that resizes a side."""
    scale = before / after
    reach = max(scale, 1.0) if smooth else 1.0
    centres = (np.arange(after) + 0.5) * scale - 0.5
    weights = (1 - np.abs(np.arange(before) - centres[:, None]) / reach).clip(0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def mixed(matrix: Floats, x: Floats) -> Floats:
    """The product of a matrix [O, I] with every position of x [1, I, h, w]."""
    rows, columns = x.shape[2:]
    return (matrix @ x.reshape(x.shape[1], -1)).reshape(1, -1, rows, columns)


def _shuffled(x: Floats, cell: int) -> Floats:
    """[1, 3 * cell * cell, h, w] to [1, 3, cell * h, cell * w]."""
    rows, columns = x.shape[2:]
    return x.reshape(3, cell, cell, rows, columns).transpose(0, 3, 1, 4, 2).reshape(1, 3, rows * cell, -1)


def _joined(x: Floats, cell: int) -> Floats:
    """x [1, 3, cell * h, cell * w] with the jumps between its cells spread over ``JOINT`` of both: flat areas show no blocks."""
    reach = int(JOINT * cell)
    shares = (0.5 - (np.arange(reach, dtype=np.float32) + 0.5) / (2 * reach)).tolist()
    for axis in (2, 3):
        x = np.moveaxis(x, axis, -1)
        starts = np.arange(cell, x.shape[-1], cell)
        jumps = x[..., starts] - x[..., starts - 1]
        for distance, share in enumerate(shares):
            x[..., starts + distance] -= share * jumps
            x[..., starts - 1 - distance] += share * jumps
        x = np.moveaxis(x, -1, axis)
    return x


def unshuffled(x: Floats, cell: int) -> Floats:
    """[1, C, cell * h, cell * w] to [1, C * cell * cell, h, w], as ``pixel_unshuffle`` does."""
    rows, columns = (side // cell for side in x.shape[2:])
    parts = x.reshape(x.shape[1], rows, cell, columns, cell).transpose(0, 2, 4, 1, 3)
    return parts.reshape(1, -1, rows, columns)


def unit(x: Floats) -> Floats:
    """x over its root mean square."""
    return x / np.maximum(np.sqrt(np.square(x).mean()), np.float32(1e-20))
