"""The command slim, as its users meet it: arguments in; files, lines and an exit status out."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import Slim
from PIL import Image
from skimage import data
from support import JOBS, SLIM

import slimcodec
from slimcodec.cli.batch import Output, Steps, run_batch
from slimcodec.cli.inputs import Job
from slimcodec.container import Container, pack
from slimcodec.data.contact_sheet import draw_bits
from slimcodec.entropy.caption import encode_caption


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures in a tree, a broken one, and files that a search must leave alone."""
    root = tmp_path / "photos"
    (root / "pets").mkdir(parents=True)
    save_photo(root / "coffee.jpg", "coffee", (80, 50))
    save_photo(root / "pets" / "cat.PNG", "chelsea", (60, 40))
    save_photo(root / "pets" / "rocket.webp", "rocket", (33, 47))
    (root / "notes.txt").write_text("no picture")
    save_photo(root / "._coffee.jpg", "coffee", (8, 8))
    return root


def save_photo(path: Path, name: str, size: tuple[int, int]) -> None:
    Image.fromarray(np.asarray(getattr(data, name)())).resize(size).save(path)


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def made_by_another_bundle(caption: str = "") -> bytes:
    section = encode_caption(caption, []) if caption else b""
    return pack(Container(640, 480, 37, b"\xde\xad\xbe\xef", section, b"payload"))


# --- start, help, usage


def test_version(slim: Slim) -> None:
    assert slim("--version") == (0, f"slimcodec {slimcodec.__version__}\n", "")


@pytest.mark.parametrize("command", ["encode", "decode", "info", "map"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_examples(slim: Slim, command: str, flag: str) -> None:
    result = slim(command, flag)
    assert result.status == 0
    assert "Examples:" in result.out and f"slim {command} photo" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode",),
        ("encode", ""),
        ("verify", "a.slim", ""),
        ("encode", "a.jpg", "--quality", "0"),
        ("encode", "a.jpg", "--quality", "101"),
        ("encode", "a.jpg", "--quality", "30", "--target-bytes", "500"),
        ("encode", "a.jpg", "--target-bytes", "500", "--target-bpp", "0.1"),
        ("encode", "a.jpg", "--target-bpp", "0"),
        ("encode", "a.jpg", "--target-bpp", "nan"),
        ("encode", "a.jpg", "--jobs", "0"),
        ("encode", "a.jpg", "--no-such-option"),
        ("decode", "a.slim", "--steps", "-1"),
        ("map", "a.jpg"),
        ("map", "a.jpg", "-o", "-"),
        ("no-such-command",),
    ],
)
def test_wrong_usage_is_status_2(slim: Slim, arguments: tuple[str, ...]) -> None:
    result = slim(*arguments)
    assert result.status == 2
    assert result.err and not result.out


@pytest.mark.parametrize(
    ("command", "argument"), [("encode", "IN"), ("decode", "IN"), ("verify", "FILE"), ("report", "RESULT")]
)
def test_help_says_where_several_inputs_are_taken(slim: Slim, command: str, argument: str) -> None:
    assert f"{argument}..." in slim(command, "--help").out


@pytest.mark.parametrize(
    ("arguments", "step", "said"),
    [
        (("train", "all", "-c", "smoke"), "slimcodec.training.recipe.load_recipe", "go on with --resume"),
        (
            ("bench", "photos", "-c", "judge.onnx", "-o", "result.json"),
            "slimcodec.evaluation.curves.chosen_curves",
            "the same command goes on",
        ),
    ],
)
def test_an_interrupt_says_how_to_go_on(
    slim: Slim, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], step: str, said: str
) -> None:
    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupted)
    assert slim(*arguments) == (130, "", f"slim: interrupted; {said}\n")


def test_an_interrupt_before_the_command_begins(slim: Slim, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slimcodec.cli, "import_module", interrupted)
    result = slim("info", "a.slim")
    assert result.status == 130 and result.err.count("\n") == 1


# --- info


def test_info_as_json_and_as_table(slim: Slim, tmp_path: Path) -> None:
    file = tmp_path / "a.slim"
    file.write_bytes(made_by_another_bundle("two red foxes"))
    (header,) = json.loads(slim("info", file, "--json").out)
    info = slimcodec.inspect(file)
    assert header["file"] == str(file)
    assert (header["width"], header["height"], header["quality"]) == (640, 480, 37)
    assert (header["caption"], header["bundle_id"], header["version"]) == ("two red foxes", "deadbeef", 1)
    assert header["header_bytes"] + header["caption_bytes"] + header["payload_bytes"] == file.stat().st_size
    assert header["bpp"] == pytest.approx(8 * file.stat().st_size / (640 * 480))
    head, row = slim("info", file).out.splitlines()
    assert head.split()[:4] == ["FILE", "SIZE", "QUALITY", "BYTES"]
    assert row.split()[:4] == [str(file), "640x480", "37", str(info.file_bytes)]
    assert row.endswith("two red foxes")


def test_info_reports_bad_files_and_shows_the_others(slim: Slim, tmp_path: Path) -> None:
    good, bad, corrupt = (tmp_path / name for name in ("good.slim", "bad.slim", "corrupt.slim"))
    good.write_bytes(made_by_another_bundle())
    bad.write_bytes(b"this is no slim file at all")
    corrupt.write_bytes(made_by_another_bundle()[:-1] + b"?")
    result = slim("info", tmp_path, tmp_path / "missing.slim")
    assert result.status == 1
    assert str(good) in result.out and str(bad) not in result.out
    lines = result.err.splitlines()
    missing = tmp_path / "missing.slim"
    assert len(lines) == 3 and all(
        any(line.startswith(f"slim: {path}: ") for line in lines) for path in (bad, corrupt, missing)
    )


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_reads_no_standard_input_says_so(slim: Slim, command: str) -> None:
    result = slim(command, "-")
    assert result.status == 1 and result.err == "slim: -: standard input is not read here; give a file\n"


def test_the_doctor_names_no_cache_where_there_is_none(slim: Slim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (line,) = [line for line in slim("doctor").out.splitlines() if line.startswith("hub ")]
    assert line.endswith("network off (huggingface_hub is missing)")


@pytest.mark.skipif(os.name != "posix", reason="names with control characters")
def test_a_name_cannot_steer_the_terminal(slim: Slim, tmp_path: Path) -> None:
    for stem, content in (("good\x1b[2J\r", made_by_another_bundle()), ("bad\x1b[2J\u202e", b"no slim file")):
        (tmp_path / f"{stem}.slim").write_bytes(content)
    result = slim("info", tmp_path)
    assert "good" in result.out and "bad" in result.err
    assert not {"\x1b", "\r", "\u202e"} & set(result.out + result.err)


# --- planning: errors before any work, for which no codec is needed


def test_nothing_found_is_a_failure(slim: Slim, tmp_path: Path) -> None:
    result = slim("encode", tmp_path / "missing.jpg", tmp_path, tmp_path / "*.png")
    assert result.status == 1
    for argument in (tmp_path / "missing.jpg", tmp_path, tmp_path / "*.png"):
        assert f"slim: {argument}: " in result.err


def test_two_files_for_one_named_output_stop_the_command(slim: Slim, photos: Path) -> None:
    before = tree(photos)
    files = photos / "coffee.jpg", photos / "pets" / ".." / "coffee.jpg"
    assert slim("encode", *files, "-o", "x.slim").status == 2
    assert tree(photos) == before


@pytest.mark.parametrize("out", ["one.slim", "taken"])
def test_several_inputs_need_a_folder(slim: Slim, photos: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "taken").write_text("a file")
    result = slim("encode", photos, "-o", tmp_path / out)
    assert result.status == 2 and "folder" in result.err
    assert not (tmp_path / "one.slim").exists()


def test_an_output_that_is_an_input_stops_the_command(slim: Slim, tmp_path: Path) -> None:
    file = tmp_path / "a.slim"
    file.write_bytes(made_by_another_bundle())
    for command in ("encode", "decode"):
        assert slim(command, file, "-o", file, "--overwrite").status == 2
    assert file.read_bytes() == made_by_another_bundle()


# --- encode and decode (they need the embedded bundle)


def test_beside_the_input_by_default_and_back(slim: Slim, photos: Path) -> None:
    photo = photos / "coffee.jpg"
    result = slim("encode", photo)
    assert (result.status, result.err) == (0, "")
    coded = photos / "coffee.slim"
    info = slimcodec.inspect(coded)
    assert (info.width, info.height, info.quality) == (80, 50, 50)
    assert coded.read_bytes() == slimcodec.encode(photo)
    expected = f"1 file: {photo.stat().st_size:,} bytes in, {info.file_bytes:,} bytes out, {info.bpp:.4f} bpp"
    assert result.out.startswith(expected)
    assert slim("decode", coded, "--steps", "0").status == 0
    with Image.open(photos / "coffee.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(slimcodec.decode(coded, steps=0)))


def test_options_reach_the_codec(slim: Slim, photos: Path, tmp_path: Path) -> None:
    photo, out = photos / "coffee.jpg", tmp_path / "out.slim"
    slim("encode", photo, "-o", out, "--quality", 20, "--caption", "a cup on a table")
    assert out.read_bytes() == slimcodec.encode(photo, quality=20, caption="a cup on a table")
    slim("encode", photo, "-o", out, "--overwrite", "--caption", "none")
    assert out.read_bytes() == slimcodec.encode(photo, caption=None)
    size = out.stat().st_size + 5
    slim("encode", photo, "-o", out, "--overwrite", "--caption", "none", "--target-bytes", size)
    assert out.read_bytes() == slimcodec.encode(photo, caption=None, target_bytes=size)
    assert out.stat().st_size <= size
    bpp = 8 * size / (80 * 50)
    slim("encode", photo, "-o", out, "--overwrite", "--caption", "none", "--target-bpp", bpp)
    assert out.read_bytes() == slimcodec.encode(photo, caption=None, target_bpp=bpp)
    picture = tmp_path / "picture.png"
    for steps in (0, 1):
        slim("decode", out, "-o", picture, "--overwrite", "--steps", steps, "--guidance", 0)
        expected = np.asarray(slimcodec.decode(out, steps=steps, guidance=0.0))
        np.testing.assert_array_equal(np.asarray(Image.open(picture)), expected)


def test_out_is_a_file_or_a_folder(slim: Slim, photos: Path, tmp_path: Path) -> None:
    photo = photos / "coffee.jpg"
    (tmp_path / "there").mkdir()
    (tmp_path / "v1.0").mkdir()
    outs = {
        tmp_path / "small.slim": "small.slim",
        tmp_path / "no_suffix": "no_suffix",
        tmp_path / "there": "there/coffee.slim",
        tmp_path / "v1.0": "v1.0/coffee.slim",
        f"{tmp_path}/new/": "new/coffee.slim",
        tmp_path / "deep" / "er" / "x.slim": "deep/er/x.slim",
    }
    for out, expected in outs.items():
        assert slim("encode", photo, "-o", out, "--caption", "none").status == 0
        assert slimcodec.inspect(tmp_path / expected).width == 80


@pytest.mark.parametrize("name", ["x.png", "coffee.JPG"])
def test_slim_bytes_get_no_name_of_a_picture(slim: Slim, photos: Path, name: str) -> None:
    before = (photos / "coffee.jpg").read_bytes()
    (photos / "coffee.JPG").write_bytes(before)
    result = slim("encode", photos / "coffee.jpg", "-o", photos / name, "--overwrite")
    assert result.status == 2 and result.err.endswith(f"{name}: names a picture; .slim files end in .slim\n")
    assert (photos / "coffee.JPG").read_bytes() == before and not (photos / "x.png").exists()


def test_decode_writes_the_format_of_its_suffix(slim: Slim, photos: Path, tmp_path: Path) -> None:
    coded = tmp_path / "a.slim"
    slim("encode", photos / "coffee.jpg", "-o", coded)
    for name, kind in (("a.webp", "WEBP"), ("a.jpg", "JPEG"), ("plain", "PNG")):
        assert slim("decode", coded, "-o", tmp_path / name, "--steps", 0).status == 0
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.size) == (kind, (80, 50))
    result = slim("decode", coded, "-o", tmp_path / "a.xyz")
    assert result.status == 1 and ".xyz" in result.err and not (tmp_path / "a.xyz").exists()


@pytest.mark.parametrize("jobs", JOBS)
def test_folder_is_mirrored_and_one_bad_file_does_not_stop_the_rest(
    slim: Slim, photos: Path, tmp_path: Path, jobs: int
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (photos / "empty.png").touch()
    result = slim("encode", photos, "-o", tmp_path / "slims", "--jobs", jobs)
    assert result.status == 1
    assert tree(tmp_path / "slims") == ["coffee.slim", "pets/cat.slim", "pets/rocket.slim"]
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert any(line.startswith(f"slim: {photos / 'broken.jpg'}: ") for line in lines)
    assert any(line.startswith(f"slim: {photos / 'empty.png'}: ") for line in lines)
    assert result.out.startswith("3 files: ") and "2 failed: " in result.out
    for name in ("coffee.jpg", "pets/cat.PNG"):
        made = slimcodec.inspect((tmp_path / "slims" / name).with_suffix(".slim"))
        wanted = slimcodec.inspect(slimcodec.encode(photos / name))
        assert (made.width, made.height, made.caption) == (wanted.width, wanted.height, wanted.caption)
        # a worker's one thread sums in another order than this process, and a symbol may round the other way
        assert abs(made.payload_bytes - wanted.payload_bytes) <= 0.02 * wanted.payload_bytes + 2
    assert slim("decode", tmp_path / "slims", "-o", tmp_path / "back", "--steps", 0, "-j", jobs).status == 0
    assert tree(tmp_path / "back") == ["coffee.png", "pets/cat.png", "pets/rocket.png"]


def test_globs_are_mirrored_from_their_first_wildcard(slim: Slim, photos: Path, tmp_path: Path) -> None:
    assert slim("encode", photos / "*.jpg", "-o", tmp_path / "a").status == 0
    assert tree(tmp_path / "a") == ["coffee.slim"]
    assert slim("encode", photos / "**" / "*.*", "-o", tmp_path / "b").status == 1  # notes.txt is no picture
    assert tree(tmp_path / "b") == ["coffee.slim", "pets/cat.slim", "pets/rocket.slim"]
    assert slim("encode", photos / "p*", "-o", tmp_path / "c").status == 0
    assert tree(tmp_path / "c") == ["pets/cat.slim", "pets/rocket.slim"]


def test_a_name_with_wildcards_is_itself(slim: Slim, photos: Path, tmp_path: Path) -> None:
    (photos / "coffee.jpg").rename(photos / "cup[1].jpg")
    assert slim("encode", photos / "cup[1].jpg", "-o", tmp_path / "cup.slim").status == 0
    assert (tmp_path / "cup.slim").is_file()


def test_shards_and_pictures_are_not_mixed(slim: Slim, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(b"a shard")
    result = slim("encode", tmp_path / "table.parquet", photos / "coffee.jpg", "-o", tmp_path / "out")
    assert result.status == 1 and "table.parquet: shards and pictures cannot be mixed; give sh" in result.err
    assert tree(tmp_path / "out") == ["coffee.slim"]


def test_messages_name_options_of_the_command(slim: Slim, photos: Path) -> None:
    photo = photos / "coffee.jpg"
    assert "--caption none" in slim("encode", photo, "--caption", "").err
    assert "--max-pixels" in slim("encode", photo, "--max-pixels", 10).err


def test_steps_of_guidance_need_guidance(slim: Slim, photos: Path, tmp_path: Path) -> None:
    coded = tmp_path / "a.slim"
    coded.write_bytes(slimcodec.encode(photos / "coffee.jpg", caption=None))
    refused = slim("decode", coded, "--steps", 0, "--guidance-steps", 1)
    assert (
        refused.status == 1
        and "give " in refused.err
        and "guidance" in refused.err
        and not (tmp_path / "a.png").exists()
    )
    assert slim("decode", coded, "--steps", 0, "--guidance-steps", 1, "--preset", "machine").status == 0


def test_guidance_that_damages_pictures_is_warned_of(slim: Slim, photos: Path, tmp_path: Path) -> None:
    slim("encode", photos / "coffee.jpg", "-o", tmp_path / "a.slim", "--caption", "a photo of a cup")
    for strength, warned in (("1", False), ("5", True)):
        result = slim(
            "decode", tmp_path / "a.slim", "-o", tmp_path / f"{strength}.png", "--guidance", strength
        )
        assert result.status == 0 and ("--guidance 5" in result.err) == warned


def test_existing_results_are_kept(slim: Slim, photos: Path) -> None:
    kept = photos / "coffee.slim"
    kept.write_bytes(b"precious")
    single = slim("encode", photos / "coffee.jpg")
    assert single.status == 1 and "coffee.slim" in single.err and "--overwrite" in single.err
    batch = slim("encode", photos)
    assert batch.status == 0 and "skipped" in batch.err and "1 skipped" in batch.out
    assert batch.out.startswith("2 files: ")
    assert kept.read_bytes() == b"precious"
    assert slim("encode", photos, "--overwrite").status == 0
    assert slimcodec.inspect(kept).width == 80


def test_json_summary(slim: Slim, photos: Path, tmp_path: Path) -> None:
    (photos / "empty.png").touch()
    result = slim("encode", photos, "-o", tmp_path / "slims", "--json", "--quality", 25)
    summary = json.loads(result.out)
    assert result.status == 1
    files = {Path(row["source"]).name: row for row in summary["files"]}
    assert sorted(files) == ["cat.PNG", "coffee.jpg", "rocket.webp"]
    for row in files.values():
        info = slimcodec.inspect(row["target"])
        assert (row["width"], row["height"], row["quality"]) == (info.width, info.height, 25)
        assert (row["bytes_out"], row["bpp"], row["caption"]) == (info.file_bytes, info.bpp, info.caption)
        assert row["bytes_in"] == Path(row["source"]).stat().st_size
    assert summary["bytes_out"] == sum(row["bytes_out"] for row in files.values())
    assert summary["mean_bpp"] == pytest.approx(np.mean([row["bpp"] for row in files.values()]))
    (failed,) = summary["failed"]
    assert failed["source"] == str(photos / "empty.png") and "0 bytes" in failed["error"]


def test_a_tiny_picture_does_not_spoil_the_bits_per_pixel(slim: Slim, photos: Path, tmp_path: Path) -> None:
    save_photo(photos / "dot.png", "coffee", (1, 1))
    result = slim("encode", photos, "-o", tmp_path / "slims", "--caption", "none")
    made = [slimcodec.inspect(path) for path in (tmp_path / "slims").rglob("*.slim")]
    pixels = sum(info.width * info.height for info in made)
    assert f", {8 * sum(info.file_bytes for info in made) / pixels:.4f} bpp, " in result.out
    back = slim("decode", tmp_path / "slims", "-o", tmp_path / "back", "--steps", 0)
    assert re.findall(r"[\d.]+ bpp", back.out) == re.findall(r"[\d.]+ bpp", result.out)


def test_a_long_batch_names_a_few_files_and_counts_the_others(slim: Slim, tmp_path: Path) -> None:
    for number in range(15):
        (tmp_path / f"{number:02}.jpg").touch()
    failed = slim("encode", tmp_path)
    assert "15 failed: " in failed.out and failed.out.endswith("09.jpg and 5 more\n")
    for number in range(15):
        (tmp_path / f"{number:02}.slim").touch()
    resumed = slim("encode", tmp_path)
    lines = resumed.err.splitlines()
    assert len(lines) == 11 and lines[-1] == "slim: skipped: 5 more, whose results exist too"
    assert "15 skipped" in resumed.out
    summary = json.loads(slim("encode", tmp_path, "--json").out)
    assert len(summary["skipped"]) == 15


def test_a_file_of_another_bundle_is_named(slim: Slim, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.slim"
    foreign.write_bytes(made_by_another_bundle())
    result = slim("decode", foreign)
    assert result.status == 1
    assert f"slim: {foreign}: " in result.err and "deadbeef" in result.err
    assert tree(tmp_path) == ["foreign.slim"]


@pytest.mark.parametrize("jobs", JOBS)
def test_a_model_that_cannot_be_loaded_stops_the_command_once(
    slim: Slim, photos: Path, tmp_path: Path, jobs: int
) -> None:
    result = slim("encode", photos, "-m", tmp_path / "no_bundle", "-o", tmp_path / "out", "-j", jobs)
    assert result.status == 1
    assert len(result.err.splitlines()) == 1 and "no_bundle" in result.err
    assert not (tmp_path / "out").exists()


def test_max_pixels(slim: Slim, photos: Path, tmp_path: Path) -> None:
    photo = photos / "coffee.jpg"
    refused = slim("encode", photo, "-o", tmp_path / "a.slim", "--max-pixels", 3999)
    assert refused.status == 1 and "3999" in refused.err
    assert slim("encode", photo, "-o", tmp_path / "a.slim", "--max-pixels", 4000).status == 0
    assert slim("decode", tmp_path / "a.slim", "--max-pixels", 3999).status == 1
    assert slim("decode", tmp_path / "a.slim", "--max-pixels", 4000, "--steps", 0).status == 0


def test_an_ignored_profile_is_a_warning_not_a_failure(slim: Slim, photos: Path) -> None:
    photo = photos / "profile.png"
    Image.new("RGB", (20, 20), "red").save(photo, icc_profile=b"junk")
    result = slim("encode", photo)
    assert result.status == 0
    assert result.err.startswith(f"slim: {photo}: warning: ") and "ICC" in result.err


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process group")
@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupt_ends_with_130_and_whole_files(tmp_path: Path, jobs: int) -> None:
    photos, slims = tmp_path / "photos", tmp_path / "slims"
    photos.mkdir()
    image = Image.fromarray(np.asarray(data.astronaut()))
    for index in range(200):
        image.save(photos / f"{index:03}.jpg")
    command = [*SLIM, "encode", str(photos), "-o", str(slims), "--jobs", str(jobs)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(slims.glob("*.slim")) and process.poll() is None:
        assert time.monotonic() < deadline, "no file was written"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and out == ""
    assert "interrupted" in err and "200" in err and err.count("\n") == 1
    assert 0 < len(tree(slims)) < 200
    for name in tree(slims):
        assert slimcodec.inspect(slims / name).width == 512


def dying_work() -> Steps:
    """Work whose process ends at the second job, as one does that the system kills for its memory."""

    def read(job: Job) -> bytes:
        if job.source.name == "1.jpg":
            time.sleep(1)  # the first result is on its way by then
            os._exit(9)
        return made_by_another_bundle()

    return Steps(read, list, lambda job, read, data: Output(data, slimcodec.inspect(data), 1))


@pytest.mark.slow
def test_a_dying_process_fails_its_files_and_ends_the_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [str(tmp_path / f"{index}.jpg") for index in (0, 1)]
    for picture in pictures:
        Path(picture).touch()
    with pytest.raises(typer.Exit) as exit_:
        run_batch(
            dying_work, pictures, None, reads=(), writes=(".slim",), jobs=2, overwrite=False, as_json=False
        )
    assert exit_.value.exit_code == 1
    assert (tmp_path / "0.slim").read_bytes() == made_by_another_bundle()
    assert f"slim: {pictures[1]}: " in capsys.readouterr().err


# --- map


def test_map_draws_heat_over_the_grey_picture() -> None:
    pixels = np.full((300, 290, 3), 100, np.uint8)
    bits = np.zeros((19, 19), np.float32)
    bits[2, 3] = 40
    drawn = np.asarray(draw_bits(pixels, bits, 16)).astype(int)
    assert drawn.shape[1] == 290 and drawn.shape[0] > 300
    cell = drawn[32:48, 48:64]
    assert (cell == cell[0, 0]).all()
    outside = drawn[:300].copy()
    outside[32:48, 48:64] = drawn[0, 0]
    assert (outside == drawn[0, 0]).all()
    assert cell[0, 0].sum() > drawn[0, 0].sum() + 200
    assert drawn[300:].min() < 60 and drawn[300:].max() == 255  # a scale on white


def test_a_mask_says_where_the_bits_go(slim: Slim, photos: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.fromarray(np.repeat([[0, 0, 255, 255]], 3, 0).astype(np.uint8)).save(mask)
    shares = {}
    for roi in ("none", mask):
        result = slim(
            "map", photos / "coffee.jpg", "-o", tmp_path / f"map-{Path(roi).stem}.png", "--roi", roi
        )
        assert result.status == 0, result.err
        shares[roi] = re.findall(
            r"(\d+)% of the bits in the region of interest, (\d+)% of the picture", result.out
        )
    # every step alike: there is no region to speak of
    assert shares["none"] == []
    assert [int(area) for _, area in shares[mask]] == [pytest.approx(50, abs=10)]
    made = slim("encode", photos / "coffee.jpg", "-o", tmp_path / "a.slim", "--roi", mask)
    assert made.status == 0 and slim("verify", tmp_path / "a.slim").status == 0
    assert (
        slim("encode", photos / "coffee.jpg", "-o", tmp_path / "b.slim", "--roi", tmp_path / "no.png").status
        != 0
    )
    assert not (tmp_path / "b.slim").exists()


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (17, 16)])
def test_map_of_any_size(shape: tuple[int, int]) -> None:
    height, width = shape
    bits = np.zeros((-(-height // 16), -(-width // 16)), np.float32)
    drawn = draw_bits(np.zeros((height, width, 3), np.uint8), bits, 16)
    assert drawn.width >= 256 and drawn.height > height


def test_map_writes_a_picture(slim: Slim, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps" / "coffee.png"
    result = slim("map", photos / "coffee.jpg", "-o", out, "--quality", 20)
    assert (result.status, result.err) == (0, "")
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width >= 80
    # below quality 32 nothing tells a region from the rest
    assert "bytes in the latent" in result.out and "region of interest" not in result.out
    before = out.read_bytes()
    assert slim("map", photos / "coffee.jpg", "-o", out).status == 1
    assert out.read_bytes() == before
    broken = slim("map", photos / "notes.txt", "-o", tmp_path / "x.png")
    assert broken.status == 1 and f"slim: {photos / 'notes.txt'}: " in broken.err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("name", ["map.jpg", "map.slim"])
def test_a_map_is_a_png(slim: Slim, photos: Path, tmp_path: Path, name: str) -> None:
    result = slim("map", photos / "coffee.jpg", "-o", tmp_path / name)
    assert result.status == 2 and ".png" in result.err and not (tmp_path / name).exists()
