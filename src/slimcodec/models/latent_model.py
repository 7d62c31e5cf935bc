"""What the codec asks of a latent diffusion model, and how it works on large pictures in tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from slimcodec.models.pretrained.references import PartReference

#: side of a tile in latent positions: 1024 pixels at 16 pixels a position
TILE = 64


@dataclass(frozen=True)
class CaptionEmbedding:
    """Captions as a denoiser reads them: hidden states [B, tokens, D] and, for SDXL, the pooled states [B, P]."""

    states: Tensor
    pooled: Tensor | None = None


class LatentModel(Protocol):
    """A latent diffusion model: ours (``native``), or a pipeline of diffusers (``pretrained.pipeline``).

    Pictures are [B, 3, H, W] in [-1, 1], latents [B, C, H / stride, W / stride], both float32. Every network is loaded when
    a method first needs it. ``SlimError`` names a network that the model lacks, and why.
    """

    @property
    def stride(self) -> int:
        """Pixels a side of a latent position; no weights are read for it."""

    @property
    def references(self) -> tuple[PartReference, ...]:
        """The pretrained parts that the model is made of; () for one whose weights a bundle holds."""

    @property
    def encoder_radius(self) -> int | None:
        """Latent positions that an encoded value depends on to each side; None: ``encode`` divides large pictures itself."""

    @property
    def decoder_radius(self) -> int | None:
        """Latent positions that a decoded pixel depends on to each side; None: ``decode`` divides large latents itself."""

    @property
    def enhancer_tile(self) -> int | None:
        """Side in latent positions that ``enhance`` works on best; None: any."""

    @property
    def guidance_unavailable(self) -> str:
        """Why a tagger cannot guide this model's latents; "" where it can."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures whose sides are multiples of ``stride``."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents, near [-1, 1] and not clipped."""

    def embed_captions(self, captions: Sequence[str | None]) -> CaptionEmbedding:
        """Captions as ``enhance`` takes them; None is no caption."""

    def enhance(
        self,
        latents: Tensor,
        quality: int,
        steps: int,
        noise: Tensor,
        captions: CaptionEmbedding,
        no_captions: CaptionEmbedding,
        text_scale: float = 1.0,
    ) -> Tensor:
        """Enhanced latents of decompressed ones, after ``steps`` >= 1 denoising steps.

        ``noise``: standard normal, of the latents' shape (``seeded_noise``). ``text_scale``: classifier-free guidance (Ho &
        Salimans 2022), 1 = off.
        """

    def error_scale(self, quality: int) -> Tensor:
        """Standard deviation [C] of what compression loses at a quality."""

    def offload(self) -> None:
        """From now on the device holds one network at a time, that which runs."""

    def make_room(self, module: Any = None) -> None:
        """With ``offload``: takes the network on the device away, and brings another ``module`` there."""


def tiled(
    function: Callable[..., Tensor],
    *inputs: Tensor,
    margin: int | None,
    cell_in: int = 1,
    cell_out: int = 1,
    tile: int = TILE,
) -> Tensor:
    """``function(*inputs)`` for a convolutional function, computed on overlapping tiles.

    Inputs are [B, C, rows * cell_in, columns * cell_in]. The function turns a cell of ``cell_in`` into one of ``cell_out``
    and looks at most ``margin`` cells to each side, so every kept value equals that of the untiled call. Without a margin
    the function divides its input itself.
    """
    if margin is None:
        return function(*inputs)
    rows, columns = (length // cell_in for length in inputs[0].shape[2:])
    if rows <= tile + 2 * margin and columns <= tile + 2 * margin:
        return function(*inputs)
    result: Tensor | None = None
    for top in range(0, rows, tile):
        for left in range(0, columns, tile):
            bottom, right = min(top + tile, rows), min(left + tile, columns)
            y0, x0 = max(top - margin, 0), max(left - margin, 0)
            y1, x1 = min(bottom + margin, rows), min(right + margin, columns)
            place = (..., slice(y0 * cell_in, y1 * cell_in), slice(x0 * cell_in, x1 * cell_in))
            piece = function(*(x[place] for x in inputs))
            if result is None:
                result = piece.new_empty(*piece.shape[:2], rows * cell_out, columns * cell_out)
            inner = piece[
                :,
                :,
                (top - y0) * cell_out : (bottom - y0) * cell_out,
                (left - x0) * cell_out : (right - x0) * cell_out,
            ]
            result[:, :, top * cell_out : bottom * cell_out, left * cell_out : right * cell_out] = inner
    assert result is not None
    return result


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of tiles of ``tile`` that cover ``length`` and overlap by at least ``overlap``, evenly spread."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def blended(function: Callable[..., Tensor], *inputs: Tensor, tile: int = TILE, overlap: int = 16) -> Tensor:
    """``function`` of latents of one size, for a function that looks at the whole tile (attention, normalisation).

    Neighbouring tiles are cross-faded over their overlap, so that no seam shows.
    """
    height, width = inputs[0].shape[2:]
    overlap = min(overlap, tile // 2)
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return function(*inputs)
    total = torch.zeros_like(inputs[0])
    weights = inputs[0].new_zeros(1, 1, height, width)

    def fade(size: int) -> Tensor:
        ramp = torch.arange(1, size + 1, dtype=torch.float32)
        return torch.minimum(ramp, ramp.flip(0)).clamp(max=overlap) / overlap

    for top in rows:
        for left in columns:
            place = (..., slice(top, min(top + tile, height)), slice(left, min(left + tile, width)))
            piece = function(*(x[place] for x in inputs))
            weight = (fade(piece.shape[2])[:, None] * fade(piece.shape[3])).to(piece.device)
            total[place] += piece * weight
            weights[place] += weight
    return total / weights
