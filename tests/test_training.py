"""Training: masks stay with their pictures, losses mean what they say, a resumed run equals an unbroken one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from photos import NAMES, photo
from torch import Tensor, nn

import slimcodec
from slimcodec import SlimError
from slimcodec.models.captioner import CaptionerConfig, Tagger
from slimcodec.models.prior import SCALES, index_of_scale, scale_of_index
from slimcodec.roi.annotations import mask_from_boxes
from slimcodec.roi.cam import class_activation
from slimcodec.training.data import Photo, crop
from slimcodec.training.export import gaussian_tables, restore_latent_codec
from slimcodec.training.loop import train
from slimcodec.training.losses import FeatureLoss, roi_weights, symbol_bits, weighted_mse
from slimcodec.training.recipe import load_recipe
from slimcodec.training.run import Run, stages
from slimcodec.training.teachers import start_from_classifier


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([48, 64, 100]), coarse=st.booleans())
def test_picture_and_mask_are_cropped_and_flipped_together(seed: int, size: int, coarse: bool) -> None:
    # the red channel is the mask, so the oracle is the crop itself
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(60, 140)), int(rng.integers(60, 140))
    cell = 10
    blocks = rng.random((height // cell, width // cell)) < 0.5
    mask = blocks.astype(np.float32)
    full = np.kron(mask, np.ones((cell, cell), np.float32))
    pixels = np.zeros((*full.shape, 3), np.uint8)
    pixels[..., 0] = full * 255
    picture, cropped = crop(Photo(pixels, mask if coarse else full, True, None, []), size, rng, (0.7, 1.4))
    assert picture.shape == (3, size, size) and cropped.shape == (size, size)
    # resampling differs at the edges of the blocks; a wrong place or a missed flip leaves no correlation
    seen, wanted = picture[0].float().flatten(), cropped.flatten()
    assume(float(seen.std()) > 40)
    assert float(torch.corrcoef(torch.stack([seen, wanted]))[0, 1]) > 0.6


def test_boxes_become_masks() -> None:
    mask = mask_from_boxes([[2, 1, 4.2, 3], [-5, -5, 1, 1], [90, 90, 99, 99]], (8, 6))
    wanted = np.zeros((6, 8), np.float32)
    wanted[1:3, 2:5] = 1
    wanted[0, 0] = 1
    assert np.array_equal(mask, wanted)


def test_roi_weights_and_weighted_error() -> None:
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2] = 1
    weights = roi_weights(masks, 0.25)
    error = torch.ones(1, 3, 4, 4) * 2 / 255
    assert torch.allclose(
        weighted_mse(error, torch.zeros_like(error), weights), torch.tensor([0.625]), atol=1e-6
    )


def test_training_rate_is_that_of_the_tables() -> None:
    tables = gaussian_tables()
    rng = np.random.default_rng(0)
    indices = rng.integers(0, SCALES, 4000).astype(np.uint8)
    scale = scale_of_index(torch.from_numpy(indices).double())
    symbols = (torch.from_numpy(rng.normal(size=4000)) * scale).round()
    ours = symbol_bits(symbols, torch.from_numpy(indices).double())
    coded = tables.bits(symbols.numpy().astype(np.int32), indices)
    assert abs(float(ours.sum()) / coded.sum() - 1) < 1e-3
    assert torch.allclose(index_of_scale(scale_of_index(torch.arange(64.0))), torch.arange(64.0), atol=1e-3)
    # the gradient lives where the mass underflows
    far = torch.tensor([40.0], requires_grad=True)
    torch.autograd.backward(symbol_bits(far, torch.tensor([0.0])).sum())
    assert far.grad is not None and torch.isfinite(far.grad).all() and float(far.grad) > 1


def test_the_float_twin_of_the_embedded_prior_costs_the_same() -> None:
    from slimcodec.training.stages import code

    codec = slimcodec.load(dtype="float32")
    twin, tables = restore_latent_codec(codec.bundle), gaussian_tables()
    exact, floating = 0.0, 0.0
    with torch.no_grad():
        for name in NAMES:
            latents = codec._latents(np.asarray(photo(name)))
            for quality in (5, 50, 95):
                # the tables that the float prior means: fitted ones would hide a loss
                for part in codec.quantise(photo(name), quality).passes:
                    exact += float(tables.bits(part.symbols, part.indices).sum())
                floating += float(code(twin, latents, torch.tensor([quality]), "rounded").bits)
    assert abs(exact / floating - 1) < 0.01


class Classifier(nn.Module):
    """A small classifier with the outputs of the real teachers: logits and feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.first(x).relu()
        second = self.second(first).relu()
        return self.head(second.mean((2, 3))), first, second


def test_feature_loss_is_zero_only_for_equal_pictures() -> None:
    torch.manual_seed(0)
    loss = FeatureLoss([Classifier().requires_grad_(False)], [1.0, 0.5])
    a, b = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    assert float(loss(a, a).abs().max()) == 0
    assert float(loss(a, b).min()) > 0.01


def test_activation_maps_point_at_what_the_classifier_sees() -> None:
    model = Classifier()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.first.weight[0, 0, 1, 1] = 1  # a red detector, all the way to class 3
        model.second.weight[0, 0, 1, 1] = 1
        model.head.weight[3, 0] = 1
    picture = torch.zeros(1, 3, 32, 32)
    picture[0, 0, 20:30, 4:12] = 1
    _, heat = class_activation(model, picture)
    peak = np.unravel_index(int(heat[0].argmax()), heat[0].shape)
    assert 5 <= peak[0] <= 7 and 1 <= peak[1] <= 2
    assert float(heat[0, :4].max()) == 0


class Line:
    """The smallest stage: fit a line, with noise that depends on the step."""

    name = "line"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.fail_at: int | None = None

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters()), "lr": learning_rate}]

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        if step == self.fail_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 3)
        loss = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
        return loss, {"progress": progress}


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "steps": 40,
        "learning_rate": 0.05,
        "warmup": 5,
        "precision": "no",
        "log_every": 10,
    }
    unbroken = train(Line(), tmp_path / "a", checkpoint_every=10, **options)
    broken = Line()
    broken.fail_at = 27
    with pytest.raises(KeyboardInterrupt):
        train(broken, tmp_path / "b", checkpoint_every=10, **options)
    resumed = train(Line(), tmp_path / "b", checkpoint_every=10, resume=True, **options)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    logs = [
        [json.loads(line) for line in (tmp_path / run / "line.jsonl").read_text().splitlines()]
        for run in "ab"
    ]
    assert [entry["loss"] for entry in logs[0]][-2:] == [entry["loss"] for entry in logs[1]][-2:]
    assert logs[0][-1]["loss"] < logs[0][0]["loss"] / 2


def test_a_loss_that_stays_infinite_stops_the_run(tmp_path: Path) -> None:
    stage = Line()
    with torch.no_grad():
        stage.model.weight.fill_(float("nan"))
    with pytest.raises(SlimError, match="line.*learning rate"):
        train(stage, tmp_path, steps=50, learning_rate=0.1, precision="no")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("compressor.backgroud=0.3", "unknown key 'backgroud'"),
        ("compressor.background=low", "background.*float"),
        ("autoencoder.optimisation.steps=1.5", "steps.*int"),
        ("steps", "key=value"),
        ("name.first=1", "name is a value"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_key(setting: str, message: str) -> None:
    with pytest.raises(SlimError, match=message):
        load_recipe("tiny-cpu", [setting])
    assert load_recipe("tiny-cpu", ["compressor.background=0.3"]).compressor.background == 0.3
    with pytest.raises(SlimError, match="built in are.*tiny-cpu"):
        load_recipe("nothing")


SMOKE = """
name = "smoke"
precision = "no"
[autoencoder.network]
latent_channels = 16
encoder_width = [16, 16]
encoder_blocks = [1, 1]
decoder_width = [16, 16]
decoder_blocks = [1, 1]
[compressor.network]
latent_channels = 16
width = 16
hyper_width = 16
[compressor.network.prior]
channels = 16
hyper_channels = 8
width = 16
head_width = 16
levels = 3
[captioner]
start_from_teacher = false
[captioner.network]
side = 32
"""


def test_every_stage_runs_and_ends_in_a_bundle_that_codes(tmp_path: Path) -> None:
    import datasets

    rows: list[dict[str, Any]] = [
        {"image": {"bytes": b"not a picture", "path": None}, "label": "tench", "boxes": []}
    ]
    for number in range(8):
        buffer = io.BytesIO()
        photo(NAMES[number % 4], 96 + number, 80).save(buffer, "PNG")
        boxes = [[10.0, 10.0, 50.0, 60.0]] if number % 2 else []
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": "tench", "boxes": boxes})
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "photos.parquet")
    teacher = Classifier().eval()
    torch.jit.save(torch.jit.script(teacher), str(tmp_path / "teacher.pt"))
    (tmp_path / "smoke.toml").write_text(SMOKE)
    settings = [
        f"out={tmp_path / 'run'}",
        f'data.photos=["{tmp_path}/photos.parquet"]',
        f'data.teachers=["{tmp_path}/teacher.pt"]',
    ]
    for stage in ("autoencoder", "compressor", "captioner", "enhance"):
        settings += [
            f"{stage}.optimisation.{key}={value}" for key, value in (("steps", 4), ("batch", 3), ("crop", 64))
        ]
    run = Run(load_recipe(tmp_path / "smoke.toml", settings))
    for run_stage in stages(run).values():
        run_stage()

    codec = slimcodec.load(tmp_path / "run" / "bundle", dtype="float32")
    data = codec.encode(photo("coffee", 90, 70), 60, caption="tench")
    for steps in (0, 1):
        assert codec.decode(data, steps=steps).size == (90, 70)
    assert codec.bundle.config.training["recipe"]["compressor"]["network"]["width"] == 16


def test_the_captioner_can_start_from_a_mobilenet() -> None:
    torch.manual_seed(0)
    original = Tagger(CaptionerConfig(tags=7, side=32)).eval()
    holder = nn.Module()
    number = 0
    for module in original.body.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            for value in (module.weight, module.bias):
                holder.register_buffer(f"c{number}", value.detach().clone())
                number += 1
    # a background class comes first
    background = torch.randn(1, 1280)
    holder.register_buffer("cw", torch.cat([background, original.head.weight.detach()])[:, :, None, None])
    holder.register_buffer("cb", torch.cat([torch.zeros(1), original.head.bias.detach()]))
    teacher: Any = SimpleNamespace(module=holder)

    tagger = Tagger(CaptionerConfig(tags=9, side=32)).eval()
    start_from_classifier(tagger, teacher)
    pictures = torch.rand(2, 3, 40, 50) * 2 - 1
    with torch.no_grad():
        scores = tagger(pictures)
        assert torch.allclose(scores[:, :7], original(pictures), atol=1e-5)
    assert float(scores[:, 7:].max()) <= -6
    other: Any = SimpleNamespace(module=Classifier())
    with pytest.raises(SlimError, match="MobileNet-v2"):
        start_from_classifier(tagger, other)
