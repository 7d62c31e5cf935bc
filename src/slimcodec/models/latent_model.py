"""What the codec asks of a latent diffusion model, and how it works on large pictures in tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from slimcodec.errors import SlimError
from slimcodec.models.pretrained.references import PartReference
from slimcodec.models.storage import Parts

#: side of a tile in latent positions: 1024 pixels at 16 pixels a position
TILE = 64


@dataclass(frozen=True)
class CaptionEmbedding:
    """Captions as a denoiser reads them: hidden states [B, tokens, D] and, for SDXL, the pooled states [B, P]."""

    states: Tensor
    pooled: Tensor | None = None


class LatentModel(ABC):
    """A latent diffusion model: ours (``native``), or a pipeline of diffusers (``pretrained.pipeline``).

    Pictures are [B, 3, H, W] in [-1, 1], latents [B, C, H / stride, W / stride], both float32. Every network is loaded when
    it is first needed. ``SlimError`` names a network that the model lacks, and why.
    """

    #: pixels a side of a latent position
    stride: int
    #: the pretrained parts that the model is made of; () for one whose weights a bundle holds
    references: tuple[PartReference, ...] = ()
    #: why a tagger cannot guide this model's latents; "" where it can
    guidance_unavailable = ""
    #: what ``offload`` has set up
    offloaded: Any = None
    parts: Parts

    @property
    @abstractmethod
    def autoencoder(self) -> Any:
        """The latent space: ``encode``, ``decode``, and the latent positions that each looks to a side.

        ``encoder_radius`` and ``decoder_radius`` are None where it divides large pictures itself.
        """

    @property
    @abstractmethod
    def enhancer(self) -> Any:
        """The UNet with its scheduler, decompressed latents to enhanced ones (see ``Enhancer.forward``).

        ``tile``: side in latent positions that it works on best, None: any.
        """

    @property
    @abstractmethod
    def text_encoder(self) -> Any:
        """Tokenizers and text encoders: captions to a ``CaptionEmbedding``."""

    def embed_captions(self, captions: Sequence[str | None]) -> CaptionEmbedding:
        """Captions as the enhancer takes them; None is no caption."""
        with self.parts.lock, torch.no_grad():
            embedding: CaptionEmbedding = self.text_encoder(captions)
        return embedding

    @property
    def linear_decoder(self) -> Tensor:
        """The linear part of ``decode`` as a matrix [3 * stride * stride, C], rows in the order of ``pixel_unshuffle``."""
        raise SlimError(self.guidance_unavailable)

    def error_scale(self, quality: int) -> Tensor:
        """Standard deviation [C] of what compression loses at a quality."""
        raise SlimError(self.guidance_unavailable)

    @abstractmethod
    def offload(self) -> None:
        """From now on the device holds one network at a time, that which runs."""

    def make_room(self, module: Any = None) -> None:  # noqa: B027  networks that stay on the device need none
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
    rows, columns = (length // cell_in for length in inputs[0].shape[2:])
    if margin is None or max(rows, columns) <= tile + 2 * margin:
        return function(*inputs)

    def tiles(length: int) -> Iterator[tuple[int, int, int, int]]:
        """First and last cell of each tile, without and with the margin."""
        for start in range(0, length, tile):
            stop = min(start + tile, length)
            yield start, stop, max(start - margin, 0), min(stop + margin, length)

    def cells(start: int, stop: int, cell: int) -> slice:
        return slice(start * cell, stop * cell)

    result: Tensor | None = None
    for (top, bottom, y0, y1), (left, right, x0, x1) in product(tiles(rows), tiles(columns)):
        piece = function(*(x[..., cells(y0, y1, cell_in), cells(x0, x1, cell_in)] for x in inputs))
        if result is None:
            result = piece.new_empty(*piece.shape[:2], rows * cell_out, columns * cell_out)
        inner = piece[..., cells(top - y0, bottom - y0, cell_out), cells(left - x0, right - x0, cell_out)]
        result[..., cells(top, bottom, cell_out), cells(left, right, cell_out)] = inner
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

    for top, left in product(rows, columns):
        place = (..., slice(top, top + tile), slice(left, left + tile))
        piece = function(*(x[place] for x in inputs))
        weight = (fade(piece.shape[2])[:, None] * fade(piece.shape[3])).to(piece.device)
        total[place] += piece * weight
        weights[place] += weight
    return total / weights
