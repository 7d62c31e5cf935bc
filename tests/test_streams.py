"""``-`` as input and output: bytes through pipes, and nothing but them on standard output."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import Slim
from PIL import Image
from support import GOLDEN, SLIM, SMALL_OPTIONS, photo, slim_process

from slimcodec.codec import Codec

FILE = GOLDEN / "small-files" / "chelsea-97x41-q20.slim"


@pytest.fixture(scope="module")
def picture() -> bytes:
    file = io.BytesIO()
    photo("coffee", 40, 25).save(file, "PNG")
    return file.getvalue()


def test_a_picture_there_and_back(picture: bytes, tmp_path: Path, small: Codec) -> None:
    # a file of that name is not what a dash means, and does not hinder
    (tmp_path / "-").write_bytes(b"a file")
    status, coded, err = slim_process(
        "encode", "-", "-o", "-", *SMALL_OPTIONS, stdin=picture, folder=tmp_path
    )
    assert (status, err) == (0, "") and coded == small.encode(picture)
    status, png, err = slim_process(
        "decode", "-", "-o", "-", "--steps", 0, *SMALL_OPTIONS, stdin=coded, folder=tmp_path
    )
    assert (status, err) == (0, "")
    with Image.open(io.BytesIO(png)) as opened:
        assert opened.format == "PNG"
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(small.decode(coded, steps=0)))
    assert os.listdir(tmp_path) == ["-"] and (tmp_path / "-").read_bytes() == b"a file"


@pytest.mark.slow
def test_a_stream_at_one_end_only(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "cat.webp"
    arguments = ("decode", "-", "-o", out, "--steps", 0, *SMALL_OPTIONS)
    status, text, err = slim_process(*arguments, stdin=FILE.read_bytes())
    assert (status, err) == (0, "") and text.startswith(b"1 file: ")
    with Image.open(out) as opened:
        assert (opened.format, opened.size) == ("WEBP", (97, 41))
    status, _, err = slim_process(*arguments, stdin=FILE.read_bytes())
    assert status == 1 and "cat.webp" in err and "--overwrite" in err
    status, png, err = slim_process("decode", FILE, "-o", "-", "--steps", 0, *SMALL_OPTIONS)
    assert (status, err) == (0, "") and png.startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["encode", "decode"])
@pytest.mark.parametrize("stdin", [b"", b"neither a picture nor a .slim file"])
def test_bad_input_is_one_line_and_no_output(command: str, stdin: bytes) -> None:
    status, out, err = slim_process(command, "-", "-o", "-", *SMALL_OPTIONS, stdin=stdin)
    assert (status, out) == (1, b"") and err.startswith("slim: -: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("encode", "-"), "-o FILE"),
        (("decode", "-", "-o", "."), ".: "),
        (("encode", "-", "a.jpg", "-o", "out/"), "one input"),
        (("decode", "a.slim", "b.slim", "-o", "-"), "one input"),
        (("decode", ".", "-o", "-"), ".: "),
        (("encode", "missing.jpg", "-o", "-"), "missing.jpg"),
        (("encode", "-", "-o", "-", "--json"), "--json"),
        (("encode", "-", "-o", "-", "--delete-source"), "--delete-source"),
    ],
)
def test_what_makes_no_sense_is_usage(
    arguments: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slim: Slim
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = slim(*arguments)
    assert (status, out) == (2, "") and reason in err and err.count("\n") == 1
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="makes a terminal")
def test_terminals_are_refused() -> None:
    leader, terminal = os.openpty()
    try:
        command = [*SLIM, "encode"]
        source = str(FILE)
        writes = subprocess.run(
            [*command, source, "-o", "-"],
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=subprocess.PIPE,
            check=False,
        )
        reads = subprocess.run([*command, "-", "-o", "-"], stdin=terminal, capture_output=True, check=False)
    finally:
        os.close(leader)
        os.close(terminal)
    assert writes.returncode == 2 and b"terminal" in writes.stderr
    assert reads.returncode == 2 and b"terminal" in reads.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_output_that_takes_no_bytes_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*SLIM, "decode", FILE, "-o", "-", "--steps", "0", *SMALL_OPTIONS],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1 and len(lines) == 1 and "standard output" in lines[0], lines
