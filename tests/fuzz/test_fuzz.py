"""Hostile files: the corpus and some hundred seeded mutations end in a picture or in a ``SlimError``."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.mutator import CORPUS, GOLDEN, MAX_PIXELS, fuzzed, golden_files

import slimcodec
from slimcodec.codec import Codec
from slimcodec.errors import SlimError

FILES = sorted(CORPUS.glob("*.slim"))


@pytest.fixture(scope="module")
def codec() -> Codec:
    return slimcodec.load(GOLDEN / "small", dtype="float32")


def decodes(codec: Codec, data: bytes) -> bool:
    """Whether a picture comes out; whatever is raised but ``SlimError`` fails the test."""
    try:
        picture = codec.decode(data, steps=0, max_pixels=MAX_PIXELS)
    except SlimError as error:
        assert str(error)
        return False
    info = slimcodec.inspect(data)
    assert picture.size == (info.width, info.height)
    return True


def inspects(data: bytes) -> bool:
    """Whether the header is legal; whatever is raised but ``SlimError`` fails the test."""
    try:
        slimcodec.inspect(data)
    except SlimError:
        return False
    return True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_corpus(codec: Codec, path: Path) -> None:
    data = path.read_bytes()
    assert inspects(data) or not decodes(codec, data)
    assert decodes(codec, data) == path.stem.startswith("accepted")


def test_the_corpus_reaches_behind_the_checksum() -> None:
    assert len(FILES) > 15
    assert sum(map(inspects, (path.read_bytes() for path in FILES))) >= 4


def test_mutated_headers() -> None:
    files = golden_files()
    legal = 0
    for number in range(3000):
        made = fuzzed(files, 0, number)
        accepted = inspects(made.data)
        assert made.sealed or not (accepted and made.changed), f"seed 0, input {number}"
        legal += accepted
    assert legal > 300  # or the mutations would not get far


def test_mutated_pictures(codec: Codec) -> None:
    files = golden_files()
    pictures = 0
    for number in range(400):
        made = fuzzed(files, 0, number)
        accepted = decodes(codec, made.data)
        assert made.sealed or not (accepted and made.changed), f"seed 0, input {number}"
        pictures += accepted
    assert pictures > 5


def test_inputs_are_told_by_seed_and_number() -> None:
    files = golden_files()
    assert [fuzzed(files, 7, n) for n in range(20)] == [fuzzed(files, 7, n) for n in range(20)]
    assert fuzzed(files, 7, 1) != fuzzed(files, 8, 1)
