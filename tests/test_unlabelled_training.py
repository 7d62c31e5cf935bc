"""Training on what people have: a folder of photos without labels makes a bundle, and what is missing is said first."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from support import NAMES, photo, slim

import slimcodec
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.data.photos import PhotoSet
from slimcodec.data.sources import open_table
from slimcodec.errors import SlimError
from slimcodec.models.bundle import Bundle
from slimcodec.training import STAGES
from slimcodec.training.data import data_card
from slimcodec.training.recipe import load_recipe
from slimcodec.training.run import Run
from slimcodec.training.stages import check_stages


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        photo(NAMES[number % 4], 80 + number, 70).save(folder / f"IMG_{number}.jpg")
    return folder


def few_steps(photos: Path, *more: str) -> tuple[str, ...]:
    steps = tuple(f"{stage}.optimisation.steps=2" for stage in STAGES)
    return (f"data={photos}", f"out={photos.parent / 'run'}", "reports.sample_every=0", *steps, *more)


@pytest.mark.slow
def test_any_folder_of_photos_makes_a_bundle(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slimcodec")
    options = [part for setting in few_steps(photos) for part in ("--set", setting)]
    assert slim("train", "all", "-c", "smoke", *options) == 0
    said = [record.getMessage() for record in caplog.records]
    (missing,) = (at for at, line in enumerate(said) if "captioner: not trained" in line)
    assert "slim-tiny" in said[missing]
    assert missing < next(at for at, line in enumerate(said) if line.startswith("autoencoder"))
    codec = slimcodec.load(photos.parent / "run" / "bundle", dtype="float32")
    (tagger,) = codec.bundle.config.captioners
    assert tagger == Bundle.from_pretrained().config.captioners[0]
    data = codec.encode(photo("coffee", 90, 70), 60)
    assert codec.decode(data, steps=1).size == (90, 70)


@pytest.mark.slow
def test_without_labels_nothing_is_learnt_of_them(photos: Path, tmp_path: Path) -> None:
    run = Run(load_recipe("smoke", few_steps(photos)))
    assert run.replaced == {"captioner": "slim-tiny"}
    (tmp_path / "tags.txt").write_text("cat\ncup\n")
    run = Run(load_recipe("smoke", few_steps(photos, f"data.vocabulary={tmp_path / 'tags.txt'}")))
    assert run.replaced == {"captioner": ""}
    assert Run(load_recipe("smoke", (f"out={tmp_path / 'drawn'}",))).replaced == {}


def test_class_folders_of_the_vocabulary_are_labels(tmp_path: Path) -> None:
    tag = (EMBEDDED_BUNDLE / "vocabulary.txt").read_text(encoding="utf-8").splitlines()[3]
    for name in (tag.replace(" ", "_"), "holiday"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        photo("coffee", 40, 40).save(tmp_path / "photos" / name / "1.png")
    labels = PhotoSet([open_table(str(tmp_path / "photos"), "train")]).labels()
    assert labels == {tag, "holiday"}
    recipe = load_recipe("smoke", (f"data={tmp_path / 'photos'}", f"out={tmp_path / 'run'}"))
    assert Run(recipe).replaced == {}


@pytest.mark.slow
def test_what_cannot_be_done_is_said_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "tags.txt").write_text("balloon\ncup\n")
    settings = (f"out={tmp_path / 'run'}", f"data.vocabulary={tmp_path / 'tags.txt'}")
    for more, reason in (
        (("captioner.start_from_weights=true", "captioner.network.side=192"), "captioner cannot start"),
        (("captioner.also=slim-tiny",), "no captioner of the same vocabulary"),
        ((f"data.thumbnails={tmp_path / 'missing'}",), "data.thumbnails"),
    ):
        run = Run(load_recipe("smoke", (*settings, *more)))
        with pytest.raises(SlimError, match=reason):
            check_stages(run, ("autoencoder", "captioner", "bundle"))


def test_the_data_card_counts_masks_that_a_network_will_make(photos: Path) -> None:
    pool = PhotoSet([open_table(str(photos), "train"), open_table("generated:3", "train")])
    card = data_card(pool, {"mask", "logits"})
    assert (card["with_annotated_mask"], card["with_mask_of_a_network"]) == (3, 8)
    assert data_card(pool, {"logits"})["with_mask_of_a_network"] == 0
    json.dumps(card)


def test_a_device_that_cannot_be_used_is_not_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert slim("encode", "--help") == 0
    assert "mps" not in capsys.readouterr().out
    with pytest.raises(SlimError, match="device 'mps' cannot be used .*cpu"):
        slimcodec.load(device="mps")
