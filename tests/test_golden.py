"""Golden files decode to the same symbols for ever, and no damage to them goes unnoticed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import slimcodec
from slimcodec import FormatError, ModelMismatchError, VersionError
from slimcodec.codec import Codec
from slimcodec.container import VERSION, unpack
from slimcodec.models.bundle import FORMAT

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*/*.slim"))


def load(runtime: str) -> dict[str, Codec]:
    small = slimcodec.load(GOLDEN / "small", dtype="float32", runtime=runtime)
    return {"small-files": small, "slim-tiny": slimcodec.load(runtime=runtime)}


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    return load("torch")


@pytest.fixture(scope="module", params=["onnx", "torch"])
def both(request: pytest.FixtureRequest) -> dict[str, Codec]:
    return load(request.param)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_symbols_are_those_of_the_day_the_file_was_written(both: dict[str, Codec], path: Path) -> None:
    codec = both[path.parent.name]
    wanted = json.loads((path.parent / "symbols.json").read_text())[path.name]
    container, coded = codec.read(path)
    assert hashlib.sha256(coded.symbols().astype("<i4").tobytes()).hexdigest() == wanted
    for steps in (0, 1):
        assert codec.decode(path, steps=steps).size == (container.width, container.height)


def test_there_are_golden_files_of_both_bundles() -> None:
    for folder in ("small-files", "slim-tiny"):
        names = {path.name for path in FILES if path.parent.name == folder}
        assert len(names) == 7 and names == set(json.loads((GOLDEN / folder / "symbols.json").read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_headers_say_what_they_said_on_that_day(codecs: dict[str, Codec], path: Path) -> None:
    wanted = json.loads((path.parent / "headers.json").read_text(encoding="utf-8"))[path.name]
    assert asdict(slimcodec.inspect(path, codecs[path.parent.name].bundle.vocabulary)) == wanted


def test_every_format_version_and_every_way_to_say_a_thing_has_golden_files(codecs: dict[str, Codec]) -> None:
    frozen = [path for path in FILES if path.parent.name == "small-files"]
    parts = [unpack(path.read_bytes()) for path in frozen]
    assert {part.version for part in parts} == set(range(1, VERSION + 1))
    described = json.loads((GOLDEN / "small" / "config.json").read_text())
    assert described["format"] == FORMAT  # a bundle of every format that is read, too
    # no caption, a tag, text as it is, and deflated text
    ways = {
        part.caption and (("raw", "deflated")[part.caption[1]] if part.caption[0] & 1 else "tag")
        for part in parts
    }
    assert ways == {b"", "tag", "raw", "deflated"}
    assert {max(part.width, part.height) >= 128 for part in parts} == {
        True,
        False,
    }  # numbers of one and of two bytes
    tables = codecs["small-files"].coder.tables
    coded = [codecs["small-files"].read(path)[1] for path in frozen]
    escapes = [np.abs(part.symbols) > tables.radii[part.indices] for one in coded for part in one.passes]
    assert np.concatenate(escapes).any()


@pytest.mark.parametrize("folder", ["small-files", "slim-tiny"])
def test_every_byte_changed_to_every_value_and_every_truncation_is_an_error(
    codecs: dict[str, Codec], folder: str
) -> None:
    refused = (FormatError, VersionError, ModelMismatchError)
    data = min((path.read_bytes() for path in GOLDEN.glob(f"{folder}/*-97x41-*.slim")), key=len)
    codec = codecs[folder]
    for length in range(len(data)):
        with pytest.raises(refused):
            codec.decode(data[:length], steps=0)
    for position in range(len(data)):
        for value in range(256):
            if value != data[position]:
                with pytest.raises(refused):
                    codec.decode(data[:position] + bytes([value]) + data[position + 1 :], steps=0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_position_of_every_golden_file_is_guarded(codecs: dict[str, Codec], path: Path) -> None:
    data, codec = path.read_bytes(), codecs[path.parent.name]
    for position in range(len(data)):
        for damaged in (
            data[:position],
            data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :],
        ):
            with pytest.raises((FormatError, VersionError, ModelMismatchError)):
                codec.decode(damaged, steps=0)
