"""``slim train`` on a pretrained latent diffusion model: only the compressor and low-rank matrices learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained import save_pipeline
from safetensors.torch import load_file
from support import photo

import slimcodec
import slimcodec.training.run
from slimcodec import SlimError
from slimcodec.models.bundle import Bundle
from slimcodec.models.pretrained.part_files import fingerprint
from slimcodec.training import loop
from slimcodec.training.batches import Draws
from slimcodec.training.create import create
from slimcodec.training.export import save_bundle
from slimcodec.training.recipe import load_recipe
from slimcodec.training.run import Run
from slimcodec.training.stages import train_stage

SETTINGS = [
    "data=generated:16",
    "data.workers=0",
    "device=cpu",
    "precision=no",
    "compressor.network.width=16",
    "compressor.network.hyper_width=16",
    "compressor.network.prior.width=16",
    "compressor.network.prior.head_width=16",
    "compressor.network.prior.hyper_channels=4",
    "compressor.optimisation.steps=40",
    "compressor.optimisation.batch=4",
    "compressor.optimisation.crop=64",
    "compressor.optimisation.warmup=2",
    "compressor.optimisation.learning_rate=2e-3",
    "enhance.lora_rank=4",
    "enhance.optimisation.steps=40",
    "enhance.optimisation.batch=4",
    "enhance.optimisation.crop=64",
    "enhance.optimisation.warmup=2",
    "enhance.optimisation.learning_rate=5e-3",
    "reports.log_every=20",
    "reports.checkpoint_every=0",
    "reports.sample_every=40",
]


def mean_loss(stage: Any, batches: int = 6) -> float:
    """The loss over some batches that training does not see, with draws of their own."""
    total = 0.0
    for step in range(1000, 1000 + batches):
        with torch.no_grad():
            loss, _ = stage.loss(stage.batches(step), Draws(0, step, range(4), 4), 1.0)
        total += float(loss) / batches
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("family", "rate"), [("sd2", 1.0), ("sdxl", 0.0)])
def test_the_loss_falls_and_only_ours_changes(
    family: str,
    rate: float,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses: dict[str, tuple[float, float]] = {}

    def watched(stage: Any, *arguments: Any, **options: Any) -> Any:
        before = mean_loss(stage)
        weights = loop.train(stage, *arguments, **options)
        losses[stage.name] = before, mean_loss(stage)
        return weights

    monkeypatch.setattr(slimcodec.training.run, "train", watched)
    source = save_pipeline(family, tmp_path / "models", fitted=True)
    parts = ("unet", "vae", "text_encoder")
    before = {part: fingerprint(source / part) for part in parts}
    settings = [*SETTINGS, f"ldm.source={source}", f"out={tmp_path / 'run'}", f"enhance.rate={rate}"]
    run = Run(load_recipe("hub-lora", settings), source="hub-lora")
    with caplog.at_level("INFO", "slimcodec"):
        for name in run.recipe.stages:
            train_stage(run, name)
        save_bundle(run)
    assert set(losses) == {"compressor", "enhance"}
    for name, (first, last) in losses.items():
        assert last < first, (name, first, last)
    for skipped in ("autoencoder: skipped", "diffusion: skipped", "captioner: skipped"):
        assert skipped in caplog.text
    # a transform code from the beginning: neither collapsed nor burst
    assert 0.01 < json.loads((tmp_path / "run" / "compressor.jsonl").read_text().splitlines()[0])["bpp"] < 8
    saved = load_file(tmp_path / "run" / "enhance.safetensors")
    assert {name.split(".")[0] for name in saved} == ({"lora", "codec"} if rate else {"lora"})
    assert {part: fingerprint(source / part) for part in parts} == before

    bundle = Bundle.from_pretrained(tmp_path / "run" / "bundle")
    assert set(bundle.stored) == {"compressor", "prior", "guide", "lora", "captioner-0"}
    assert bundle.config.enhancer is not None and bundle.config.enhancer.mode == "trained"
    first, last = bundle.config.enhancer.strength
    assert 0 < last < first <= 1
    codec = slimcodec.load(tmp_path / "run" / "bundle", dtype="float32")
    data = codec.encode(photo("coffee", 64, 64), 40)
    assert codec.decode(data, steps=1).size == (64, 64)

    # the merged matrices do what they did beside the weights
    assert run.pretrained is not None
    trained: Any = run.pretrained.latent_model.enhancer
    merged: Any = codec.bundle.latent_model.enhancer
    state = load_file(tmp_path / "run" / "enhance.safetensors")
    with torch.no_grad():
        for name, parameter in trained.unet.named_parameters():
            for theirs, ours in (
                (".lora_A.slim.weight", "/down/weight"),
                (".lora_B.slim.weight", "/up/weight"),
            ):
                if name.endswith(theirs):
                    parameter.copy_(state["lora." + name.removesuffix(theirs).replace(".", "/") + ours])
    latents, times = torch.randn(1, 4, 8, 8), torch.tensor([300])
    prompt = codec.bundle.latent_model.embed_captions(["a cat"])
    beside, inside = (made.predict(latents, times, prompt) for made in (trained, merged))
    assert torch.allclose(inside, beside, atol=2e-2 * float(beside.std()))

    # its compressor serves another bundle on the same model, its matrices too
    again = create(str(source), compressor=str(tmp_path / "run"), captioner="")
    assert again.config.compressor == bundle.config.compressor and "lora" in again.stored


def test_a_recipe_must_fit_its_model(tmp_path: Path) -> None:
    source = save_pipeline("sd1", tmp_path / "models")
    settings = [*SETTINGS, f"ldm.source={source}", f"out={tmp_path / 'run'}"]
    with pytest.raises(SlimError, match="lora_rank is 0"):
        load_recipe("hub-lora", [*settings, "enhance.lora_rank=0"])
    run = Run(load_recipe("hub-lora", [*settings, "compressor.network.latent_channels=8"]))
    with pytest.raises(
        SlimError, match="have 4 channels; set latent_channels=4, patch=2 and prior.channels=16"
    ):
        train_stage(run, "compressor")
