"""The ``.slim`` container: round trips, the specification's example, and refusal of every damaged file."""

from __future__ import annotations

import json
import lzma
import pickle
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slimcodec import container as container_module
from slimcodec.container import (
    MAX_FILE_BYTES,
    MAX_SIDE,
    Container,
    inspect,
    is_slim,
    pack,
    read_source,
    unpack,
)
from slimcodec.entropy.caption import MAX_TAG_INDEX, encode_caption, write_varint
from slimcodec.errors import FormatError, ImageError, SlimError, VersionError

FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
VOCABULARY = ["goldfish", "tabby cat"]
BUNDLE_ID = bytes.fromhex("1b2c3d4e")
PLAIN = Container(768, 512, 50, BUNDLE_ID, b"", bytes.fromhex("a1b2c3d4e5"))

sides = st.integers(1, MAX_SIDE) | st.integers(1, 300)
texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=60).filter(str.strip)
captions = (
    st.just(b"")
    | st.integers(0, MAX_TAG_INDEX).map(lambda index: write_varint(index << 1))
    | texts.map(lambda text: encode_caption(text, []))
)
containers = st.builds(
    Container,
    width=sides,
    height=sides,
    quality=st.integers(1, 100),
    bundle_id=st.binary(min_size=4, max_size=4),
    caption=captions,
    payload=st.binary(max_size=100),
)

FILES = {
    "smallest": pack(Container(1, 1, 1, bytes(4), b"", b"")),
    "plain": pack(PLAIN),
    "tag": pack(replace(PLAIN, caption=encode_caption("tabby cat", VOCABULARY))),
    "deflate": pack(replace(PLAIN, caption=encode_caption("two dogs playing in the snow", []))),
    "raw": pack(Container(MAX_SIDE, 127, 100, b"\xff" * 4, encode_caption("Café 界", []), bytes(9))),
}


def seal(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "big")


@given(containers)
@example(Container(MAX_SIDE, MAX_SIDE, 100, b"\xff" * 4, write_varint(MAX_TAG_INDEX << 1), b"\xff"))
@example(Container(1, 1, 1, bytes(4), b"", b""))
def test_legal_fields_round_trip(container: Container) -> None:
    data = pack(container)
    assert unpack(data) == container
    info = inspect(data)
    assert (info.width, info.height, info.quality) == (container.width, container.height, container.quality)
    assert bytes.fromhex(info.bundle_id) == container.bundle_id and info.version == 1
    assert (info.caption_bytes, info.payload_bytes) == (len(container.caption), len(container.payload))
    assert info.header_bytes + info.caption_bytes + info.payload_bytes == info.file_bytes == len(data)
    assert info.bpp * container.width * container.height == pytest.approx(8 * len(data))


def test_header_has_at_most_14_bytes_below_16384() -> None:
    borders = [1, 2, 126, 127, 128, 129, 255, 256, 16382, 16383]
    for width in borders:
        for height in borders:
            size = len(pack(Container(width, height, 100, BUNDLE_ID, b"", b"")))
            assert size == 14 - (width < 128) - (height < 128)
    expected = {16384: 3, 2097151: 3, 2097152: 4, MAX_SIDE: 4}
    for side, side_bytes in expected.items():
        assert len(pack(Container(side, side, 1, BUNDLE_ID, b"", b""))) == 10 + 2 * side_bytes


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_is_noticed(name: str) -> None:
    data = FILES[name]
    for position in range(len(data)):
        for value in range(256):
            if value != data[position]:
                changed = data[:position] + bytes([value]) + data[position + 1 :]
                later_version = position == 0 and 0xF6 <= value <= 0xFD
                with pytest.raises(VersionError if later_version else FormatError):
                    unpack(changed)


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_and_extension_is_noticed(name: str) -> None:
    data = FILES[name]
    for size in range(len(data)):
        with pytest.raises(FormatError):
            unpack(data[:size])
    for value in range(256):
        with pytest.raises(FormatError):
            unpack(data + bytes([value]))


@pytest.mark.parametrize("name", FILES)
def test_every_changed_byte_with_a_repaired_checksum_is_legal_or_refused(name: str) -> None:
    body = FILES[name][:-4]
    legal = 0
    for position in range(1, len(body)):
        for value in range(256):
            data = seal(body[:position] + bytes([value]) + body[position + 1 :])
            try:
                container = unpack(data)
            except FormatError:
                continue
            assert pack(container) == data
            legal += 1
    assert legal >= 4 * 256


@given(st.binary(max_size=80))
def test_random_bytes_are_refused(data: bytes) -> None:
    for source in (data, b"\xf5" + data):
        with pytest.raises((FormatError, VersionError)):
            inspect(source)


@given(st.binary(min_size=7, max_size=80))
def test_random_fields_under_a_right_checksum_are_legal_or_refused(fields: bytes) -> None:
    data = seal(b"\xf5" + fields)
    try:
        container = unpack(data)
    except FormatError:
        return
    assert pack(container) == data


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (b"\x00\x01\x32", "picture of 0x1"),
        (b"\x01\x00\x32", "picture of 1x0"),
        (write_varint(MAX_SIDE + 1) + b"\x01\x32", "picture of 16777217x1"),
        (b"\x81\x00\x01\x32", "shortest form"),
        (b"\x80\x80\x80\x80\x01\x01\x32", "corrupt number"),
        (b"\x80\x80\x80", "truncated"),
        (b"\x80\x01\x05", "ends before its quality"),
        (b"\x01\x01\x00", "quality 0"),
        (b"\x01\x01\x65", "quality 101"),
        (b"\x01\x01\xff", "quality 127"),
        (b"\x01\x01\xb2", "truncated"),
        (b"\x01\x01\xb2\x09\x00abc"[:-1], "truncated caption"),
        (b"\x01\x01\xb2\x07\x00a\xff", "UTF-8"),
    ],
)
def test_illegal_fields_under_a_right_checksum_are_refused(fields: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(seal(b"\xf5" + BUNDLE_ID + fields))


def test_checks_come_in_the_specified_order() -> None:
    with pytest.raises(FormatError, match="11 bytes"):
        unpack(b"\xf6" * 11)
    with pytest.raises(FormatError, match="0x89"):
        unpack(b"\x89PNG\r\n\x1a\n" + bytes(20))
    with pytest.raises(FormatError, match="0xFE"):
        unpack(b"\xfe" * 12)
    for version in range(2, 10):
        with pytest.raises(VersionError, match=f"version {version}"):
            unpack(bytes([0xF4 + version]) * 12)
    with pytest.raises(FormatError, match="checksum"):
        unpack(b"\xf5" * 12)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"width": 0}, ImageError),
        ({"height": MAX_SIDE + 1}, ImageError),
        ({"quality": 0}, SlimError),
        ({"quality": 101}, SlimError),
        ({"bundle_id": b"abc"}, SlimError),
        ({"caption": b"\x02\x02"}, FormatError),
        ({"caption": b"\x05\x00"}, FormatError),
        ({"version": 2}, VersionError),
    ],
)
def test_illegal_fields_are_not_packed(change: dict[str, Any], error: type[SlimError]) -> None:
    with pytest.raises(error) as caught:
        pack(replace(PLAIN, **change))
    assert type(caught.value) is error


def test_file_size_limit() -> None:
    largest = replace(PLAIN, payload=bytes(MAX_FILE_BYTES - 14))
    assert len(pack(largest)) == MAX_FILE_BYTES
    assert unpack(pack(largest)) == largest
    with pytest.raises(ImageError, match="lower the quality"):
        pack(replace(largest, payload=largest.payload + b"\0"))
    with pytest.raises(FormatError, match="over"):
        unpack(pack(PLAIN) + bytes(MAX_FILE_BYTES))


def test_files_are_known_by_their_first_bytes() -> None:
    assert all(is_slim(data) and is_slim(data[:14]) for data in FILES.values())
    # an .xz archive begins with the byte of version 9
    others = (b"", b"\xf5", lzma.compress(bytes(99)), b"\xff\xd8\xff\xe0", b"\xf5" + bytes(20))
    assert not any(map(is_slim, others))


def test_inspect_reads_paths(tmp_path: Path) -> None:
    path = tmp_path / "cat.slim"
    path.write_bytes(FILES["deflate"])
    assert inspect(path) == inspect(str(path)) == inspect(FILES["deflate"])
    assert inspect(path).caption == "two dogs playing in the snow"
    with pytest.raises(FileNotFoundError) as missing:
        inspect(tmp_path / "missing.slim")
    assert isinstance(missing.value, SlimError)
    assert pickle.loads(pickle.dumps(missing.value)).filename == str(tmp_path / "missing.slim")
    with pytest.raises(IsADirectoryError if sys.platform != "win32" else PermissionError) as refused:
        inspect(tmp_path)
    assert isinstance(refused.value, SlimError)


def test_reading_a_path_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "film.slim"
    with open(path, "wb") as file:
        file.write(FILES["plain"])
        file.truncate(3 * MAX_FILE_BYTES)
    for read in (read_source, inspect):
        with pytest.raises(FormatError, match="over"):
            read(path)
    path.write_bytes(b"an essay, not a picture")
    with pytest.raises(FormatError, match="0x61"):
        read_source(path)


def test_inspect_spells_out_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_module, "EMBEDDED_BUNDLE", tmp_path)
    data = FILES["tag"]

    def seen() -> tuple[str | None, int | None]:
        info = inspect(data)
        return info.caption, info.caption_index

    assert seen() == (None, 1)
    (tmp_path / "config.json").write_text(json.dumps({"bundle_id": "1b2c3d4e"}))
    assert seen() == (None, 1)
    (tmp_path / "vocabulary.txt").write_text("goldfish\ntabby cat\n")
    assert seen() == ("a photo of a tabby cat", 1)
    assert inspect(data, vocabulary=["x", "apple"]).caption == "a photo of an apple"
    (tmp_path / "config.json").write_text(json.dumps({"bundle_id": "00000000"}))
    assert seen() == (None, 1)
    assert inspect(data, vocabulary=VOCABULARY).caption == "a photo of a tabby cat"
    with pytest.raises(FormatError, match="outside the vocabulary"):
        inspect(data, vocabulary=["goldfish"])
    assert (inspect(FILES["plain"]).caption, inspect(FILES["plain"]).caption_index) == (None, None)


def test_inspect_imports_nothing_heavy() -> None:
    script = f"""
import sys
from slimcodec.container import inspect
for data in {[data.hex() for data in FILES.values()]}:
    inspect(bytes.fromhex(data))
print([name for name in ("torch", "numpy", "diffusers", "transformers", "PIL") if name in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60
    )
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


def test_example_of_the_specification() -> None:
    example_section = FORMAT.read_text(encoding="utf-8").split("## Worked example", 1)[1]
    code = re.search(r"```python\n(.*?)```", example_section, re.DOTALL)
    table = re.search(r"```text\n(.*?)```", example_section, re.DOTALL)
    assert code and table
    scope: dict[str, Any] = {}
    exec(code[1], scope)  # noqa: S102  (our own documentation)
    rows = [re.match(r"(?:[0-9a-f]{2} )+", line) for line in table[1].splitlines()]
    assert len(rows) == 8 and all(rows)
    listed = bytes.fromhex("".join(row[0] for row in rows if row))
    assert scope["data"] == listed and f"gives these {len(listed)} bytes" in example_section
    assert unpack(listed) == Container(768, 512, 50, BUNDLE_ID, b"\x02", bytes.fromhex("a1b2c3d4e5"))
