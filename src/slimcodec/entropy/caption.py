"""Captions in a few bytes: a vocabulary index, raw UTF-8 or deflated text, as in docs/format.md."""

from __future__ import annotations

import os
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from slimcodec.errors import FormatError, SlimError
from slimcodec.files import read_bounded

MAX_CAPTION_BYTES = 1024
"""Longest caption text, in bytes of UTF-8 (after decompression)."""

MAX_VOCABULARY_BYTES = 1 << 24
MAX_VARINT_BYTES = 4
MAX_TAG_INDEX = (1 << (7 * MAX_VARINT_BYTES - 1)) - 1

_RAW, _DEFLATE = 0, 1
_PREFIXES = ("a photo of a ", "a photo of an ")


@dataclass(frozen=True)
class Caption:
    """A decoded caption: text (None if only a vocabulary can tell it) and tag index (None if free text)."""

    text: str | None
    index: int | None


def encode_caption(text: str, vocabulary: Sequence[str]) -> bytes:
    """Return the smallest caption section for a text, once normalised (NFC, single spaces, none at the ends).

    A text that is a tag of ``vocabulary``, or "a photo of a" (or "an") and a tag, may be sent as the tag's
    index; it then reads back as ``tag_phrase(tag)``. Pass an empty vocabulary for a bundle that has none.
    Raises ``SlimError`` if the text is empty, has over 1024 bytes of UTF-8 or holds control characters.
    """
    text = normalise_caption(text)
    raw = _text_bytes(text)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, _dictionary())
    bodies = [bytes([_RAW]) + raw, bytes([_DEFLATE]) + deflater.compress(raw) + deflater.flush()]
    sections = [write_varint(len(body) << 1 | 1) + body for body in bodies]
    index = _tag_index(text, vocabulary)
    if index is not None:
        sections.insert(0, write_varint(index << 1))
    return min(sections, key=len)


def decode_caption(section: bytes, vocabulary: Sequence[str] | None = None) -> Caption:
    """Return the caption of one whole section; the text of a tag needs the bundle's ``vocabulary``.

    Raises ``FormatError`` for a damaged section, for text of none or over 1024 bytes, and for an index outside ``vocabulary``.
    """
    if caption_end(section, 0) != len(section):
        raise FormatError("corrupt caption: bytes follow it")
    head, start = read_varint(section, 0)
    if head & 1:
        return Caption(_decode_text(section[start], section[start + 1 :]), None)
    index = head >> 1
    if vocabulary is None:
        return Caption(None, index)
    if index >= len(vocabulary):
        raise FormatError(f"caption index {index} is outside the vocabulary of {len(vocabulary)} tags")
    return Caption(tag_phrase(vocabulary[index]), index)


def caption_end(data: bytes, start: int) -> int:
    """Return the offset after the caption section that begins at ``start``; ``FormatError`` if malformed."""
    head, end = read_varint(data, start)
    if head & 1:
        size = head >> 1
        if not 2 <= size <= 1 + MAX_CAPTION_BYTES:
            raise FormatError(
                f"corrupt caption: {size} bytes of text section, allowed are 2..{1 + MAX_CAPTION_BYTES}"
            )
        end += size
    if end > len(data):
        raise FormatError("truncated caption")
    return end


def normalise_caption(text: str) -> str:
    """Return the text in Unicode NFC with every run of white space as one space, and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def tag_phrase(tag: str) -> str:
    """Return the caption that a tag stands for: "a photo of a {tag}", "an" before a, e, i, o and u."""
    article = "an" if tag.lower().startswith(("a", "e", "i", "o", "u")) else "a"
    return f"a photo of {article} {tag}"


def read_vocabulary(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the tags of a ``vocabulary.txt`` (UTF-8, one tag a line) in order. Raises ``ValueError``, and as ``read_bounded``."""
    # Only newlines separate tags: splitlines() would also split at rarer characters and so shift the indices.
    text = read_bounded(path, MAX_VOCABULARY_BYTES).decode("utf-8").replace("\r\n", "\n")
    return tuple(text.removesuffix("\n").split("\n"))


def write_varint(value: int) -> bytes:
    """Return a number in 0..2^28 - 1 as LEB128, seven bits a byte, lowest first; ``SlimError`` if outside."""
    if not 0 <= value < 1 << 7 * MAX_VARINT_BYTES:
        raise SlimError(f"{value} does not fit a varint (0..2^28 - 1)")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Return the varint at offset ``start`` and the offset after it; ``FormatError`` for what ``write_varint`` does not write."""
    value = 0
    for position, byte in enumerate(data[start : start + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            if byte == 0 and position > 0:
                raise FormatError(f"corrupt number at byte {start}: not in its shortest form")
            return value, start + position + 1
    raise FormatError(f"truncated or corrupt number at byte {start}")


def _tag_index(text: str, vocabulary: Sequence[str]) -> int | None:
    for tag in (text, *(text[len(prefix) :] for prefix in _PREFIXES if text.startswith(prefix))):
        if tag in vocabulary:
            index = vocabulary.index(tag)
            return index if index <= MAX_TAG_INDEX else None
    return None


def _text_bytes(text: str) -> bytes:
    if not text:
        raise SlimError("the caption is empty: write one, or pass None (--caption none)")
    control = _control_character(text)
    if control:
        raise SlimError(f"the caption holds the control character U+{ord(control):04X}: remove it")
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SlimError(f"the caption is not valid Unicode text ({error.reason}): correct it") from error
    if len(raw) > MAX_CAPTION_BYTES:
        raise SlimError(f"the caption has {len(raw)} bytes, allowed are {MAX_CAPTION_BYTES}: shorten it")
    return raw


def _decode_text(method: int, body: bytes) -> str:
    if method == _RAW:
        raw = body
    elif method == _DEFLATE:
        raw = _inflate(body)
    else:
        raise FormatError(f"corrupt caption: unknown text coding {method}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("corrupt caption: not valid UTF-8") from error
    if not text:
        raise FormatError("corrupt caption: empty")
    control = _control_character(text)
    if control:
        raise FormatError(f"corrupt caption: control character U+{ord(control):04X}")
    return text


def _inflate(body: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, _dictionary())
    try:
        # One byte over the limit is room enough to tell a text of the full length from a longer one.
        raw = inflater.decompress(body, MAX_CAPTION_BYTES + 1)
    except zlib.error as error:
        raise FormatError("corrupt caption: not a deflate stream") from error
    if len(raw) > MAX_CAPTION_BYTES:
        raise FormatError(f"corrupt caption: over {MAX_CAPTION_BYTES} bytes of text")
    if not inflater.eof:
        raise FormatError("corrupt caption: truncated deflate stream")
    if inflater.unused_data:
        raise FormatError("corrupt caption: bytes follow its deflate stream")
    return raw


def _control_character(text: str) -> str | None:
    """Return the first C0 or C1 control character, the fixed Unicode category Cc."""
    return next((char for char in text if char < " " or "\x7f" <= char <= "\x9f"), None)


@cache
def _dictionary() -> bytes:
    # Words joined anew by single spaces, so that a checkout's line endings cannot change the format.
    return b" ".join(Path(__file__).with_name("caption_dictionary.txt").read_bytes().split())
