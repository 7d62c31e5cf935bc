"""The ``.slim`` container of docs/format.md: header, caption section, payload and checksum."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from slimcodec.entropy.caption import (
    MAX_CAPTION_BYTES,
    MAX_VARINT_BYTES,
    caption_end,
    decode_caption,
    read_varint,
    read_vocabulary,
    write_varint,
)
from slimcodec.errors import FormatError, ImageError, SlimError, VersionError, opening
from slimcodec.files import as_path, bytes_or_name, is_url, load_json

VERSION = 1
MAX_SIDE = 1 << 24
MAX_FILE_BYTES = 1 << 26
EMBEDDED_BUNDLE = Path(__file__).parent / "weights" / "slim-tiny"

_FIRST_BYTE = 0xF4  # plus the version: 0xF5..0xFD never begin UTF-8 text, hence versions 1..9
_LAST_VERSION = 9
_XZ = b"\xfd7zXZ\0"  # begins as version 9 would
_BUNDLE_ID_BYTES = 4
_CRC_BYTES = 4
_MIN_FILE_BYTES = 1 + _BUNDLE_ID_BYTES + 1 + 1 + 1 + _CRC_BYTES
_CAPTION_FLAG = 0x80
# version, bundle id, width, height, quality, and a caption of the longest length: size, coding and text
_MAX_HEAD_BYTES = 1 + _BUNDLE_ID_BYTES + 2 * MAX_VARINT_BYTES + 1 + MAX_VARINT_BYTES + 1 + MAX_CAPTION_BYTES

Source = bytes | str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True)
class Container:
    """The parts of a ``.slim`` file.

    ``width`` and ``height``: pixels, 1..2^24. ``quality``: 1..100. ``bundle_id``: 4 bytes. ``caption``: one section of
    ``slimcodec.entropy.caption``, b"" for none. ``payload``: the range-coded stream.
    """

    width: int
    height: int
    quality: int
    bundle_id: bytes
    caption: bytes
    payload: bytes
    version: int = VERSION


@dataclass(frozen=True)
class SlimInfo:
    """What a ``.slim`` file says without decoding its picture.

    ``width`` and ``height``: pixels. ``bundle_id``: 8 hex digits. ``caption``: None if there is none, or if only an unknown
    vocabulary can tell it; then ``caption_index`` is the tag's index. ``header_bytes`` includes the checksum: header, caption
    and payload add up to ``file_bytes``.
    """

    width: int
    height: int
    quality: int
    caption: str | None
    caption_index: int | None
    caption_bytes: int
    payload_bytes: int
    header_bytes: int
    file_bytes: int
    bundle_id: str
    version: int

    @property
    def bpp(self) -> float:
        """Bits of the whole file per pixel of the original picture."""
        return 8 * self.file_bytes / (self.width * self.height)


def pack(container: Container) -> bytes:
    """Return the bytes of a ``.slim`` file.

    Raises ``ImageError`` for a side outside 1..2^24 or a file over 2^26 bytes, ``FormatError`` for a malformed caption section,
    ``VersionError`` for a version other than 1, ``SlimError`` for other illegal fields.
    """
    if container.version != VERSION:
        raise VersionError(f"cannot write .slim version {container.version}: this release writes {VERSION}")
    if len(container.bundle_id) != _BUNDLE_ID_BYTES:
        raise SlimError(f"the bundle id has {len(container.bundle_id)} bytes, it needs {_BUNDLE_ID_BYTES}")
    if not 1 <= container.quality <= 100:
        raise SlimError(f"quality is {container.quality}, allowed are 1..100")
    if not (1 <= container.width <= MAX_SIDE and 1 <= container.height <= MAX_SIDE):
        sides = f"{container.width}x{container.height}"
        raise ImageError(f"the picture is {sides}, allowed are sides of 1..{MAX_SIDE}")
    if container.caption:
        decode_caption(container.caption)
    start = bytes([_FIRST_BYTE + VERSION]) + container.bundle_id
    size = write_varint(container.width) + write_varint(container.height)
    quality = bytes([container.quality | (_CAPTION_FLAG if container.caption else 0)])
    body = b"".join((start, size, quality, container.caption, container.payload))
    if len(body) + _CRC_BYTES > MAX_FILE_BYTES:
        raise ImageError(
            f"the file would pass {MAX_FILE_BYTES} bytes: lower the quality or split the picture"
        )
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "big")


def unpack(data: bytes) -> Container:
    """Return the parts of a ``.slim`` file, all checked except the meaning of the payload.

    Raises ``FormatError`` for bytes that are no ``.slim`` file, truncated or corrupt, and ``VersionError`` for a later version.
    """
    version = _check_start(data)
    _check_length(len(data))
    if zlib.crc32(memoryview(data)[:-_CRC_BYTES]) != int.from_bytes(data[-_CRC_BYTES:], "big"):
        raise FormatError("corrupt or truncated .slim file: its checksum does not match")
    # what lies before the payload, which may be long and is copied once only
    body = data[: min(len(data) - _CRC_BYTES, _MAX_HEAD_BYTES)]
    offset = 1 + _BUNDLE_ID_BYTES
    width, offset = read_varint(body, offset)
    height, offset = read_varint(body, offset)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise FormatError(f"corrupt .slim file: a picture of {width}x{height}")
    if offset == len(body):
        raise FormatError("truncated .slim file: it ends before its quality")
    quality = body[offset] & ~_CAPTION_FLAG
    if not 1 <= quality <= 100:
        raise FormatError(f"corrupt .slim file: quality {quality}")
    start = offset + 1
    end = caption_end(body, start) if body[offset] & _CAPTION_FLAG else start
    caption = body[start:end]
    if caption:
        decode_caption(caption)
    return Container(
        width, height, quality, body[1 : 1 + _BUNDLE_ID_BYTES], caption, data[end:-_CRC_BYTES], version
    )


def inspect(source: Source, vocabulary: Sequence[str] | None = None) -> SlimInfo:
    """Return what a ``.slim`` file says of itself, without loading a model.

    ``source``: the file's bytes or path, or the open file. ``vocabulary``: the tags of the file's bundle, which spell out a caption sent as an
    index (default: those of the embedded bundle, if it made the file). Raises as ``unpack`` and ``read_source``.
    """
    data = read_source(source)
    container = unpack(data)
    bundle_id = container.bundle_id.hex()
    text, index = None, None
    if container.caption:
        caption = decode_caption(container.caption, vocabulary)
        if caption.text is None:
            caption = decode_caption(container.caption, _embedded_vocabulary(bundle_id))
        text, index = caption.text, caption.index
    return SlimInfo(
        width=container.width,
        height=container.height,
        quality=container.quality,
        caption=text,
        caption_index=index,
        caption_bytes=len(container.caption),
        payload_bytes=len(container.payload),
        header_bytes=len(data) - len(container.caption) - len(container.payload),
        file_bytes=len(data),
        bundle_id=bundle_id,
        version=container.version,
    )


def read_source(source: Source) -> bytes:
    """Return the bytes of a ``.slim`` file given as bytes, path, URL or open binary file; ``unpack`` checks them in full.

    A file with another beginning is refused after 12 bytes (``FormatError``, ``VersionError``), one that is too long before more
    is read; a pipe is read to one byte over 2^26. Raises ``FileError`` for a file that cannot be opened, an ``OSError`` too.
    """
    source = bytes_or_name(source, FormatError, MAX_FILE_BYTES + 1)
    if isinstance(source, bytes):
        return source
    with opening(), as_path(source).open("rb") as file:
        start = file.read(_MIN_FILE_BYTES)
        _check_start(start)
        if not is_url(source):
            _check_length(os.fstat(file.fileno()).st_size)
        return start + file.read(MAX_FILE_BYTES + 1 - len(start))


def is_slim(start: bytes) -> bool:
    """Whether a file is a ``.slim`` file of any version, by its first 14 bytes: magic, size and quality (a few may be missing)."""
    if not (start and VERSION <= start[0] - _FIRST_BYTE <= _LAST_VERSION):
        return False
    try:
        width, offset = read_varint(start, 1 + _BUNDLE_ID_BYTES)
        height, offset = read_varint(start, offset)
    except FormatError:
        return False
    quality = start[offset : offset + 1]
    legal = not quality or 1 <= quality[0] & ~_CAPTION_FLAG <= 100
    return legal and 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE


def _check_start(data: bytes) -> int:
    """Return the format version that the first bytes of a file announce, if this release can read it."""
    if len(data) < _MIN_FILE_BYTES:
        size = f"{len(data)} bytes, the shortest has {_MIN_FILE_BYTES}"
        raise FormatError(f"not a .slim file, or truncated: {size}")
    version = data[0] - _FIRST_BYTE
    if not VERSION <= version <= _LAST_VERSION:
        raise FormatError(f"not a .slim file: it begins with byte 0x{data[0]:02X}")
    if data.startswith(_XZ):
        raise FormatError("not a .slim file: it is an .xz archive")
    if version != VERSION:
        raise VersionError(f"the file is .slim version {version}, this release reads {VERSION}: upgrade")
    return version


def _check_length(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise FormatError(f"not a .slim file: over {MAX_FILE_BYTES} bytes")


def _embedded_vocabulary(bundle_id: str) -> tuple[str, ...] | None:
    try:
        known = load_json(EMBEDDED_BUNDLE / "config.json").get("bundle_id") == bundle_id
        return read_vocabulary(EMBEDDED_BUNDLE / "vocabulary.txt") if known else None
    except FileNotFoundError:
        return None
