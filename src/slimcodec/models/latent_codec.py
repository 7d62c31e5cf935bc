"""The exact entropy stage: values of the compressor to bytes and back, through the integer prior and the symbol tables. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimcodec.entropy.coder import SymbolDecoder, SymbolEncoder
from slimcodec.entropy.step_map import map_calls, read_map, write_map
from slimcodec.entropy.tables import SymbolTables
from slimcodec.models.config import HYPER_STRIDE, MEAN_BITS, SCALES, PriorConfig
from slimcodec.models.runtime import Run, check_shapes

#: symbols beyond this are clipped; the tables' escape carries 16 bits
SYMBOL_LIMIT = 32767
#: positions whose parameters are computed at a time: the contexts of a large picture would fill memory
PIECE = 4096
#: no input of an exact layer is larger: 15-bit symbols on the 1/16 grid plus their means
INPUT_LIMIT = 2**20
Integers = NDArray[np.int32]
#: gives the symbols of a pass by their table indices, and in the two passes over the grid also by positions [N] and means
SymbolSource = Callable[[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None], NDArray[Any]]


@dataclass(frozen=True)
class Pass:
    """One batch of symbols in coding order, with the table index of each."""

    symbols: Integers
    indices: NDArray[np.uint8]


@dataclass(frozen=True)
class CodedLatent:
    """What a payload holds: the passes in order, and the decoded values [1, C, h, w], float32.

    The last three passes are hyper-latents, anchors and the rest; before them come those of the map of steps, if any.
    """

    passes: tuple[Pass, ...]
    values: NDArray[np.float32]

    def symbols(self) -> Integers:
        """All symbols in coding order."""
        return np.concatenate([part.symbols for part in self.passes])


def anchor_mask(height: int, width: int) -> NDArray[np.bool_]:
    """The checkerboard: True at the positions [h, w] that are coded in the first pass."""
    return (np.arange(height)[:, None] + np.arange(width)) % 2 == 0


class LatentCodec:
    """Codes one latent at a time; encoder and decoder run the same integer networks on the same integers."""

    def __init__(
        self, run: Run, tensors: Mapping[str, NDArray[Any]], config: PriorConfig, *, steps: bool
    ) -> None:
        """``tensors``: a bundle's part ``prior``; ``ValueError`` or ``KeyError`` where they do not fit, or are not exact.

        ``steps``: the last channel is a map of steps, zeros and ones that are coded for themselves.
        """
        missing = {"tables.frequencies", "tables.radii"} - set(tensors)
        if missing:
            raise ValueError(f"the symbol tables lack {', '.join(sorted(missing))}")
        self.tables = SymbolTables(tensors["tables.frequencies"], tensors["tables.radii"])
        if len(self.tables) != SCALES:
            raise ValueError(f"{len(self.tables)} symbol tables in place of {SCALES}")
        check_prior({name: value for name, value in tensors.items() if "tables." not in name}, config)
        self.run, self.channels, self.steps = run, config.channels, steps
        #: channels that the prior codes
        self.coded = config.channels - steps

    def quantise(self, values: NDArray[Any], hyper: NDArray[Any], quality: int) -> CodedLatent:
        """Symbols of values y [1, C, h, w] and hyper-latents [1, Ch, ceil(h/4), ceil(w/4)], both floating point."""
        y, hyper = values.transpose(0, 2, 3, 1), hyper.transpose(0, 2, 3, 1)
        height, width = y.shape[1:3]
        flat = y[0, ..., : self.coded].reshape(height * width, -1).astype(np.float64)
        steps = y[0, ..., -1].round().astype(np.int32) if self.steps else None
        map_passes = [] if steps is None else [Pass(*call) for call in write_map(steps)]

        def symbols_of(
            index: NDArray[Any], at: NDArray[Any] | None, mean: NDArray[Any] | None
        ) -> NDArray[Any]:
            # ties and float noise matter only here, at the encoder: the decoder is told the symbols
            exact = hyper if at is None or mean is None else flat[at] - mean * 2.0**-MEAN_BITS
            return exact.round().clip(-SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int64)

        passes, decoded = self._code(symbols_of, steps, height, width, quality)
        return CodedLatent((*map_passes, *passes), decoded)

    def write(self, coded: CodedLatent) -> bytes:
        """The payload of a quantised latent."""
        encoder = SymbolEncoder(self.tables)
        for part in coded.passes:
            encoder.encode(part.symbols, part.indices)
        return encoder.finish()

    def read(self, payload: bytes, height: int, width: int, quality: int) -> CodedLatent:
        """The latent of ``height`` x ``width`` positions that ``write`` made a payload of."""
        decoder = SymbolDecoder(self.tables, payload)
        map_passes: list[Pass] = []

        def map_symbols(indices: NDArray[np.uint8]) -> Integers:
            map_passes.append(Pass(decoder.decode(indices), indices))
            return map_passes[-1].symbols

        def symbols_of(index: NDArray[Any], at: object, mean: object) -> NDArray[Any]:
            return decoder.decode(_flat(index, np.uint8)).astype(np.int64).reshape(index.shape)

        steps = read_map(map_symbols, height, width) if self.steps else None
        passes, decoded = self._code(symbols_of, steps, height, width, quality)
        decoder.finish()
        return CodedLatent((*map_passes, *passes), decoded)

    def bit_map(self, coded: CodedLatent) -> NDArray[np.float32]:
        """Ideal bits of every latent position [h, w]; those of a hyper-latent are shared by its 4x4 positions."""
        height, width = coded.values.shape[2:]
        *steps, hyper, first, rest = (self.tables.bits(part.symbols, part.indices) for part in coded.passes)
        rows, columns = -(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE)
        spread = hyper.reshape(rows, columns, -1).sum(2).repeat(HYPER_STRIDE, 0).repeat(HYPER_STRIDE, 1)
        spread = spread[:height, :width]
        result = spread * (hyper.sum() / max(spread.sum(), 1e-12))
        at = anchor_mask(height, width)
        for chosen, bits in ((at, first), (~at, rest)):
            if chosen.any():
                result[chosen] += bits.reshape(int(chosen.sum()), -1).sum(1)
        for call, bits in zip(map_calls(height, width), steps[1:], strict=False):
            result.reshape(-1)[call.positions] += bits
        return result.astype(np.float32)

    def region(self, coded: CodedLatent) -> NDArray[np.bool_] | None:
        """Where the picture was coded with the fine step [h, w]: the region of interest; None where every step is alike."""
        coarse = coded.values[0, -1] > 0.5
        return ~coarse if self.steps and coarse.any() else None

    def _code(
        self, symbols_of: SymbolSource, steps: Integers | None, height: int, width: int, quality: int
    ) -> tuple[tuple[Pass, ...], NDArray[np.float32]]:
        """The passes (hyper-latents, anchors, the rest) and the decoded values [1, C, h, w] of a latent with a map of steps."""
        passes = []
        level = np.array([quality], np.int64)

        def code(
            index: NDArray[Any], at: NDArray[Any] | None = None, mean: NDArray[Any] | None = None
        ) -> NDArray[Any]:
            symbols = symbols_of(index, at, mean)
            passes.append(Pass(_flat(symbols, np.int32), _flat(index, np.uint8)))
            return symbols

        rows, columns = -(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE)
        (indices,) = self.run("hyper_indices", level)
        hyper = code(np.broadcast_to(indices, (1, rows, columns, len(indices))))
        (features,) = self.run("features", hyper, level)
        features = np.ascontiguousarray(features[:, :height, :width])
        grid = np.zeros((1, height, width, self.channels), np.int32)
        if steps is not None:
            grid[0, ..., -1] = steps << MEAN_BITS
        flat = grid.reshape(-1, self.channels)
        anchors = anchor_mask(height, width).reshape(-1)
        for name, inputs, chosen in (
            ("first_pass", (features,), anchors),
            ("second_pass", (features, grid), ~anchors),
        ):
            at = np.flatnonzero(chosen)
            # a picture of one position has no second pass, and still a batch of no symbols
            pieces = np.split(at, range(PIECE, len(at), PIECE))
            found = [self.run(name, *inputs, piece, level) for piece in pieces]
            mean, index = (np.concatenate(parts, 1)[0, :, : self.coded] for parts in zip(*found, strict=True))
            flat[at, : self.coded] = (code(index, at, mean) << MEAN_BITS) + mean
        decoded = grid.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(2.0**-MEAN_BITS)
        return tuple(passes), decoded


def check_prior(tensors: Mapping[str, NDArray[Any]], config: PriorConfig) -> None:
    """``ValueError`` unless integer tensors are those that a configuration asks for, and every sum is exact in float64."""
    shapes: dict[str, tuple[int, ...]] = {"hyper_index": (config.levels, config.hyper_channels)}
    for name, layer in config.layers().items():
        shapes[f"{name}.weight"] = (layer.outputs, layer.inputs)
        shapes[f"{name}.bias"] = (layer.levels, layer.outputs)
        shapes[f"{name}.meta"] = (2,)
    check_shapes(shapes, tensors)
    for name in config.layers():
        check_layer(*(tensors[f"{name}.{part}"] for part in ("weight", "bias", "meta")))


def check_layer(weight: NDArray[Any], bias: NDArray[Any], meta: NDArray[Any]) -> None:
    """``ValueError`` unless every sum of an exact layer is exact in float64; ``meta``: shift, and whether it has a ReLU."""
    largest = (
        np.abs(weight.astype(np.int32)).sum(1).max() * float(INPUT_LIMIT) + np.abs(bias.astype(float)).max()
    )
    if not (1 <= meta[0] <= 40 and largest < 2.0**52):
        raise ValueError("an exact layer's sums could leave the range in which float64 is exact")


def _flat(x: NDArray[Any], dtype: Any) -> NDArray[Any]:
    return x.reshape(-1).astype(dtype)
