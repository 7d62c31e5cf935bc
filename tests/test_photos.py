"""Where photos come from: folders, parquet, streams; broken ones are passed over, and what networks say is kept."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from support import NAMES, photo
from torch import Tensor

from slimcodec import ImageError, SlimError
from slimcodec.data.photos import PhotoSet, PhotoStream
from slimcodec.data.sources import open_labelled, open_sources
from slimcodec.training.batches import Crops, LabelledViews
from slimcodec.training.data import TrainingData, card_lines, data_card
from slimcodec.training.pseudo_labels import Labeller, PseudoLabelled, PseudoLabels
from slimcodec.training.recipe import load_recipe


def folder_of_photos(folder: Path) -> Path:
    """Photos in class folders, as people keep them."""
    for number in range(8):
        place = folder / ("golden_retriever" if number % 2 else "tench")
        place.mkdir(parents=True, exist_ok=True)
        photo(NAMES[number % 4], 96 + number, 80).save(place / f"{number}.jpg")
    return folder


def parquet(folder: Path, broken: int = 0) -> str:
    import datasets

    rows: list[dict[str, Any]] = [
        {"image": {"bytes": b"no picture", "path": None}, "boxes": [], "label": "tench"}
    ]
    rows *= broken
    for number in range(8):
        buffer = io.BytesIO()
        photo(NAMES[number % 4], 96 + number, 80).save(buffer, "PNG")
        boxes = [[10.0, 10.0, 50.0, 60.0]] if number % 2 else []
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "boxes": boxes, "label": "tench"})
    datasets.Dataset.from_list(rows).to_parquet(folder / "photos.parquet")
    return str(folder / "*.parquet")


def test_an_image_folder_gives_photos_with_labels(tmp_path: Path) -> None:
    photos = PhotoSet(open_sources([str(folder_of_photos(tmp_path))], "data.photos"))
    found = [photos[row] for row in range(len(photos))]
    assert len(found) == 8 and {p.label for p in found if p} == {"golden retriever", "tench"}
    assert found[0] is not None and found[0].mask is None


def test_annotations_beside_a_folder_become_masks(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    photo("coffee", 100, 80).save(pictures / "a.png")
    photo("rocket", 100, 80).save(pictures / "b.png")
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 20, 30, 40], "iscrowd": 0}],
        "categories": [{"id": 7, "name": "cup"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    from slimcodec.data.masks import read_annotations

    photos = PhotoSet(
        open_sources([str(pictures)], "data.photos"), read_annotations(str(tmp_path / "instances.json"))
    )
    a, b = photos[0], photos[1]
    assert a is not None and b is not None and a.mask is not None
    assert a.annotated and a.label == "cup" and float(a.mask.sum()) == 30 * 40 and a.mask[25, 15] == 1
    assert not b.annotated and b.mask is None


def test_broken_photos_are_named_counted_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = PhotoSet(open_sources([parquet(tmp_path, broken=2)], "data.photos"))
    with caplog.at_level(logging.WARNING, "slimcodec"):
        batch = Crops(photos, 64, 16, 0)(0)
        card = data_card(photos)
    assert batch.pictures.shape == (16, 3, 64, 64)
    assert card["photos"] == 10 and card["broken"] == 2 and photos.broken == {0, 1}
    assert sorted(record.message.split(" is left out")[0] for record in caplog.records) == ["row 0", "row 1"]
    assert any("2 broken" in line for line in card_lines(card))
    assert card["with_annotated_mask"] == 4 and 0 < card["mask_coverage"] < 1


def test_photos_that_are_all_broken_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no picture")
    photos = PhotoSet(open_sources([str(tmp_path)], "data.photos"))
    with pytest.raises(SlimError, match="are these pictures"):
        Crops(photos, 64, 2, 0)(0)


def test_a_source_is_drawn_as_often_as_its_share_says(tmp_path: Path) -> None:
    import datasets

    rows = []
    for value, name in ((60, "a"), (200, "b")):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (value,) * 3).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "source": name})
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "two.parquet"))
    photos = PhotoSet(open_sources([str(tmp_path / "two.parquet")], "data.photos"))

    def dark(shares: dict[str, float]) -> float:
        return float(
            (Crops(photos, 32, 256, 0, shares=shares)(0).pictures.mean((1, 2, 3)) < 0).float().mean()
        )

    assert 0.4 < dark({}) < 0.6
    assert 0.1 < dark({"a": 0.2}) < 0.25  # 0.2 of 1.2
    assert dark({"a": 0.0, "c": 0.5}) == 0
    with pytest.raises(SlimError, match="data.shares left none"):
        Crops(photos, 32, 1, 0, shares={"a": 0.0, "b": 0.0})(0)

    def shares(setting: str) -> dict[str, float]:
        recipe = load_recipe("smoke", [f"data={tmp_path}/two.parquet", f"data.shares={setting}"])
        return TrainingData(recipe, tmp_path, Accelerator(cpu=True)).shares

    assert shares('["a = 0.2"]') == {"a": 0.2}
    # only their ratio counts where all are named
    assert shares('["a=0.01", "b=0.02"]') == {"a": 0.5, "b": 1.0}
    with pytest.raises(SlimError, match="no photo is of c; there is a, b"):
        shares('["c=0.5"]')
    with pytest.raises(SlimError, match="leaves no photo"):
        shares('["a=0", "b=0"]')


def test_shares_need_photos_that_name_their_source(tmp_path: Path) -> None:
    recipe = load_recipe("smoke", [f"data={parquet(tmp_path)}", "data.shares=a=0.5"])
    with pytest.raises(SlimError, match="no column 'source'"):
        _ = TrainingData(recipe, tmp_path, Accelerator(cpu=True)).shares


@pytest.mark.parametrize("entry", ["a", "a=", "=0.5", "a=2", "a=-1", "a=nan", '["a=0.1", "a=0.2"]'])
def test_a_share_that_is_none_is_an_error(entry: str) -> None:
    with pytest.raises(SlimError, match="data.shares"):
        load_recipe("smoke", [f"data.shares={entry}"])


def test_a_batch_is_the_sum_of_its_shares(tmp_path: Path) -> None:
    crops = Crops(PhotoSet(open_sources([parquet(tmp_path)], "data.photos")), 64, 8, 3)
    whole, parts = crops(5), [crops(5, range(n, n + 2)) for n in (0, 2, 4, 6)]
    assert torch.equal(whole.pictures, torch.cat([part.pictures for part in parts]))
    assert torch.equal(whole.masks, torch.cat([part.masks for part in parts]))
    assert whole.captions == [caption for part in parts for caption in part.captions]
    assert not torch.equal(whole.pictures, crops(6).pictures)


def test_a_stream_serves_a_step_the_same_photos_wherever_it_begins() -> None:
    def crops() -> Crops:
        (source,) = open_sources(["generated:24"], "data.photos", streaming=True)
        return Crops(PhotoStream(source, 2, 7, 1), 64, 4, 1)

    going, wanted = crops(), {}
    for step in range(12):  # beyond the end of the stream: 12 steps need 42 photos
        wanted[step] = going(step).pictures
    assert len({float(batch.sum()) for batch in wanted.values()}) == 12
    for step in (9, 2, 11):
        assert torch.equal(crops()(step).pictures, wanted[step])
    assert torch.equal(going(3).pictures, wanted[3])


def test_memory_bounds_what_is_kept_and_changes_nothing(tmp_path: Path) -> None:
    sources = open_sources([parquet(tmp_path)], "data.photos")
    roomy, tight = PhotoSet(sources), PhotoSet(sources, memory=100 * 80 * 3 * 2)
    assert torch.equal(Crops(roomy, 64, 16, 0)(0).pictures, Crops(tight, 64, 16, 0)(0).pictures)
    assert len(tight._photos) <= 2 < len(roomy._photos)


class Answers:
    """A classifier that says the mean colour, and looks at the right half."""

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.nn.functional.avg_pool2d(pictures, 32)
        looked = features * torch.linspace(0, 1, features.shape[3])
        return looked.mean((2, 3)), looked


def test_labeller_are_asked_once_and_kept(tmp_path: Path) -> None:
    photos = PhotoSet(open_sources([parquet(tmp_path, broken=1)], "data.photos"))
    before = photos[1]
    labeller = Labeller([Answers()], captioner=lambda pixels, mask: "never asked: there is a label")
    view = PseudoLabelled(photos, labeller, tmp_path / "targets.pt")
    again = PseudoLabelled(photos, Labeller(), tmp_path / "targets.pt")[1]
    plain, boxed = view[1], view[2]
    assert plain is not None and boxed is not None and before is not None and before.mask is None
    assert (
        plain.mask is not None and not plain.annotated and plain.mask[:, -1].mean() > plain.mask[:, 0].mean()
    )
    assert boxed.annotated and boxed.mask is not None and set(np.unique(boxed.mask)) == {0.0, 1.0}
    assert plain.logits is not None and not plain.captions
    assert again is not None and again.logits is not None and torch.equal(again.logits, plain.logits)
    fewer = PhotoSet(open_sources(["generated:3"], "data.photos"))
    with pytest.raises(SlimError, match="belongs to other photos"):
        PseudoLabelled(fewer, labeller, tmp_path / "targets.pt")


def test_a_photo_without_words_is_named_by_the_captioner_from_its_region() -> None:
    seen: list[Any] = []

    def captioner(pixels: Any, mask: Any) -> str:
        seen.append(mask)
        return "a photo of a thing"

    photos = PhotoSet(open_sources(["generated:2"], "data.photos"))
    one = photos[0]
    assert one is not None
    one.label = None
    target = Labeller(captioner=captioner)(one)
    assert target == PseudoLabels(None, None, "a photo of a thing") and seen[0] is one.mask


def test_views_mix_labels_and_labeller(tmp_path: Path) -> None:
    photos = PhotoSet(open_sources([parquet(tmp_path)], "data.photos"))
    tags = ["goldfish", "shark", "tench", "hen"]
    labelled = LabelledViews(photos, tags, size=32, seed=0)(0, range(4))
    assert labelled.targets.tolist() == [[0, 0, 1, 0]] * 4 and bool(labelled.known.all())
    view = PseudoLabelled(photos, lambda photo: PseudoLabels(torch.zeros(3)), tmp_path / "targets.pt")
    mixed = LabelledViews(view, tags, size=32, seed=0)(0, range(4))
    assert torch.allclose(mixed.targets, torch.tensor([[1 / 6, 1 / 6, 1 / 6 + 0.5, 0]] * 4))
    nothing = PhotoSet(open_sources(["generated:2"], "data.photos"))
    with pytest.raises(SlimError, match=r"teachers\.models"):
        LabelledViews(nothing, tags, size=32, seed=0)(0, range(4))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/*.parquet", "nowhere/.*: no such file"),
        ("nodir", "nodir: no such file or folder.* OWNER/NAME"),
        ("", "empty"),
        ("{folder}/texts", "texts: no pictures in it"),
        ("generated:many", "how many"),
        ("{folder}/*.png", "no parquet file"),
    ],
)
def test_a_source_that_is_none_is_said(tmp_path: Path, spec: str, message: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(SlimError, match=message):
        open_sources([spec.format(folder=tmp_path)], "data.photos")
    with pytest.raises(SlimError, match=r"data\.photos is not set"):
        open_sources([], "data.photos")


def test_a_labelled_photo_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "set" / "7").mkdir(parents=True)
    (tmp_path / "set" / "7" / "bad.png").write_bytes(b"bad")
    rows = [{"image": {"bytes": data, "path": None}, "label": 1} for data in (b"bad", None)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "bad.parquet")
    for source, names in ((tmp_path / "set", ["bad.png"]), (tmp_path / "bad.parquet", ["row 0", "row 1"])):
        for record, name in zip(open_labelled(str(source)), names, strict=True):
            with pytest.raises(ImageError, match=name):
                record.decode()


def test_what_the_hub_does_not_know_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("it asks for 20 seconds"))
    with pytest.raises(SlimError, match=r"data\.photos: no/folder: no such folder"):
        open_sources(["no/folder"], "data.photos")
