"""Caption sections: round trips, the smallest coding, and refusal of every malformed section."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slimcodec.entropy import caption as caption_module
from slimcodec.entropy.caption import (
    MAX_CAPTION_BYTES,
    MAX_TAG_INDEX,
    Caption,
    caption_end,
    decode_caption,
    encode_caption,
    normalise_caption,
    read_varint,
    read_vocabulary,
    tag_phrase,
    write_varint,
)
from slimcodec.errors import FormatError, SlimError

FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
DICTIONARY_SHA256 = "215d5ccb776c4e52c6c36e465092edd526d3d46725843a654bed269604092676"
VOCABULARY = ["goldfish", "tabby cat", "apple", "Irish setter", "zebra"]

texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=200).filter(str.strip)


def free_text(method: int, body: bytes) -> bytes:
    return write_varint((1 + len(body)) << 1 | 1) + bytes([method]) + body


def deflate(raw: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=caption_module._dictionary())
    return compressor.compress(raw) + compressor.flush()


@given(texts)
@example("Cafe\u0301  \t\n noir")
@example("\u00a0\u2028 \u1100\u1161 \u0301")
def test_free_text_round_trips_normalised(text: str) -> None:
    section = encode_caption(text, [])
    expected = normalise_caption(text)
    assert decode_caption(section) == Caption(expected, None)
    assert expected == normalise_caption(expected) == unicodedata.normalize("NFC", expected)
    assert "  " not in expected and expected == expected.strip()
    assert len(section) <= len(free_text(0, expected.encode()))


@pytest.mark.parametrize("index", range(len(VOCABULARY)))
@pytest.mark.parametrize("pattern", ["{}", "a photo of a {}", "a photo of an {}", "  a  photo of\ta {} "])
def test_tags_are_sent_as_an_index(pattern: str, index: int) -> None:
    section = encode_caption(pattern.format(VOCABULARY[index]), VOCABULARY)
    assert section == bytes([2 * index])
    assert decode_caption(section, VOCABULARY) == Caption(tag_phrase(VOCABULARY[index]), index)
    assert decode_caption(section) == Caption(None, index)


def test_tag_phrase_spells_the_article_by_the_first_letter() -> None:
    assert [tag_phrase(tag) for tag in VOCABULARY] == [
        "a photo of a goldfish",
        "a photo of a tabby cat",
        "a photo of an apple",
        "a photo of an Irish setter",
        "a photo of a zebra",
    ]


def test_smallest_coding_wins() -> None:
    common = encode_caption("a group of people standing in front of a building", [])
    assert common[1] == 1 and len(common) <= 16
    assert encode_caption("qxq", []) == free_text(0, b"qxq")
    # A far tag of one letter costs four bytes as an index, three as text.
    assert encode_caption("x", ["y"] * (1 << 20) + ["x"]) == free_text(0, b"x")
    assert encode_caption("x", ["y"] * 8192 + ["x"]) == write_varint(8192 << 1)


@given(st.integers(0, MAX_TAG_INDEX))
@example(MAX_TAG_INDEX)
def test_every_index_is_readable(index: int) -> None:
    assert decode_caption(write_varint(index << 1)) == Caption(None, index)


@pytest.mark.parametrize("letter", ["a", "é", "界", "🚀"])
def test_longest_text(letter: str) -> None:
    text = letter * (MAX_CAPTION_BYTES // len(letter.encode()))
    assert len(text.encode()) > MAX_CAPTION_BYTES - 4
    assert decode_caption(encode_caption(text, [])).text == text
    assert decode_caption(free_text(0, text.encode())).text == text
    with pytest.raises(SlimError, match="shorten it"):
        encode_caption(text + letter, [])


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "pass None"),
        (" \t\n", "pass None"),
        ("a\x00b", "remove it"),
        ("a\x9bb", "remove it"),
        ("\ud800", "correct it"),
    ],
)
def test_unusable_texts_say_what_to_do(text: str, advice: str) -> None:
    with pytest.raises(SlimError, match=advice) as caught:
        encode_caption(text, VOCABULARY)
    assert not isinstance(caught.value, FormatError)


def bits(value: str) -> bytes:
    """Bytes of a deflate bit string, first bit lowest."""
    value += "0" * (-len(value) % 8)
    return int(value[::-1], 2).to_bytes(len(value) // 8, "little")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (b"", "truncated"),
        (b"\x80", "truncated"),
        (b"\x80\x00", "shortest form"),
        (b"\x80\x80\x80\x80\x01", "corrupt number"),
        (b"\x01", "0 bytes"),
        (b"\x03\x00", "1 bytes"),
        (b"\x05\x00", "truncated caption"),
        (b"\x02\x00", "bytes follow it"),
        (free_text(0, b"cat") + b" ", "bytes follow it"),
        (free_text(0, b"c" * (MAX_CAPTION_BYTES + 1)), "1026 bytes"),
        (free_text(2, b"cat"), "unknown text coding 2"),
        (free_text(255, b"cat"), "unknown text coding 255"),
        (free_text(0, b"\xc3"), "UTF-8"),
        (free_text(0, b"\xed\xa0\x80"), "UTF-8"),
        (free_text(0, b"\xc0\x80"), "UTF-8"),
        (free_text(1, deflate(b"\xff")), "UTF-8"),
        (free_text(1, deflate(b"")), "empty"),
        (free_text(1, deflate(b"a\nb")), r"U\+000A"),
        (free_text(1, deflate(b"cat") + b"\x00"), "bytes follow its"),
        (free_text(1, deflate(b"kitten")[:-1]), "truncated deflate"),
        (free_text(1, b"\x07"), "not a deflate"),
        # Fixed-code block that copies three bytes from distance 24577, before the dictionary's start.
        (free_text(1, bits("110" + "0000001" + "11101" + "0" * 13 + "0000000")), "not a deflate"),
        (free_text(1, deflate(b"a" * (MAX_CAPTION_BYTES + 1))), "over 1024"),
        (free_text(1, deflate(b"a" * 900_000)), "over 1024"),
    ],
)
def test_malformed_sections_are_refused(section: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        decode_caption(section)


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0)])
def test_every_control_character_is_refused(code: int) -> None:
    with pytest.raises(FormatError, match="control character"):
        decode_caption(free_text(0, f"a{chr(code)}b".encode()))


def test_index_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(FormatError, match="outside the vocabulary of 5 tags"):
        decode_caption(write_varint(5 << 1), VOCABULARY)


def test_a_deflate_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self, *args: object) -> None:
            self.inner = real(*args)  # type: ignore[arg-type]

        def decompress(self, data: bytes, limit: int) -> bytes:
            out = self.inner.decompress(data, limit)
            sizes.append(len(out))
            return out

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    with pytest.raises(FormatError):
        decode_caption(free_text(1, deflate(b"a" * 900_000)))
    assert sizes == [MAX_CAPTION_BYTES + 1]


@given(st.binary(max_size=60))
def test_random_sections_decode_or_are_refused(data: bytes) -> None:
    for section in (data, free_text(0, data), free_text(1, data)):
        try:
            caption = decode_caption(section)
        except FormatError:
            continue
        if caption.text is None:
            assert caption.index is not None and write_varint(caption.index << 1) == section
        else:
            assert 1 <= len(caption.text.encode()) <= MAX_CAPTION_BYTES


@given(texts, st.binary(max_size=5), st.binary(max_size=5))
def test_sections_end_where_they_should(text: str, before: bytes, after: bytes) -> None:
    section = encode_caption(text, VOCABULARY)
    assert caption_end(before + section + after, len(before)) == len(before) + len(section)
    for size in range(len(section)):
        with pytest.raises(FormatError):
            decode_caption(section[:size])


@given(st.integers(0, (1 << 28) - 1), st.binary(max_size=3))
@example(0, b"")
@example((1 << 28) - 1, b"\x01")
def test_varints_round_trip(value: int, after: bytes) -> None:
    encoded = write_varint(value)
    assert len(encoded) == max(1, -(-value.bit_length() // 7))
    assert read_varint(encoded + after, 0) == (value, len(encoded))
    with pytest.raises(FormatError):
        read_varint(encoded[:-1], 0)


def test_every_two_byte_string_reads_as_at_most_one_varint() -> None:
    seen = set()
    for first in range(256):
        for second in range(256):
            data = bytes([first, second])
            try:
                value, end = read_varint(data, 0)
            except FormatError:
                assert first >= 0x80 and (second == 0 or second >= 0x80)
            else:
                assert write_varint(value) == data[:end]
                seen.add(value)
    assert seen == set(range(1 << 14))


@pytest.mark.parametrize("value", [-1, 1 << 28])
def test_varints_out_of_range_are_refused(value: int) -> None:
    with pytest.raises(SlimError):
        write_varint(value)


def test_vocabulary_file_keeps_its_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_bytes("goldfish\r\ntabby\u2028cat\n\ncafé\n".encode())
    assert read_vocabulary(path) == ("goldfish", "tabby\u2028cat", "", "café")


def test_dictionary_is_frozen() -> None:
    dictionary = caption_module._dictionary()
    assert hashlib.sha256(dictionary).hexdigest() == DICTIONARY_SHA256
    spec = FORMAT.read_text(encoding="utf-8")
    assert DICTIONARY_SHA256 in spec and f"It has {len(dictionary)} bytes" in spec


def test_examples_of_the_specification() -> None:
    spec = FORMAT.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([0-9a-f ]+)` \| (.+) \|$", spec, re.MULTILINE)
    assert len(rows) == 3
    for section, text in rows:
        assert decode_caption(bytes.fromhex(section), ["goldfish", "tabby cat"]).text == text
    varints = re.findall(r"^\| (\d+) \| `([0-9a-f ]+)` \|$", spec, re.MULTILINE)
    assert len(varints) == 7
    for value, encoded in varints:
        assert write_varint(int(value)) == bytes.fromhex(encoded)
