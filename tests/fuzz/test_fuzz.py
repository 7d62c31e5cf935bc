"""Hostile files: the corpus and some hundred seeded mutations end in a picture or in a ``SlimError``."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.harnesses import picture
from fuzz.mutator import CORPUS, fuzzed, golden_files

import slimcodec
from slimcodec.errors import SlimError

FILES = sorted(CORPUS.glob("*.slim"))


def inspects(data: bytes) -> bool:
    """Whether the header is legal; whatever is raised but ``SlimError`` fails the test."""
    try:
        slimcodec.inspect(data)
    except SlimError:
        return False
    return True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_corpus(path: Path) -> None:
    data = path.read_bytes()
    assert inspects(data) or not picture(data)
    assert picture(data) == path.stem.startswith("accepted")


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


def test_mutated_pictures() -> None:
    files = golden_files()
    pictures = 0
    for number in range(400):
        made = fuzzed(files, 0, number)
        accepted = picture(made.data)
        assert made.sealed or not (accepted and made.changed), f"seed 0, input {number}"
        pictures += accepted
    assert pictures > 5


def test_inputs_are_told_by_seed_and_number() -> None:
    files = golden_files()
    assert [fuzzed(files, 7, n) for n in range(20)] == [fuzzed(files, 7, n) for n in range(20)]
    assert fuzzed(files, 7, 1) != fuzzed(files, 8, 1)
