"""``slim verify``: every kind of damage is a line and exit status 1, and whole files are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Slim
from support import GOLDEN, SMALL

import slimcodec
from slimcodec.container import Container, pack, unpack

MODEL = ("--model", SMALL)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "slims"
    shutil.copytree(GOLDEN / "small-files", folder, ignore=shutil.ignore_patterns("*.json"))
    return folder


def with_payload(data: bytes, payload: bytes) -> bytes:
    """The file with another payload and a checksum that fits it."""
    old = unpack(data)
    return pack(Container(old.width, old.height, old.quality, old.bundle_id, old.caption, payload))


def test_whole_files_of_a_folder_a_glob_and_by_name(files: Path, slim: Slim) -> None:
    for argument in (files, files / "*.slim", next(files.glob("*.slim"))):
        status, out, err = slim("verify", argument, *MODEL)
        assert (status, err) == (0, "")
        assert out.startswith("1 file good" if argument.suffix and argument.exists() else "7 files good")


def test_every_bad_file_is_one_line(files: Path, slim: Slim) -> None:
    whole = (files / "coffee-256x192-q50.slim").read_bytes()
    bad = {
        "changed": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        "cut": whole[:-9],
        "empty": b"",
        "text": b"this is no slim file at all",
        # the checksum fits, so only the symbols tell
        "long": with_payload(whole, unpack(whole).payload + b"\1"),
        "foreign": (GOLDEN / "slim-tiny" / "rocket-1x1-q75.slim").read_bytes(),
    }
    for name, data in bad.items():
        (files / f"{name}.slim").write_bytes(data)
    slimcodec.inspect(files / "long.slim")
    status, out, err = slim("verify", files, files / "missing.slim", *MODEL)
    assert status == 1 and out.startswith("7 files good, 7 bad")
    lines = err.splitlines()
    assert len(lines) == 7
    for name in (*bad, "missing"):
        assert any(line.startswith(f"slim: {files / name}.slim: ") for line in lines)
    status, out, _ = slim("verify", files, "--json", *MODEL)
    summary = json.loads(out)
    assert status == 1 and (summary["good"], summary["bad"]) == (7, 6)
    failed = {Path(row["file"]).stem for row in summary["files"] if row["error"] is not None}
    assert failed == set(bad)


def test_limit_on_pixels(files: Path, slim: Slim) -> None:
    file = files / "coffee-256x192-q50.slim"
    status, _, err = slim("verify", file, "--max-pixels", 100, *MODEL)
    assert status == 1 and "max_pixels=100" in err


def test_a_bundle_that_cannot_be_loaded_is_one_line(files: Path, slim: Slim) -> None:
    status, out, err = slim("verify", files, "--model", files / "none")
    assert (status, out) == (1, "") and len(err.splitlines()) == 1


def test_help_has_examples(slim: Slim) -> None:
    status, out, _ = slim("verify", "--help")
    assert status == 0 and "Examples:" in out and "slim verify photo.slim" in out
