"""slim bench and slim report from end to end: twenty small photos, labels made by the judge itself, real files."""

from __future__ import annotations

import copy
import io
import itertools
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from judges import colour_classifier, square_detector
from PIL import Image
from pyarrow import parquet
from support import NAMES, photo, slim

import slimcodec
from slimcodec.codec import default_codec
from slimcodec.data.classifiers import load_classifier
from slimcodec.data.contact_sheet import draw_bits
from slimcodec.data.photos import Photo, Record
from slimcodec.data.sources import LabelledPhotos, open_labelled
from slimcodec.errors import SlimError
from slimcodec.evaluation.bench import Setup, Worker, check, prepare, run
from slimcodec.evaluation.curves import chosen_curves
from slimcodec.evaluation.figures import example_sheet
from slimcodec.evaluation.peers import best_that_fits
from slimcodec.evaluation.results import from_json, load_all

COUNT = 20
QUALITIES = ("--qualities", "slim=10,60", "--qualities", "jpeg=5,40", "--qualities", "webp=5,40")
Body = dict[str, Any]


def crops(count: int) -> list[bytes]:
    """Parts of real photos, 88x64 pixels, as PNG files."""
    found = []
    for number, (row, name) in zip(range(count), itertools.product(range(count), NAMES), strict=False):
        left, top = 17 * row % 160, 29 * number % 150
        file = io.BytesIO()
        photo(name).crop((left, top, left + 88, top + 64)).save(file, "PNG")
        found.append(file.getvalue())
    return found


def write(
    path: Path, images: list[bytes], labels: list[int], boxes: list[list[list[float]]] | None = None
) -> Path:
    table: dict[str, Any] = {
        "image": [{"bytes": image, "path": None} for image in images],
        "imagenet_index": labels,
    }
    if boxes is not None:
        table["boxes"] = boxes
    parquet.write_table(pyarrow.table(table), path)
    return path


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the judge, the photos, and the labels that the judge gives them."""
    root = tmp_path_factory.mktemp("desk")
    classifier = load_classifier(str(colour_classifier(root / "judge.onnx")), "full")
    images = crops(COUNT)
    labels = [classifier.judge(prepare(Record(image), "full").pixels, 0)[0] for image in images]
    boxes = [[[20.0, 10.0, 60.0, 50.0]]] * COUNT
    write(root / "photos.parquet", images, labels, boxes)
    square_detector(root / "detector.onnx")
    return root


@pytest.fixture(scope="module")
def smoke(desk: Path) -> Body:
    """The result of the whole benchmark in small: SLIM with its controls, and two peers."""
    status = slim(
        "bench", desk / "photos.parquet", "-c", desk / "judge.onnx", "--codecs", "slim,jpeg,webp",
        *QUALITIES, "--steps", "0,1", "--guidance", "0", "--effort", "0", "--protocol", "full", "--detector", desk / "detector.onnx", "-o", desk / "smoke.json",
    )  # fmt: skip
    assert status == 0
    body: Body = json.loads((desk / "smoke.json").read_text())
    return body


def columns(body: Body, without: set[str] | None = None) -> dict[tuple[str, int, str], dict[str, Any]]:
    """{(curve, quality, column): {photo: value}}: what is measured, apart from times."""
    left_out = without or set()
    found = {}
    for curve in body["curves"]:
        for point in curve["points"]:
            for name, column in point["photos"].items():
                values = column[0] if name in ("guess", "rank") else column
                found[curve["name"], point["quality"], name] = {
                    id_: value
                    for id_, value in zip(body["photos"]["id"], values, strict=True)
                    if id_ not in left_out
                }
    return found


def same_but_for_time(a: Body, b: Body) -> bool:
    def timeless(body: Body) -> Body:
        body = copy.deepcopy(body)
        body.pop("made")
        body["dataset"].pop("name")
        for curve in body["curves"]:
            for point in curve["points"]:
                point.pop("milliseconds")
        return body

    return timeless(a) == timeless(b)


# --- what a result says


def test_the_smoke_result(smoke: Body, desk: Path) -> None:
    names = [curve["name"] for curve in smoke["curves"]]
    assert names == [
        *(f"slim steps {steps} + effort 0" for steps in (
            "0", "0 + caption", "1", "1 + caption", "1 + wrong caption"
        )),
        "jpeg", "webp",
    ]  # fmt: skip
    assert smoke["uncompressed"]["top1 judge.onnx"][0] == 100.0
    assert smoke["dataset"]["photos"] == len(smoke["photos"]["id"]) == COUNT
    assert smoke["photos"]["id"] == sorted(smoke["photos"]["id"])
    assert smoke["curves"][0]["bundle"]["sha256"] == slimcodec.load().bundle.sha256
    assert not list(desk.glob("*.partial"))
    for curve in smoke["curves"]:
        low, high = (point["summary"] for point in curve["points"])
        assert low["bpp"][0] < high["bpp"][0] and low["psnr"][0] < high["psnr"][0]
        assert low["psnr_roi"] and low["psnr_background"] and 0 <= low["map50"] <= high["map50"] <= 1
        assert low["bpp"][1] <= low["bpp"][0] <= low["bpp"][2]
    assert smoke["made"]["command"].startswith("slim bench photos.parquet -c judge.onnx --codecs")
    # absolute paths tell nothing to a reader
    assert str(desk) not in json.dumps(smoke)


def test_every_bpp_is_that_of_a_file(smoke: Body, desk: Path, tmp_path: Path) -> None:
    samples = open_labelled(str(desk / "photos.parquet"))
    result = from_json(smoke)
    for sample in list(samples)[:3]:
        place = smoke["photos"]["id"].index(sample.id)
        made = prepare(sample, "full")
        for curve in chosen_curves(["slim", "jpeg", "webp"], guidance="0", effort=0):
            measured = next(c for c in result.curves if c.name == curve.name)
            codec = curve.codec()
            for point in measured.points:
                file = tmp_path / "file"
                file.write_bytes(codec.encode(made, point.quality))
                assert file.stat().st_size == point.values["bytes"][place]
                if curve.slim is None:
                    with Image.open(file) as picture:
                        assert picture.size == (88, 64) == made.pixels.shape[1::-1]
                    flat = Photo(np.full_like(made.pixels, 128))
                    assert point.values["bpp_less_grey"][place] == pytest.approx(
                        8 * (file.stat().st_size - len(codec.encode(flat, point.quality))) / (88 * 64)
                    )
                else:
                    info = slimcodec.inspect(file)
                    assert info.bpp == 8 * point.values["bytes"][place] / (88 * 64)
                    assert info.header_bytes == point.values["header"][place]
                    assert info.caption_bytes == point.values["caption"][place]
                    # where the captioner is not sure it names nothing
                    assert info.caption is None or curve.slim.caption != "none"
    for curve_body in smoke["curves"]:
        for point_body in curve_body["points"]:
            mean = np.mean([8 * size / (88 * 64) for size in point_body["photos"]["bytes"]])
            assert point_body["summary"]["bpp"][0] == pytest.approx(mean, rel=1e-5)


def small_setup(desk: Path) -> Setup:
    return Setup(
        chosen_curves(["slim", "jpeg"], [], ["slim=20", "jpeg=10"], "0", effort=0),
        (str(desk / "judge.onnx"),),
        "full",
    )


@pytest.mark.slow
def test_order_and_deletion_change_nothing_but_n(smoke: Body, desk: Path, tmp_path: Path) -> None:
    stored = parquet.read_table(desk / "photos.parquet")
    shuffled = [int(n) for n in np.random.default_rng(1).permutation(COUNT)]
    results = {}
    worker = Worker(small_setup(desk))
    for name, rows in (("all", list(range(COUNT))), ("shuffled", shuffled), ("fewer", shuffled[1:])):
        parquet.write_table(stored.take(rows), tmp_path / f"{name}.parquet")
        samples = open_labelled(str(tmp_path / f"{name}.parquet"))
        results[name] = run(worker, samples, tmp_path / f"{name}.json")
    assert same_but_for_time(results["all"], results["shuffled"])
    gone = set(results["all"]["photos"]["id"]) - set(results["fewer"]["photos"]["id"])
    assert len(gone) == 1 and results["fewer"]["dataset"]["photos"] == COUNT - 1
    assert columns(results["all"], gone) == columns(results["fewer"])
    assert results["all"]["dataset"]["sha256"] != results["fewer"]["dataset"]["sha256"]
    # and the photos are the same as in the larger run
    whole = columns(smoke)
    assert all(
        whole["slim steps 0 + effort 0", 10, "bytes"].keys() == column.keys()
        for column in columns(results["all"]).values()
    )


@pytest.mark.slow
def test_processes_change_nothing(desk: Path, tmp_path: Path) -> None:
    worker = Worker(small_setup(desk))
    samples = open_labelled(str(desk / "photos.parquet"), limit=6)
    alone, together = (run(worker, samples, tmp_path / f"{jobs}.json", jobs=jobs) for jobs in (1, 2))
    assert same_but_for_time(alone, together)
    assert load_all([tmp_path / "2.json"])[0].judges == ["judge.onnx"]


@pytest.mark.slow
def test_a_stopped_run_goes_on(desk: Path, tmp_path: Path) -> None:
    worker = Worker(small_setup(desk))
    samples = open_labelled(str(desk / "photos.parquet"), limit=8)
    out = tmp_path / "result.json"

    reads = itertools.count(1)

    def interrupted(row: int) -> Record:
        # labels are checked first, which reads every photo once
        if next(reads) == len(samples) + 6:
            raise KeyboardInterrupt
        return samples.read(row)

    with pytest.raises(KeyboardInterrupt):
        run(worker, replace(samples, read=interrupted), out)
    partial = tmp_path / "result.json.partial"
    assert not out.exists() and len(partial.read_text().splitlines()) == 1 + 5
    # the machine went down in the middle of a line
    partial.write_bytes(partial.read_bytes()[:-20])
    lines: list[str] = []
    resumed = run(worker, samples, out, report=lines.append)
    assert lines[0].startswith("4 of 8 ") and not partial.exists()
    assert same_but_for_time(resumed, run(worker, samples, tmp_path / "whole.json"))


def test_a_partial_file_of_another_run(desk: Path, tmp_path: Path) -> None:
    (tmp_path / "result.json.partial").write_text('{"another": "run"}\n')
    samples = open_labelled(str(desk / "photos.parquet"), limit=2)
    with pytest.raises(SlimError, match="is from a run with other codecs"):
        run(Worker(small_setup(desk)), samples, tmp_path / "result.json")


# --- errors before hours are spent


def test_labels_that_cannot_be_right(desk: Path) -> None:
    worker = Worker(small_setup(desk))
    classifier = worker.classifiers[0]
    noise = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), np.uint8)
    images = [Image.fromarray(grid).resize((32, 32), Image.Resampling.NEAREST) for grid in noise]
    guesses = [classifier.judge(np.asarray(image), 0)[0] for image in images]

    def labelled(labels: list[int]) -> LabelledPhotos:
        files = []
        for image in images:
            file = io.BytesIO()
            image.save(file, "PNG")
            files.append(file.getvalue())
        return LabelledPhotos(
            "noise",
            tuple(map(str, range(64))),
            tuple(labels),
            lambda row: Record(files[row], labels[row]),
        )

    check(worker, labelled(guesses))
    with pytest.raises(
        SlimError, match="64 of the first 64 photos by the class before their label.*shift them"
    ):
        check(worker, labelled([min(guess + 1, 999) for guess in guesses]))
    with pytest.raises(SlimError, match="no better than chance"):
        check(worker, labelled([(guess + 500) % 1000 for guess in guesses]))
    with pytest.raises(SlimError, match=r"labels are outside 0\.\.999"):
        check(worker, labelled([guess + 1000 for guess in guesses]))


def test_captions_need_the_classes_of_imagenet(desk: Path, tmp_path: Path) -> None:
    ten = str(colour_classifier(tmp_path / "ten.onnx", classes=10))
    enhanced = chosen_curves(["slim"], [], ["slim=20"], "1")
    samples = LabelledPhotos("one", ("a",), (3,), lambda row: Record(crops(1)[0], 3))
    with pytest.raises(SlimError, match="ten.onnx has 10 classes.*--steps 0"):
        check(Worker(Setup(enhanced, (ten,), "full")), samples)
    check(Worker(Setup(chosen_curves(["slim"], steps="0"), (ten,), "full")), samples)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (("-c", "missing.onnx"), "missing.onnx: no such file"),
        (("--codecs", "jpeg,bpg"), "'bpg' is no codec"),
        (("--codec", "x: enc missing-tool {in} {out} {q} : dec cp {in} {out}"), "no program 'missing-tool'"),
        (
            ("--codec", "x: enc cp {in} {out} -q {q} : dec cp {in} {out}", "--qualities", "x=1"),
            "codec x: cp ended",
        ),
        (("--protocol", "icm-224"), "'icm-224' is no protocol"),
        (("--labels", "labels.csv"), "are for image folders"),
        (("--lpips", "missing.pt"), "no TorchScript module"),
        (("--detector", "missing.onnx"), "missing.onnx: no such file"),
    ],
)
def test_wrong_arguments_end_with_a_line(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: tuple[str, ...], reason: str
) -> None:
    common = ("-c", desk / "judge.onnx") if "-c" not in changed else ()
    out = tmp_path / "result.json"
    assert slim("bench", desk / "photos.parquet", *common, "--codecs", "jpeg", *changed, "-o", out) == 1
    said = capsys.readouterr().err
    assert reason in said and "Traceback" not in said and said.count("\n") == 1
    assert not out.exists()


def test_results_are_not_replaced(desk: Path, smoke: Body, capsys: pytest.CaptureFixture[str]) -> None:
    before = (desk / "smoke.json").read_bytes()
    assert slim("bench", desk / "photos.parquet", "-c", "x", "-o", desk / "smoke.json") == 1
    assert "exists; --overwrite replaces it" in capsys.readouterr().err
    assert (desk / "smoke.json").read_bytes() == before and smoke
    # said before hours of work, of which nothing could be kept
    assert slim("bench", desk / "photos.parquet", "-c", "x", "-o", desk, "--overwrite") == 2
    assert f"{desk}: is a folder" in capsys.readouterr().err
    assert slim("report", desk / "smoke.json", "-o", desk / "smoke.json") == 1
    assert f"{desk / 'smoke.json'}: " in capsys.readouterr().err


# --- the report


def test_the_report(desk: Path, smoke: Body, tmp_path: Path) -> None:
    published = Path(__file__).parent.parent / "results" / "published" / "icm-imagenet.json"
    out = tmp_path / "report"
    status = slim(
        "report", desk / "smoke.json", published, "-o", out, "--anchor", "jpeg", "--examples", "2", "--bytes", "600",
        "--photos", desk / "photos.parquet", "-c", desk / "judge.onnx",
    )  # fmt: skip
    assert status == 0
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    # nothing is loaded from elsewhere
    assert set(re.findall(r'(?:src|srcset|href)="(\w+):', page)) == {"data"} and "<script" not in page
    for picture in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (out / picture).is_file(), picture
    for name in ("rate-accuracy", "rate-psnr"):
        with Image.open(out / f"{name}.png") as wide, Image.open(out / f"{name}-narrow.png") as narrow:
            assert wide.size[0] == 1920 and narrow.size[0] == 800
    for words in (
        "At equal bits",
        "without container overhead of jpeg",
        "caption alone",
        "wrong drawn in",
        "no overlap",
        "bit map",
        "bpp is a likelihood estimate",
    ):
        assert words in page, words
    # a row for each of the two examples, the original and every codec in it
    assert page.count('<div class="photos">') == 2 and page.count("<figure><img src") > 4
    assert "its smallest" in page and "BD-rate at equal top-1" in text
    assert str(tmp_path) not in page + text


def test_the_bit_map_is_that_of_the_file_beside_it(smoke: Body, desk: Path) -> None:
    result, samples = from_json(smoke), open_labelled(str(desk / "photos.parquet"), labelled=False)
    ((_, mapped, *_),) = example_sheet(result, samples, str(desk / "judge.onnx"), 600, 1, None, "cpu")
    curve, codec = result.curves[0], default_codec()
    assert mapped.lines == ("bit map", f"of {curve.name}")
    photo = prepare(samples.read(samples.ids.index(result.photos["id"][0])), "full")
    _, data = best_that_fits(partial(curve.codec().encode, photo), curve.qualities, 600)
    bits = codec.coder.bit_map(codec.read(data)[1])
    assert np.array_equal(mapped.pixels, np.asarray(draw_bits(photo.pixels, bits, codec.cell)))


def test_a_report_without_controls_is_refused(
    smoke: Body, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(body: Body) -> str:
        (tmp_path / "result.json").write_text(json.dumps(body))
        assert slim("report", tmp_path / "result.json", "-o", tmp_path / "report") == 1
        assert not (tmp_path / "report").exists()
        return capsys.readouterr().err

    for missing in ("slim steps 1 + effort 0", "slim steps 1 + wrong caption + effort 0"):
        body = copy.deepcopy(smoke)
        body["curves"] = [curve for curve in body["curves"] if curve["name"] != missing]
        assert f"these are missing: {missing}; run slim bench" in refused(body)
    body = copy.deepcopy(smoke)
    body["photos"].pop("caption")
    assert "these are missing: caption alone" in refused(body)
    body = copy.deepcopy(smoke)
    body["curves"][2]["points"].pop()
    assert "these are missing: slim steps 1" in refused(body)


def test_results_in_the_repository() -> None:
    root = Path(__file__).parent.parent / "results"
    found = [
        path for path in root.glob("*.json") if '"format": "slimcodec-bench-1"' in path.read_text()[:200]
    ]
    assert found
    for path in found:
        result, published = load_all([path, *sorted((root / "published").glob("*.json"))])
        assert published and published[0].uncompressed == 76.7
        stored = json.loads(path.read_text())
        for curve, described in zip(result.curves, stored["curves"], strict=True):
            for point, summarised in zip(curve.points, described["points"], strict=True):
                assert summarised["summary"]["bpp"][0] == pytest.approx(point.values["bpp"].mean(), rel=1e-5)


@pytest.mark.slow
def test_results_apart_and_together(
    desk: Path, smoke: Body, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, wanted in (("slim", True), ("peers", False)):
        body = copy.deepcopy(smoke)
        body["curves"] = [curve for curve in body["curves"] if (curve["slim"] is not None) == wanted]
        (tmp_path / f"{name}.json").write_text(json.dumps(body))
    out = tmp_path / "report"
    assert slim("report", tmp_path / "slim.json", tmp_path / "peers.json", "-o", out) == 0
    assert "7 curves" in capsys.readouterr().out
    other = copy.deepcopy(smoke)
    other["dataset"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert slim("report", desk / "smoke.json", tmp_path / "other.json", "-o", out) == 1
    assert "have other photos: report them apart" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert slim("report", tmp_path / "other.json", "-o", out) == 1
    assert "not a result of slim bench" in capsys.readouterr().err
