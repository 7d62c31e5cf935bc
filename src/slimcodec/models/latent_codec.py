"""The exact entropy stage: values of the compressor to bytes and back, through the integer prior and the symbol tables."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Pass:
    """One batch of symbols in coding order, with the table index of each."""

    symbols: Integers
    indices: NDArray[np.uint8]


@dataclass(frozen=True)
class CodedLatent:
    """What a payload holds: the passes (hyper-latents, anchors, the rest) and the decoded values [1, C, h, w].

    ``map_passes`` come first: those of the map of steps, in a bundle with one.
    """

    passes: tuple[Pass, ...]
    values: Tensor
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
    def from_tensors(cls, tensors: dict[str, Tensor], config: PriorConfig, *, steps: bool) -> LatentCodec:
        """The exact stage of a bundle's part ``prior``: integer prior and symbol tables; ``ValueError`` where they do not fit."""
        tensors = dict(tensors)
        arrays = {name: tensors.pop(f"tables.{name}").numpy() for name in ("frequencies", "radii")}
        tables = SymbolTables.from_arrays(arrays)
        if len(tables) != SCALES:
            raise ValueError(f"{len(tables)} symbol tables in place of {SCALES}")
        # its float twin tells the shapes, and costs no memory
        with torch.device("meta"):
            layers = float_prior(config).layers
        shapes = {
            f"{name}.{key}": tuple(value.shape)
            for name, layer in layers.items()
            for key, value in layer.named_parameters()
        }
        check_shapes(shapes, {name: value for name, value in tensors.items() if name in shapes})
        return cls(ExactPrior.from_tensors(config, tensors), tables, steps=steps)

    @torch.no_grad()
    def quantise(self, values: Tensor, hyper: Tensor, quality: int) -> CodedLatent:
        """Symbols of values y [1, C, h, w] and hyper-latents [1, Ch, ceil(h/4), ceil(w/4)], both floating point."""
        height, width = values.shape[2:]
        hyper_symbols = hyper.permute(0, 2, 3, 1).round().clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT).long()
        passes = [Pass(_flat(hyper_symbols), self._hyper_indices(quality, hyper_symbols.shape))]
        features = self.prior.features(hyper_symbols, quality, height, width)
        y = values.permute(0, 2, 3, 1).double()
        grid = torch.zeros(y.shape, dtype=torch.int64, device=y.device)
        map_passes: tuple[Pass, ...] = ()
        if self.steps:
            steps = y[0, :, :, -1].round().int().cpu().numpy()
            map_passes = tuple(Pass(*call) for call in write_map(steps))
            self._place(grid, steps)
        flat, flat_grid = y[..., : self.coded].flatten(1, 2), grid.view(1, -1, y.shape[3])
        for number, at in enumerate(checkerboard(y)):
            mean, index = self._parameters(features, grid, quality, first=number == 0)
            # ties and float noise matter only here, at the encoder: the decoder is told the symbols
            residual = flat.index_select(1, at) - mean * 2.0**-MEAN_BITS
            symbols = residual.round().clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT).long()
            flat_grid[..., : self.coded].index_copy_(1, at, (symbols << MEAN_BITS) + mean)
            passes.append(Pass(_flat(symbols), _flat(index).astype(np.uint8)))
        return CodedLatent(tuple(passes), _values(grid), map_passes)

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
        passes: list[Pass] = []

        def symbols_of(indices: NDArray[np.uint8]) -> Integers:
            symbols = decoder.decode(indices)
            passes.append(Pass(symbols, indices))
            return symbols

        def take(indices: NDArray[np.uint8], shape: tuple[int, ...]) -> Tensor:
            return torch.from_numpy(symbols_of(indices).astype(np.int64)).reshape(shape).to(device)

        device = self.prior.hyper_index.device
        steps = read_map(symbols_of, height, width) if self.steps else None
        before = len(passes)
        channels = len(self.prior.hyper_indices(quality))
        shape = (1, -(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE), channels)
        hyper = take(self._hyper_indices(quality, shape), shape)
        features = self.prior.features(hyper, quality, height, width)
        grid = torch.zeros((1, height, width, self.prior.network.channels), dtype=torch.int64, device=device)
        if steps is not None:
            self._place(grid, steps)
        flat_grid = grid.view(1, -1, grid.shape[3])
        for number, at in enumerate(checkerboard(grid)):
            mean, index = self._parameters(features, grid, quality, first=number == 0)
            symbols = take(_flat(index).astype(np.uint8), tuple(mean.shape))
            flat_grid[..., : self.coded].index_copy_(1, at, (symbols << MEAN_BITS) + mean)
        decoder.finish()
        return CodedLatent(tuple(passes[before:]), _values(grid), tuple(passes[:before]))

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

    def _parameters(self, features: Tensor, grid: Tensor, quality: int, first: bool) -> tuple[Tensor, Tensor]:
        if first:
            mean, index = self.prior.first_pass(features, quality)
        else:
            mean, index = self.prior.second_pass(features, grid, quality)
        return mean[..., : self.coded], index[..., : self.coded]

    @staticmethod
    def _place(grid: Tensor, steps: Integers) -> None:
        """Puts a map of steps in the last channel of a grid [1, h, w, C]."""
        grid[0, :, :, -1] = torch.from_numpy(steps).to(grid) << MEAN_BITS

    def _hyper_indices(self, quality: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        channels = self.prior.hyper_indices(quality).cpu().numpy().astype(np.uint8)
        return np.tile(channels, shape[1] * shape[2])


def _flat(x: Tensor) -> Integers:
    return x.reshape(-1).cpu().numpy().astype(np.int32)


def _values(grid: Tensor) -> Tensor:
    return (grid.permute(0, 3, 1, 2).double() * 2.0**-MEAN_BITS).float()
