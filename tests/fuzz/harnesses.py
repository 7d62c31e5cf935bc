"""What a fuzzer runs: a function of any bytes for each way into the package that takes bytes of strangers.

Each returns whether the bytes were accepted. ``SlimError`` is a refusal; any other exception, and any two parts that disagree on
what was accepted, is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import reference_coder
from fuzz.mutator import GOLDEN, MAX_PIXELS, sealed

import slimcodec
from slimcodec.codec import Codec
from slimcodec.container import pack, unpack
from slimcodec.entropy.caption import Caption, decode_caption, encode_caption, normalise_caption
from slimcodec.entropy.coder import SymbolDecoder, SymbolEncoder
from slimcodec.entropy.tables import SymbolTables
from slimcodec.errors import FormatError, SlimError

TABLES = SymbolTables.gaussian([0.04, 0.3, 0.9, 4.0])
#: most symbols of one call of the entropy decoder, and most calls
SYMBOLS, CALLS = 64, 3


def container(data: bytes) -> bool:
    """Bytes as a file: header, caption section and checksum; what is accepted packs to the same bytes again."""
    try:
        parts = unpack(data)
        info = slimcodec.inspect(data)
    except SlimError:
        return False
    assert pack(parts) == data
    assert (info.width, info.height) == (parts.width, parts.height)
    return True


def behind_checksum(data: bytes) -> bool:
    """Bytes as a file without its checksum, which is added: damage alone never gets that far."""
    return container(sealed(data))


def caption(data: bytes) -> bool:
    """Bytes as a caption section; a text that is accepted can be written anew, and reads back as it is normalised."""
    try:
        text = decode_caption(data).text
    except SlimError:
        return False
    try:
        again = encode_caption(text or "", ())
    except SlimError:  # a tag, blanks only, or over 1024 bytes once normalised
        return True
    assert decode_caption(again) == Caption(normalise_caption(text or ""), None)
    return True


def entropy(data: bytes) -> bool:
    """A byte for the number of calls, two for each one's table indices, then a payload; compared with plain integers.

    The range coder and the reference in tests/reference_coder.py read the same symbols or both refuse, and what is accepted to
    the end is what both write.
    """
    calls = min(data[0] % CALLS + 1, (len(data) - 1) // 2) if data else 0
    indices = [indices_of(data[1 + 2 * n], data[2 + 2 * n]) for n in range(calls)]
    payload = data[1 + 2 * calls :]
    decoder = SymbolDecoder(TABLES, payload)
    wanted: list[list[int]] | None
    try:
        wanted = reference_coder.decode(plain_tables(), payload, indices)
    except reference_coder.NoSymbol:
        wanted = None
    try:
        symbols = [decoder.decode(np.array(some, np.uint8)) for some in indices]
    except FormatError:
        assert wanted is None, "the range coder refuses what the reference reads"
        return False
    assert wanted == [some.tolist() for some in symbols], (
        "the range coder reads other symbols than the reference"
    )
    written = reference_coder.encode(plain_tables(), list(zip(wanted, indices, strict=True)))
    encoder = SymbolEncoder(TABLES)
    for values, some in zip(symbols, indices, strict=True):
        encoder.encode(values, np.array(some, np.uint8))
    assert encoder.finish() == written, "the range coder writes other bytes than the reference"
    try:
        decoder.finish()
    except FormatError:
        assert payload != written
        return False
    assert payload == written
    return True


def picture(data: bytes) -> bool:
    """Bytes as a file that the miniature bundle decodes to a picture, without denoising steps."""
    try:
        made = _codec().decode(data, steps=0, max_pixels=MAX_PIXELS)
    except SlimError as error:
        assert str(error)
        return False
    info = slimcodec.inspect(data)
    assert made.size == (info.width, info.height)
    return True


HARNESSES: dict[str, Callable[[bytes], bool]] = {
    function.__name__: function for function in (container, behind_checksum, caption, entropy, picture)
}


def indices_of(count: int, seed: int) -> list[int]:
    """Table indices of a call: up to ``SYMBOLS`` of them, in an order that depends on the seed."""
    return [(seed + n * n * (seed | 1)) % len(TABLES) for n in range(count % (SYMBOLS + 1))]


@cache
def plain_tables() -> list[list[int]]:
    ends = np.cumsum(2 * TABLES.radii + 2)
    return [part.tolist() for part in np.split(TABLES.frequencies, ends[:-1])]


@cache
def _codec() -> Codec:
    return slimcodec.load(GOLDEN / "small", dtype="float32")
