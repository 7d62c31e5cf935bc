"""Data sets, protocols, judges and codecs of the benchmark, each on its own."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from judges import colour_classifier
from PIL import Image
from support import NAMES, photo

from slimcodec.data.classifiers import load_classifier, stated_size
from slimcodec.data.photos import Photo, Record
from slimcodec.data.sources import open_labelled
from slimcodec.errors import SlimError
from slimcodec.evaluation.bench import check_labels, prepare
from slimcodec.evaluation.curves import SlimSettings, chosen_curves, slim_settings, wrong_class
from slimcodec.evaluation.peers import PEERS, CommandCodec, load_peer
from slimcodec.models.pretrained.hub import Preprocessing, centre_square


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four photos in folders named by class index."""
    root = tmp_path / "photos"
    for number, name in enumerate(NAMES):
        (root / str(number * 10)).mkdir(parents=True)
        photo(name, 40, 30).save(root / str(number * 10) / f"{name}.png")
    return root


# --- data sets


def test_folder_of_numbers(folder: Path) -> None:
    samples = open_labelled(str(folder))
    assert samples.labels == (0, 10, 20, 30) and len(set(samples.ids)) == 4
    assert samples.name == "photos" and len(open_labelled(str(folder), limit=2)) == 2
    assert [sample.id for sample in samples] == list(samples.ids)
    check_labels(samples, 31, "judge")
    with pytest.raises(SlimError, match=r"1 of 4 labels are outside 0\.\.29.*30 in row 3"):
        check_labels(samples, 30, "judge")


def test_labels_from_a_list(folder: Path, tmp_path: Path) -> None:
    lines = [
        f"{path.relative_to(folder).as_posix()},{n}" for n, path in enumerate(sorted(folder.rglob("*.png")))
    ]
    listed = tmp_path / "labels.csv"
    listed.write_text("file,class\n" + "\n".join(lines))
    assert open_labelled(str(folder), labels=str(listed)).labels == (0, 1, 2, 3)
    listed.write_text("\n".join(lines[1:]))
    with pytest.raises(SlimError, match="no label for 1 of 4 photos, the first is 0/astronaut.png"):
        open_labelled(str(folder), labels=str(listed))
    listed.write_text("file,class\nnonsense")
    with pytest.raises(SlimError, match="line 2 is 'nonsense'"):
        open_labelled(str(folder), labels=str(listed))
    with pytest.raises(SlimError, match="cannot be read"):
        open_labelled(str(folder), labels=str(tmp_path / "missing.csv"))


def test_folders_named_by_class(folder: Path, tmp_path: Path) -> None:
    (folder / "30").rename(folder / "cat")
    with pytest.raises(SlimError, match="its class is unknown"):
        open_labelled(str(folder))
    names = tmp_path / "classes.txt"
    names.write_text("dog\ncat\n0\n10\n20\n")
    assert open_labelled(str(folder), classes=str(names)).labels == (2, 3, 4, 1)


def test_parquet_and_its_errors(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    images = [{"bytes": png(photo(name, 32, 32)), "path": None} for name in NAMES]
    boxes = [[[1.0, 2.0, 9.0, 8.0]], [], [], []]
    table = pyarrow.table(
        {"image": images, "label": ["a", "b", "c", "d"], "number": [3, 1, 4, 1], "boxes": boxes}
    )
    path = tmp_path / "photos.parquet"
    parquet.write_table(table, path)
    samples = open_labelled(str(path), label_column="number")
    assert samples.labels == (3, 1, 4, 1) and samples.read(0).boxes == ((1.0, 2.0, 9.0, 8.0),)
    with pytest.raises(SlimError, match="holds 'a', not a class index"):
        open_labelled(str(path))
    with pytest.raises(SlimError, match="no column classes; choose one of image, label, number"):
        open_labelled(str(path), label_column="classes")
    with pytest.raises(SlimError, match="missing.parquet: no such file"):
        open_labelled(str(tmp_path / "missing.parquet"))
    for missing in ("photos.parq", "./photos", str(tmp_path / "photos")):
        with pytest.raises(SlimError, match=f"{missing}: no such file"):
            open_labelled(missing)
    parquet.write_table(
        pyarrow.table({"image": [images[0]] * 2, "label": [1, 1]}), tmp_path / "twice.parquet"
    )
    with pytest.raises(SlimError, match="1 photos are there twice, the first in rows 0 and 1"):
        open_labelled(str(tmp_path / "twice.parquet"))


# --- protocols


def test_the_square_of_torchvision() -> None:
    # Resize(256) makes 341x256 of 500x375 (256 * 500 / 375 = 341.3), CenterCrop(256) begins at round(42.5) = 42
    picture = photo("coffee", 500, 375)
    scaled = picture.resize((341, 256), Image.Resampling.BILINEAR)
    assert centre_square(picture, 256) == scaled.crop((42, 0, 298, 256))
    assert centre_square(photo("coffee", 256, 256), 256) == photo("coffee", 256, 256)


def test_boxes_follow_the_crop() -> None:
    sample = Record(png(photo("coffee", 512, 256)), 1, boxes=((128.0, 64.0, 256.0, 128.0),))
    made = prepare(sample, "icm-256")
    assert made.pixels.shape == (256, 256, 3) and made.mask is not None
    rows, columns = np.nonzero(made.mask >= 0.5)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (0, 127, 64, 127)
    whole = prepare(sample, "full")
    assert whole.pixels.shape == (256, 512, 3) and whole.mask is not None and whole.mask.sum() == 128 * 64


# --- judges


def test_rank_and_ties(tmp_path: Path) -> None:
    classifier = load_classifier(str(colour_classifier(tmp_path / "colours.onnx")))
    assert (classifier.classes, classifier.preprocessing.side) == (1000, 32)
    pixels = np.asarray(photo("rocket"))
    scores = classifier.scores(pixels)
    order = scores.argsort()[::-1]
    assert classifier.judge(pixels, int(order[0])) == (order[0], 0)
    assert classifier.judge(pixels, int(order[7])) == (order[0], 7)
    level = load_classifier(str(colour_classifier(tmp_path / "colours.onnx")))
    level.network = lambda x: (torch.zeros(1, 1000),)
    # a network that says nothing is right about one class only
    assert level.judge(pixels, 0) == (0, 0) and level.judge(pixels, 4) == (0, 4)


def test_background_class_is_left_out(tmp_path: Path) -> None:
    with_background = load_classifier(str(colour_classifier(tmp_path / "a.onnx", classes=1001)))
    assert with_background.classes == 1000
    assert with_background.scores(np.asarray(photo("coffee"))).shape == (1000,)


def test_sides_and_normalisation(tmp_path: Path) -> None:
    path = colour_classifier(tmp_path / "free.onnx", side="s")
    assert load_classifier(f"{path}@32").preprocessing.side == 32
    Path(f"{path}.json").write_text('{"side": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}')
    how = load_classifier(str(path)).preprocessing
    assert how == Preprocessing(32, (0.5,) * 3, (0.25,) * 3)
    white = how.network_input(np.full((64, 64, 3), 255, np.uint8))
    assert white.shape == (1, 3, 32, 32) and np.allclose(white, 2.0)
    full = load_classifier(str(path), "full").preprocessing
    # the centre square of a wide photo, not the whole squeezed
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 255
    assert full.network_input(wide)[0, 0, 0, 1:-1].tolist() == pytest.approx([2.0] * 30)
    Path(f"{path}.json").write_text('{"size": 32}')
    with pytest.raises(SlimError, match="write a JSON object with some of side, mean, std"):
        load_classifier(str(path))


def test_torchscript_with_features(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.mean((2, 3)).repeat(1, 4), x

    torch.jit.script(Net()).save(str(tmp_path / "net.pt"))
    classifier = load_classifier(f"{tmp_path / 'net.pt'}@16")
    assert classifier.classes == 12 and classifier.preprocessing.side == 16


def test_transformers_folder(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    config.num_labels = 7
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    settings = {
        "size": {"shortest_edge": 64},
        "crop_pct": 0.875,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    square_whole, full = load_classifier(str(tmp_path)), load_classifier(str(tmp_path), "full")
    assert square_whole.classes == 7 and square_whole.sha256 == full.sha256
    # as TransTIC and Adapt-ICMH do it: the whole 256x256 picture, no crop
    assert square_whole.preprocessing == Preprocessing(None, (0.5,) * 3, (0.5,) * 3)
    assert full.preprocessing == Preprocessing(64, (0.5,) * 3, (0.5,) * 3, True, 0.875)
    assert 0 <= full.judge(np.asarray(photo("coffee", 300, 200)), 3)[1] < 7


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, True, 0.875)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, (224, True, 0.875)),
        ({"size": {"height": 384, "width": 384}}, (384, False, 1.0)),
        ({"size": 192}, (192, True, 1.0)),
    ],
)
def test_sizes_of_transformers_models(settings: dict[str, object], expected: tuple[int, bool, float]) -> None:
    assert stated_size(settings) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.onnx", "no such file"),
        ("missing.pt", "no such file"),
        ("./missing", "no such model"),
        ("net.onn", "no such model"),
    ],
)
def test_missing_classifier(name: str, reason: str) -> None:
    with pytest.raises(SlimError, match=reason):
        load_classifier(name)


def test_what_is_no_classifier(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(SlimError, match="onnxruntime cannot load it"):
        load_classifier(str(tmp_path / "text.onnx"))
    with pytest.raises(SlimError, match="takes 32x32 pictures, not 64x64"):
        load_classifier(f"{colour_classifier(tmp_path / 'a.onnx')}@64")


# --- codecs


@pytest.mark.parametrize("name", PEERS)
def test_peers_write_bare_pixels(name: str) -> None:
    if plugin := PEERS[name].plugin:
        pytest.importorskip(plugin[0])
    peer = load_peer(name)
    made = Photo(np.asarray(photo("coffee", 200, 120)))
    files = {quality: peer.encode(made, quality) for quality in PEERS[name].qualities}
    for data in files.values():
        assert peer.decode(data).shape == (120, 200, 3)
        assert b"Exif" not in data and b"ICC_PROFILE" not in data
    assert len({len(data) for data in files.values()}) == len(files)
    largest = max(files.values(), key=len)
    error = np.square(peer.decode(largest).astype(float) - made.pixels).mean()
    assert error < 120, f"{name} at its best quality"
    described = peer.describe()
    assert described["version"] and "q" in str(described["settings"])


def test_missing_plugin_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(SlimError, match=r"jxl: needs pillow-jxl-plugin: pip install 'slimcodec\[peers\]'"):
        load_peer("jxl")
    with pytest.raises(SlimError, match="'bpg' is no codec of the benchmark; take slim, jpeg"):
        load_peer("bpg")


@pytest.fixture
def webp_command(tmp_path: Path) -> str:
    """A command codec: Pillow's WebP behind two small programs."""
    script = tmp_path / "tool.py"
    script.write_text(
        "import sys\nfrom PIL import Image\n"
        "source, target, *quality = sys.argv[1:]\n"
        "picture = Image.open(source)\n"
        "picture.save(target, quality=int(quality[0])) if quality else picture.save(target)\n"
    )
    return f"webp: enc {sys.executable} {script} {{in}} {{out}} {{q}} : dec {sys.executable} {script} {{in}} {{out}}"


def test_command_codec(webp_command: str) -> None:
    codec = CommandCodec.parse(webp_command)
    made = Photo(np.asarray(photo("coffee", 90, 70)))
    data = codec.encode(made, 50)
    assert data[:4] == b"RIFF" and codec.decode(data).shape == (70, 90, 3)
    assert len(codec.encode(made, 90)) > len(data)
    with pytest.raises(
        SlimError, match="codec webp: .* ended with status 1 and no file: .*UnidentifiedImageError"
    ):
        codec.decode(b"garbage")


@pytest.mark.skipif(not (shutil.which("cjxl") and shutil.which("djxl")), reason="needs cjxl and djxl")
def test_cjxl() -> None:
    codec = CommandCodec.parse("jxl: enc cjxl {in} {out} -q {q} --quiet : dec djxl {in} {out} --quiet")
    made = Photo(np.asarray(photo("coffee", 90, 70)))
    assert codec.decode(codec.encode(made, 40)).shape == (70, 90, 3)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("cjxl {in} {out}", "is no codec; write"),
        ("x: enc true {in} {out} : dec true {in} {out}", r"\{q\} missing"),
        ("x: enc no-such-program {in} {out} {q} : dec true {in} {out}", "no program 'no-such-program'"),
        ("x: enc true '{in} {out} {q} : dec true {in} {out}", "No closing quotation"),
    ],
)
def test_command_templates_that_cannot_work(template: str, reason: str) -> None:
    with pytest.raises(SlimError, match=reason):
        CommandCodec.parse(template)


# --- curves


def test_enhanced_curves_bring_their_controls() -> None:
    found = slim_settings([0, 2], [0.0, 1.5])
    assert [settings.name for settings in found] == [
        "slim steps 0",
        "slim steps 0 + caption",
        "slim steps 0 + caption + guidance 1.5",
        "slim steps 0 + wrong caption + guidance 1.5",
        "slim steps 2",
        "slim steps 2 + caption",
        "slim steps 2 + wrong caption",
        "slim steps 2 + caption + guidance 1.5",
        "slim steps 2 + wrong caption + guidance 1.5",
    ]
    for settings in found:
        assert not settings.enhanced or set(settings.controls()) <= set(found)
    assert not SlimSettings(0, "auto").enhanced


def test_no_caption_where_none_is_asked_for() -> None:
    curves = chosen_curves(["slim"], steps="0,2", guidance="none", effort=0)
    assert [curve.name for curve in curves] == ["slim steps 0 + effort 0", "slim steps 2 + effort 0"]


def test_chosen_curves_and_their_errors(webp_command: str) -> None:
    curves = chosen_curves(["jpeg"], [webp_command], ["webp=20,40", "jpeg=5"])
    assert [(curve.name, curve.qualities) for curve in curves] == [("jpeg", (5,)), ("webp", (20, 40))]
    for arguments, reason in (
        ((["jpeg"], [], ["avif=3"]), "no such codec in this run"),
        ((["jpeg"], [], ["jpeg=high"]), "write NAME=Q,Q,Q"),
        ((["webp"], [webp_command]), "there is another codec webp"),
        (([], [webp_command]), "say at which qualities"),
        (([],), "no codec chosen"),
        ((["slim"], [], ["slim=0,50"]), "whole numbers from 1 to 100"),
        ((["slim"], [], [], "many"), "--steps 'many'"),
    ):
        with pytest.raises(SlimError, match=reason):
            chosen_curves(*arguments)


def test_wrong_captions_are_the_same_every_time() -> None:
    names = ["crane", "cat", "crane", "dog"]
    drawn = {wrong_class(f"photo {number}", 0, names) for number in range(50)}
    # never the other class of the same name
    assert drawn == {1, 3}
    assert wrong_class("a", 0, names) == wrong_class("a", 0, names)
