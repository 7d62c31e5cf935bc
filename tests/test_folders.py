"""Folders as people have them: every format is taken, names that clash do not stop the rest, and nothing goes unsaid."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import Slim
from support import SMALL_OPTIONS, photo

import slimcodec
from slimcodec.cli.inputs import find_inputs
from slimcodec.errors import ImageError
from slimcodec.images import load_image, register_plugins


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "pets").mkdir(parents=True)
    photo("coffee", 32, 24).save(folder / "coffee.jpg")
    photo("chelsea", 24, 16).save(folder / "pets" / "cat.png")
    return folder


def test_the_others_are_encoded_where_names_clash(slim: Slim, photos: Path) -> None:
    photo("coffee", 8, 8).save(photos / "coffee.png")
    result = slim("encode", photos, "--json", *SMALL_OPTIONS)
    assert result.status == 1
    failed = {row["source"]: row["error"] for row in json.loads(result.out)["failed"]}
    assert set(failed) == {str(photos / "coffee.jpg"), str(photos / "coffee.png")}
    assert "coffee.png" in failed[str(photos / "coffee.jpg")] and "--keep-suffix" in result.err
    assert "choose folders" not in result.err
    assert [path.name for path in photos.rglob("*.slim")] == ["cat.slim"]
    assert slim("encode", photos, "--keep-suffix", *SMALL_OPTIONS).status == 0
    assert slimcodec.inspect(photos / "coffee.png.slim").width == 8
    assert slimcodec.inspect(photos / "coffee.jpg.slim").width == 32


def test_two_folders_with_one_name_clash_in_a_folder_of_results(
    slim: Slim, photos: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    photo("coffee", 8, 8).save(other / "coffee.jpg")
    result = slim("encode", photos, other, "-o", tmp_path / "slims", *SMALL_OPTIONS)
    assert result.status == 1 and result.err.count("coffee.slim would also be") == 2
    assert result.err.count("choose folders with -o") == 2
    assert (
        not (tmp_path / "slims" / "coffee.slim").exists()
        and (tmp_path / "slims" / "pets" / "cat.slim").exists()
    )


@pytest.mark.skipif(os.name != "posix", reason="links, and folders that cannot be read")
def test_folders_pass_nothing_over_in_silence(slim: Slim, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "closed").mkdir(parents=True)
    picture = photo("coffee", 16, 16)
    taken = ["jpg", "bmp", "mpo", "qoi", "tga", "dds", "pcx", "jp2", "j2c"]
    for suffix in taken:
        picture.save(folder / f"{suffix}.{suffix.upper()}")
    for suffix, module in (("heic", "pillow_heif"), ("jxl", "pillow_jxl")):
        if find_spec(module):
            register_plugins()
            picture.save(folder / f"{suffix}.{suffix}")
            taken.append(suffix)
    for name in ("a.txt", "b.TXT", "c.mp4", "plain", ".hidden.jpg", "old.slim"):
        (folder / name).write_bytes(b"x")
    (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    (folder / "closed").chmod(0)
    result = slim("encode", folder, "-o", tmp_path / "out", "--json", *SMALL_OPTIONS)
    (folder / "closed").chmod(0o700)
    summary = json.loads(result.out)
    assert {Path(row["source"]).suffix.lower()[1:] for row in summary["files"]} == set(taken)
    assert summary["passed_over"] == {".txt": 2, ".mp4": 1, "without suffix": 1, "linked folder": 1}
    if os.geteuid():
        assert result.status == 1 and f"{folder / 'closed'}: " in result.err
    counts = slim("encode", folder, "-o", tmp_path / "out", *SMALL_OPTIONS).out.partition("passed over: ")[2]
    assert counts.strip() == "2 .txt, 1 linked folder, 1 .mp4, 1 without suffix"


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    photo("coffee", 16, 16).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    found = find_inputs([str(tmp_path)], {".png"})
    assert [item.path.name for item in found.inputs] == ["a.png"] and found.passed_over["pipe"] == 1


def test_a_folder_without_a_picture_says_what_it_holds(slim: Slim, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.slim"):
        (tmp_path / name).touch()
    result = slim("encode", tmp_path)
    assert result.status == 1 and "no picture file in this folder, but 2 .txt, 1 .slim" in result.err


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 10\n%%EndComments\n0 setgray\nshowpage\n%%EOF\n"
# a header of 16 bits a pixel in three fields that Pillow does not know
BMP = bytes.fromhex("424d4600000000000000460000003800000004000000040000000100100003000000") + bytes(36)


@pytest.mark.parametrize(
    ("file", "words"), [(EPS, "Ghostscript.*install"), (BMP, "does not support.*convert")], ids=["eps", "bmp"]
)
def test_what_pillow_cannot_read_is_not_called_damaged(
    monkeypatch: pytest.MonkeyPatch, file: bytes, words: str
) -> None:
    monkeypatch.setenv("PATH", "")  # without Ghostscript
    with pytest.raises(ImageError, match=words) as caught:
        load_image(file)
    assert "damaged" not in str(caught.value)
