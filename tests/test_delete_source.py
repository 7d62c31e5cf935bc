"""``slim encode --delete-source``: a picture goes only when its file is safe, and stays in every doubt."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from conftest import Slim
from support import JOBS, SMALL_OPTIONS, photo

import slimcodec
from slimcodec.cli import batch
from slimcodec.codec import Codec
from slimcodec.errors import FormatError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "cat.png"
    path.parent.mkdir()
    photo("chelsea", 40, 30).save(path)
    return path


@pytest.fixture
def encode(slim: Slim) -> Slim:
    """Runs ``slim encode --delete-source``."""
    return partial(slim, "encode", "--delete-source", *SMALL_OPTIONS)


@pytest.mark.parametrize("jobs", JOBS)
def test_only_what_was_encoded_is_removed(encode: Slim, picture: Path, jobs: int) -> None:
    folder = picture.parent
    photo("coffee", 33, 21).save(folder / "cup.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (folder / "notes.txt").write_text("no picture")
    status, out, err = encode(folder, "--json", "--jobs", jobs)
    assert status == 1 and len(err.splitlines()) == 1
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["broken.jpg", "cat.slim", "cup.slim", "notes.txt"]
    assert all(row["source_deleted"] for row in json.loads(out)["files"])
    assert slimcodec.inspect(folder / "cat.slim").width == 40


def test_a_source_whose_result_existed_stays(encode: Slim, picture: Path) -> None:
    picture.with_suffix(".slim").write_bytes(b"precious")
    assert encode(picture)[0] == 1
    assert encode(picture.parent)[0] == 0
    assert picture.exists() and picture.with_suffix(".slim").read_bytes() == b"precious"


def test_an_output_that_is_the_source_is_refused(encode: Slim, picture: Path) -> None:
    before = picture.read_bytes()
    (picture.parent / "link.slim").symlink_to(picture)
    for out in (picture, picture.parent / ".." / "photos" / "cat.png", picture.parent / "link.slim"):
        assert encode(picture, "-o", out, "--overwrite")[0] == 2
    assert picture.read_bytes() == before


def test_a_full_disk_leaves_the_source(encode: Slim, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = picture.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    status, _, err = encode(picture)
    assert status == 1 and os.strerror(errno.ENOSPC) in err
    assert picture.read_bytes() == before
    assert list(picture.parent.iterdir()) == [picture]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_device_leaves_the_source(encode: Slim, picture: Path) -> None:
    status, _, err = encode(picture, "-o", "/dev/full", "--overwrite")
    assert status == 1 and "/dev/full" in err and picture.exists()


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no null device")
def test_what_cannot_be_read_back_leaves_the_source(encode: Slim, picture: Path) -> None:
    status, _, err = encode(picture, "-o", "/dev/null", "--overwrite")
    assert status == 1 and "/dev/null" in err and picture.exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="folders that cannot be written to")
def test_folders_that_cannot_be_written_to(encode: Slim, picture: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    for folder, out in ((closed, closed / "x.slim"), (picture.parent, tmp_path / "x.slim")):
        folder.chmod(0o500)
        try:
            status, _, err = encode(picture, "-o", out)
        finally:
            folder.chmod(0o700)
        assert status == 1 and len(err.splitlines()) == 1 and picture.exists()
    # the source could not be removed, but its result is there
    assert slimcodec.inspect(tmp_path / "x.slim").width == 40


def test_an_unwritable_target_leaves_the_source(
    encode: Slim, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def readonly(*arguments: object, **options: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(batch, "atomic_write", readonly)
    status, _, err = encode(picture)
    assert status == 1 and os.strerror(errno.EROFS) in err and picture.exists()


def test_a_file_that_does_not_decode_leaves_the_source(
    encode: Slim, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(codec: Codec, data: bytes, **options: Any) -> NoReturn:
        raise FormatError("the payload does not end with its last symbol")

    monkeypatch.setattr(Codec, "read", broken)
    status, _, err = encode(picture)
    assert status == 1 and "payload" in err and list(picture.parent.iterdir()) == [picture]


def test_a_file_that_reads_back_otherwise_leaves_the_source(
    encode: Slim, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "read_source", lambda path: path.read_bytes()[:-1])
    status, _, err = encode(picture)
    assert status == 1 and "cat.slim" in err and picture.exists()


def test_a_source_that_changed_meanwhile_stays(
    encode: Slim, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Codec.read

    def read(codec: Codec, data: Any, **options: Any) -> Any:
        picture.write_bytes(picture.read_bytes() + b"more")
        return whole(codec, data, **options)

    monkeypatch.setattr(Codec, "read", read)
    status, _, err = encode(picture)
    assert status == 1 and "changed" in err and picture.exists()


def test_a_warning_leaves_the_source(encode: Slim, picture: Path) -> None:
    photo("chelsea", 20, 20).save(picture, icc_profile=b"junk")
    status, _, err = encode(picture)
    assert status == 1 and "warning" in err and "cat.slim" in err and picture.exists()
    assert slimcodec.inspect(picture.with_suffix(".slim")).width == 20


def test_a_source_that_cannot_be_removed_is_a_failure_with_a_result(
    encode: Slim, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, missing_ok: bool = False) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", denied)
    status, _, err = encode(picture)
    assert status == 1 and os.strerror(errno.EACCES) in err and picture.exists()
    assert slimcodec.inspect(picture.with_suffix(".slim")).width == 40
