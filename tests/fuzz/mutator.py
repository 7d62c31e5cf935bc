"""Broken ``.slim`` files: any bytes, and structured ones whose checksum fits over broken fields.

Damage without a fitting checksum never passes it, so all that lies behind is reached by structured files only.
Every input is a function of (seed, number): a finding is told by the two.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from pathlib import Path

from slimcodec.container import unpack
from slimcodec.entropy.caption import write_varint

CORPUS = Path(__file__).parent / "corpus"
GOLDEN = Path(__file__).parent.parent / "golden"
#: golden files that came after the first long run: with them, every (seed, number) would be another input
LATER = ("coffee-33x48-q35",)
#: pixels of the largest picture that is decoded: time follows what the header claims
MAX_PIXELS = 1 << 16

_SIDES = (0, 1, 2, 15, 16, 17, 127, 128, 255, 256, 4095, 16384, 65535, 1 << 24, (1 << 24) + 1, (1 << 28) - 1)
_VARINTS = (b"", b"\x80", b"\x80\x00", b"\xff\xff\xff\xff", b"\x80\x80\x80\x00", b"\x80\x80\x80\x80\x01")


@dataclass(frozen=True)
class Fuzzed:
    """An input; ``sealed``: its checksum was made to fit; ``changed``: it is none of the files it was made of."""

    data: bytes
    sealed: bool
    changed: bool


def golden_files(folder: str = "small-files") -> list[bytes]:
    """The whole files that damage begins with."""
    return [path.read_bytes() for path in sorted((GOLDEN / folder).glob("*.slim")) if path.stem not in LATER]


def fuzzed(files: list[bytes], seed: int, number: int) -> Fuzzed:
    """Input ``number`` (from 0) of a seed: every second one structured."""
    rng = random.Random(f"{seed}/{number}")
    data = rng.choice(files)
    made = _structured(data, rng) if number % 2 else any_bytes(data, rng)
    return Fuzzed(made, number % 2 == 1, made not in files)


def sealed(body: bytes) -> bytes:
    """The bytes with the checksum that fits them."""
    return body + zlib.crc32(body).to_bytes(4, "big")


def _structured(data: bytes, rng: random.Random) -> bytes:
    """The file with some fields broken, cut or left out, and a checksum that fits."""
    old = unpack(data)
    flag = 0x80 if old.caption else 0
    fields = [
        data[:1],
        old.bundle_id,
        write_varint(old.width),
        write_varint(old.height),
        bytes([old.quality | flag]),
        old.caption,
        old.payload,
    ]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        # what lies behind the header matters most
        at = rng.choice((0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6))
        if at in (2, 3):
            fields[at] = _varint(rng)
        elif at == 4:
            fields[at] = bytes([rng.choice((rng.randrange(256), rng.randrange(1, 101), 0, 127, flag))])
        elif at == 5:
            fields[at] = _caption(old.caption, rng)
            if fields[4]:
                fields[4] = bytes([fields[4][0] | 0x80])
        else:
            fields[at] = any_bytes(fields[at], rng)
    return sealed(b"".join(fields))


def _varint(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(_VARINTS)
    if kind == 1:
        return rng.randbytes(rng.randrange(1, 6))
    side = rng.choice(_SIDES) if kind == 2 else rng.randrange(1, 300)
    return write_varint(side)


def _caption(old: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    if kind == 0 and old:
        return any_bytes(old, rng)
    if kind == 1:
        return write_varint(rng.choice((0, 1, 2, 4, 5, 1000, (1 << 27) - 1)) << 1)  # a tag's index
    text = rng.randbytes(rng.randrange(0, 24))
    if kind == 2:  # deflate, of a text without end now and then
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        text = deflater.compress(b"a" * rng.choice((1, 1024, 1025, 1 << 20))) + deflater.flush()
    body = bytes([rng.choice((0, 1, 1, rng.randrange(256)))]) + text
    size = rng.choice((len(body), len(body), len(body) + 1, 0, 1, 1025, 1026, 1 << 20))
    return write_varint(size << 1 | 1) + body


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with bits turned over, cut, added, moved or replaced."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(made) + 1)
        kind = rng.randrange(6)
        if kind <= 1 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and at < len(made):
            made[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 3:
            del made[at : at + rng.randrange(1, 9)]
        elif kind == 4:
            made[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 5 and rng.random() < 0.2:
            made = made[:at] if rng.random() < 0.7 else bytearray(rng.randbytes(at))
    return bytes(made)
