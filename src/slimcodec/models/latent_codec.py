"""The exact entropy stage: values of the compressor to bytes and back, through the integer prior and the symbol tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimcodec.entropy.coder import SymbolDecoder, SymbolEncoder
from slimcodec.entropy.step_map import map_calls, read_map, write_map
from slimcodec.entropy.tables import SymbolTables
from slimcodec.models.prior import (
    HYPER_STRIDE,
    MEAN_BITS,
    SCALES,
    ExactPrior,
    PriorConfig,
    anchor_mask,
    checkerboard,
    float_prior,
)
from slimcodec.models.storage import check_shapes

#: symbols beyond this are clipped; the tables' escape carries 16 bits
SYMBOL_LIMIT = 32767
Integers = NDArray[np.int32]
#: gives the symbols of a pass by their table indices, and in the two passes over the grid also by positions [N] and means
SymbolSource = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@dataclass(frozen=True)
class Pass:
    """One batch of symbols in coding order, with the table index of each."""

    symbols: Integers
    indices: NDArray[np.uint8]


@dataclass(frozen=True)
class CodedLatent:
    """What a payload holds: the passes (hyper-latents, anchors, the rest) and the decoded values [1, C, h, w]."""

    passes: tuple[Pass, ...]
    values: Tensor
    #: those of the map of steps, in a bundle with one; they come first
    map_passes: tuple[Pass, ...] = ()

    @property
    def all_passes(self) -> tuple[Pass, ...]:
        """All that is coded, in order."""
        return self.map_passes + self.passes

    def symbols(self) -> Integers:
        """All symbols in coding order."""
        return np.concatenate([part.symbols for part in self.all_passes])


class LatentCodec:
    """Codes one latent at a time; encoder and decoder run the same integer network on the same integers."""

    def __init__(self, prior: ExactPrior, tables: SymbolTables, *, steps: bool = False) -> None:
        """``steps``: the last channel is a map of steps, zeros and ones that are coded for themselves."""
        self.prior, self.tables, self.steps = prior, tables, steps
        #: channels that the prior codes
        self.coded = prior.network.channels - steps

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], config: PriorConfig, device: torch.device, *, steps: bool
    ) -> LatentCodec:
        """The exact stage of a bundle's part ``prior``: integer prior and symbol tables; ``ValueError`` where they do not fit."""
        tensors = dict(tensors)
        arrays = {name: tensors.pop(f"tables.{name}").numpy() for name in ("frequencies", "radii")}
        tables = SymbolTables.from_arrays(arrays)
        if len(tables) != SCALES:
            raise ValueError(f"{len(tables)} symbol tables in place of {SCALES}")
        # its float twin tells the shapes, and costs no memory
        with torch.device("meta"):
            layers = float_prior(config).layers
        shapes = {name: tuple(value.shape) for name, value in layers.named_parameters()}
        check_shapes(shapes, {name: value for name, value in tensors.items() if name in shapes})
        return cls(ExactPrior.from_tensors(config, tensors).to(device), tables, steps=steps)

    @torch.no_grad()
    def quantise(self, values: Tensor, hyper: Tensor, quality: int) -> CodedLatent:
        """Symbols of values y [1, C, h, w] and hyper-latents [1, Ch, ceil(h/4), ceil(w/4)], both floating point."""
        y, hyper = values.permute(0, 2, 3, 1).double(), hyper.permute(0, 2, 3, 1)
        flat = y[..., : self.coded].flatten(1, 2)
        steps = y[0, :, :, -1].round().int().cpu().numpy() if self.steps else None
        map_passes = () if steps is None else tuple(Pass(*call) for call in write_map(steps))

        def symbols_of(index: Tensor, at: Tensor | None, mean: Tensor | None) -> Tensor:
            # ties and float noise matter only here, at the encoder: the decoder is told the symbols
            exact = hyper if at is None or mean is None else flat.index_select(1, at) - mean * 2.0**-MEAN_BITS
            return exact.round().clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT).long()

        height, width = y.shape[1:3]
        passes, decoded = self._code(symbols_of, steps, height, width, quality)
        return CodedLatent(passes, decoded, map_passes)

    def write(self, coded: CodedLatent) -> bytes:
        """The payload of a quantised latent."""
        encoder = SymbolEncoder(self.tables)
        for part in coded.all_passes:
            encoder.encode(part.symbols, part.indices)
        return encoder.finish()

    @torch.no_grad()
    def read(self, payload: bytes, height: int, width: int, quality: int) -> CodedLatent:
        """The latent of ``height`` x ``width`` positions that ``write`` made a payload of."""
        decoder = SymbolDecoder(self.tables, payload)
        map_passes: list[Pass] = []

        def map_symbols(indices: NDArray[np.uint8]) -> Integers:
            map_passes.append(Pass(decoder.decode(indices), indices))
            return map_passes[-1].symbols

        def symbols_of(index: Tensor, at: Tensor | None, mean: Tensor | None) -> Tensor:
            symbols = torch.from_numpy(decoder.decode(_flat(index, np.uint8)).astype(np.int64))
            return symbols.reshape(index.shape).to(index.device)

        steps = read_map(map_symbols, height, width) if self.steps else None
        passes, decoded = self._code(symbols_of, steps, height, width, quality)
        decoder.finish()
        return CodedLatent(passes, decoded, tuple(map_passes))

    def bit_map(self, coded: CodedLatent) -> NDArray[np.float32]:
        """Ideal bits of every latent position [h, w]; those of a hyper-latent are shared by its 4x4 positions."""
        height, width = coded.values.shape[2:]
        hyper, first, rest = (self.tables.bits(part.symbols, part.indices) for part in coded.passes)
        rows, columns = -(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE)
        spread = hyper.reshape(rows, columns, -1).sum(2).repeat(HYPER_STRIDE, 0).repeat(HYPER_STRIDE, 1)
        spread = spread[:height, :width]
        result = spread * (hyper.sum() / max(spread.sum(), 1e-12))
        at = anchor_mask(height, width).numpy()
        for chosen, bits in ((at, first), (~at, rest)):
            if chosen.any():
                result[chosen] += bits.reshape(int(chosen.sum()), -1).sum(1)
        for call, part in zip(map_calls(height, width), coded.map_passes[1:], strict=False):
            result.reshape(-1)[call.positions] += self.tables.bits(part.symbols, part.indices)
        return result.astype(np.float32)

    def region(self, coded: CodedLatent) -> NDArray[np.bool_] | None:
        """Where the picture was coded with the fine step [h, w]: the region of interest; None without a map of steps."""
        return coded.values[0, -1].cpu().numpy() < 0.5 if self.steps else None

    def _code(
        self, symbols_of: SymbolSource, steps: Integers | None, height: int, width: int, quality: int
    ) -> tuple[tuple[Pass, ...], Tensor]:
        """The passes (hyper-latents, anchors, the rest) and the decoded values [1, C, h, w] of a latent with a map of steps."""
        passes = []

        def code(index: Tensor, at: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
            symbols = symbols_of(index, at, mean)
            passes.append(Pass(_flat(symbols, np.int32), _flat(index, np.uint8)))
            return symbols

        rows, columns = -(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE)
        hyper = code(self.prior.hyper_indices(quality).expand(1, rows, columns, -1))
        features = self.prior.features(hyper, quality, height, width)
        grid = hyper.new_zeros((1, height, width, self.prior.network.channels))
        if steps is not None:
            grid[0, :, :, -1] = torch.from_numpy(steps).to(grid) << MEAN_BITS
        flat_grid = grid.view(1, -1, grid.shape[3])
        for number, at in enumerate(checkerboard(grid)):
            if number == 0:
                mean, index = self.prior.first_pass(features, quality)
            else:
                mean, index = self.prior.second_pass(features, grid, quality)
            mean, index = mean[..., : self.coded], index[..., : self.coded]
            symbols = code(index, at, mean)
            flat_grid[..., : self.coded].index_copy_(1, at, (symbols << MEAN_BITS) + mean)
        return tuple(passes), (grid.permute(0, 3, 1, 2).double() * 2.0**-MEAN_BITS).float()


def _flat(x: Tensor, dtype: Any) -> NDArray[Any]:
    return x.reshape(-1).cpu().numpy().astype(dtype)
