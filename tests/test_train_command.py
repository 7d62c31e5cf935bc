"""``slim train`` as a user runs it: every stage on drawn pictures, killed in the middle of each, ends in the same bundle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import photo

import slimcodec
from slimcodec.models.bundle import Bundle
from slimcodec.training.recipe import load_recipe

pytestmark = pytest.mark.slow

#: the stages of recipe smoke
TRAINED = load_recipe("smoke").stages

#: one thread: sums of several threads may differ in their last bits
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

#: an import of torch fails in it
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import slimcodec
codec = slimcodec.load(sys.argv[1])
print(codec.runtime.name, codec.decode(codec.encode(sys.argv[2], 60), steps=0).size)
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "slimcodec.cli", "train", *map(str, arguments)]


def run(*arguments: object) -> str:
    done = subprocess.run(
        command(*arguments), check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run of the recipe ``smoke``."""
    folder = tmp_path_factory.mktemp("smoke")
    said = run("all", "-c", "smoke", "--set", f"out={folder}")
    assert "photos          64" in said and "coverage" in said
    return folder


def test_the_smoke_recipe_makes_a_bundle_that_codes(smoke: Path) -> None:
    codec = slimcodec.load(smoke / "bundle", dtype="float32")
    data = codec.encode(photo("coffee", 90, 70), 60, caption="balloon")
    assert slimcodec.inspect(data).bundle_id == codec.bundle.bundle_id
    for steps in (0, 1):
        assert codec.decode(data, steps=steps).size == (90, 70)
    training = codec.bundle.config.training
    assert training["recipe"]["name"] == "smoke" and set(training["stages"]) == set(TRAINED)
    assert training["commands"][-1].startswith("slim train all --config smoke --set data=PHOTOS")


def test_a_trained_bundle_runs_without_torch(smoke: Path, tmp_path: Path) -> None:
    photo("coffee", 90, 70).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(smoke / "bundle"), str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["onnx", "(90,", "70)"]
    # a copy of the bundle keeps them
    Bundle.from_pretrained(smoke / "bundle").save_pretrained(tmp_path / "copy")
    assert Bundle.from_pretrained(tmp_path / "copy").graphs


def test_a_run_folder_shows_what_was_done(smoke: Path) -> None:
    for stage in TRAINED:
        lines = [json.loads(line) for line in (smoke / f"{stage}.jsonl").read_text().splitlines()]
        steps = getattr(load_recipe("smoke"), stage).optimisation.steps
        assert lines[-1]["step"] == steps and {
            "loss",
            "gradient_norm",
            "images_per_second",
            "data_share",
        } <= set(lines[0])
        sheets = sorted((smoke / "samples").glob(f"{stage}-*.png"))
        assert sheets and Image.open(sheets[-1]).width > 100
        assert list((smoke / "tensorboard" / stage).iterdir())
    terms = json.loads((smoke / "compressor.jsonl").read_text().splitlines()[0])
    assert {"bpp", "mse_roi", "mse_background", "fidelity"} <= set(terms)
    assert json.loads((smoke / "data_card.json").read_text())["with_annotated_mask"] == 64


def test_the_compressor_stage_tunes_the_encoder_if_the_recipe_wants_it(smoke: Path, tmp_path: Path) -> None:
    def tuned(folder: Path) -> set[str]:
        """Parts of the autoencoder that the compressor stage changed."""
        before, after = (
            load_file(folder / f"{stage}.safetensors") for stage in ("autoencoder", "compressor")
        )
        return {
            name.split(".")[0]
            for name in before
            if not torch.equal(before[name], after[f"autoencoder.{name}"])
        }

    assert tuned(smoke) == {"encoder", "decoder", "analysis", "synthesis"}
    shutil.copy(smoke / "autoencoder.safetensors", tmp_path)
    short = ("compressor.optimisation.steps=4", "compressor.train_encoder=false")
    run("compressor", "-c", "smoke", "--set", f"out={tmp_path}", "--set", short[0], "--set", short[1])
    assert tuned(tmp_path) == {"decoder", "synthesis"}


def test_killed_in_every_stage_and_resumed_it_ends_in_the_same_weights(smoke: Path, tmp_path: Path) -> None:
    arguments = ("all", "-c", "smoke", "--set", f"out={tmp_path}", "--resume")
    for stage in TRAINED:
        log = tmp_path / f"{stage}.jsonl"
        with subprocess.Popen(
            command(*arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            limit = time.monotonic() + 120
            while not (log.exists() and log.read_text().count("\n") >= 3):
                assert process.poll() is None and time.monotonic() < limit, stage
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / f"{stage}.safetensors").exists(), "killed too late to prove anything"
    said = run(*arguments)
    assert "enhance goes on at step" in said
    for stage in TRAINED:
        ours, theirs = (load_file(folder / f"{stage}.safetensors") for folder in (smoke, tmp_path))
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), stage
    assert slimcodec.load(tmp_path / "bundle").bundle.sha256 == slimcodec.load(smoke / "bundle").bundle.sha256


def test_a_run_stops_after_its_minutes(tmp_path: Path) -> None:
    arguments = command("autoencoder", "-c", "smoke", "--set", f"out={tmp_path}", "--minutes", 0, "--resume")
    done = subprocess.run(
        arguments, check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )
    assert done.returncode == 3 and "go on with --resume" in done.stderr
    assert list(tmp_path.glob("autoencoder.pt")) and not list(tmp_path.glob("autoencoder.safetensors"))


def test_preview_shows_photos_with_masks_and_trains_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    said = run("preview", "-c", "smoke", "--set", f"out={folder}")
    assert str(folder / "preview.png") in said
    assert Image.open(folder / "preview.png").size[0] > 900
    assert [path.name for path in folder.iterdir()] == ["preview.png"]


def test_adapting_the_unet_by_low_rank_changes_nothing_else(tmp_path: Path, smoke: Path) -> None:
    for name in ("autoencoder", "compressor", "captioner", "diffusion"):
        (tmp_path / f"{name}.safetensors").write_bytes((smoke / f"{name}.safetensors").read_bytes())
    settings = [f"out={tmp_path}", "enhance.lora_rank=2", "enhance.rate=1.0", "enhance.optimisation.steps=4"]
    options = [part for setting in settings for part in ("--set", setting)]
    run("enhance", "-c", "smoke", *options)
    said = run("bundle", "-c", "smoke", *options)
    assert "bundle" in said
    codec = slimcodec.load(tmp_path / "bundle", dtype="float32")
    assert codec.decode(codec.encode(photo("coffee", 64, 64), 40), steps=1).size == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compressor", "-c", "smoke"), "run `slim train autoencoder`"),
        (("all", "-c", "smoke", "--set", "data=nowhere/*.parquet"), "nowhere"),
        (("all", "-c", "tiny-cpu"), "data.photos is not set"),
        (("colour",), "no such stage"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = subprocess.run(
        command(*arguments, "--set", f"out={tmp_path / 'run'}"),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr


def refused(*arguments: object) -> str:
    """What a run says that does not begin."""
    done = subprocess.run(
        command(*arguments), check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_what_a_run_has_made_is_replaced_by_request_alone(smoke: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(smoke, folder)
    ours = ("-c", "smoke", "--set", f"out={folder}")
    recipe = (folder / "recipe.json").read_bytes()
    for stage in ("all", "compressor", "bundle"):
        message = refused(stage, *ours)
        assert "--resume" in message and "--overwrite" in message
    # settings that the weights were not made with
    for changed, name in (
        ("compressor.background=0.9", "compressor"),
        ("roi.source=none", "roi"),
        ("data=generated:8", "data"),
    ):
        message = refused("compressor", *ours, "--set", changed, "--resume")
        assert "compressor.safetensors" in message and f"({name})" in message
    assert "other settings (compressor)" in refused(
        "bundle", *ours, "--set", "compressor.background=0.9", "--resume"
    )
    run("preview", *ours, "--set", "compressor.background=0.9")
    assert (folder / "recipe.json").read_bytes() == recipe
    # what was trained on weights that are others now
    run("autoencoder", *ours, "--set", "autoencoder.optimisation.seed=5", "--overwrite")
    assert "(weights of autoencoder)" in refused("diffusion", *ours, "--resume")


def test_weights_of_another_recipe_are_named(tmp_path: Path, smoke: Path) -> None:
    for name in ("autoencoder.safetensors", "compressor.pt"):
        shutil.copy(smoke / name, tmp_path)
    for setting, culprit in (
        ("autoencoder.network.encoder_blocks=[2, 1]", "autoencoder.safetensors"),
        ("compressor.network.hyper_width=8", "compressor.pt"),
        ("compressor.train_decoder=false", "compressor.pt"),
    ):
        message = refused(
            "compressor", "-c", "smoke", "--resume", "--set", f"out={tmp_path}", "--set", setting
        )
        assert culprit in message and "settings that it was made with" in message
