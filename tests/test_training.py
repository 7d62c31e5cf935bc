"""Training: masks stay with their pictures, losses mean what they say, a resumed run equals an unbroken one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small import small_bundle
from support import NAMES, photo
from torch import Tensor, nn

import slimcodec
from slimcodec import SlimError
from slimcodec.data.classifiers import class_activation, load_classifier
from slimcodec.data.contact_sheet import GAP, LINE, contact_sheet, map_tiles, picture_tiles
from slimcodec.data.masks import mask_from_boxes
from slimcodec.data.photos import Photo
from slimcodec.models.captioner import Tagger
from slimcodec.models.config import SCALES, CaptionerConfig
from slimcodec.models.prior import index_of_scale, scale_of_index
from slimcodec.training.batches import Draws, Views, crop, random_caption
from slimcodec.training.compression_model import code, gaussian_tables, restore_latent_codec
from slimcodec.training.export import training_record
from slimcodec.training.losses import (
    FEATURE_UNIT,
    Features,
    Fidelity,
    region_errors,
    roi_weights,
    symbol_bits,
    weighted_mse,
)
from slimcodec.training.recipe import RECIPES, load_recipe
from slimcodec.training.run import Run
from slimcodec.training.stages.captioner import CaptionerStage, start_from_classifier


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
    codec = slimcodec.load(dtype="float32")
    twin, tables = restore_latent_codec(codec.bundle), gaussian_tables()
    exact, floating = 0.0, 0.0
    with torch.no_grad():
        for name in NAMES:
            latents = codec.latents(photo(name))[None]
            for quality in (5, 50, 95):
                # the tables that the float prior means: fitted ones would hide a loss
                for part in codec.quantise(photo(name), quality, roi=None).passes[-3:]:
                    exact += float(tables.bits(part.symbols, part.indices).sum())
                floating += float(code(twin, latents, torch.tensor([quality])).bits)
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

    def features(
        self, pictures: Tensor, count: int, with_logits: bool = False
    ) -> tuple[Tensor | None, Sequence[Tensor]]:
        answer, *maps = self(pictures)
        return (answer if with_logits else None), maps[:count]


def a_teacher() -> Any:
    return Classifier().requires_grad_(False)


def test_feature_loss_is_zero_only_for_equal_pictures() -> None:
    torch.manual_seed(0)
    loss = Fidelity(1.0, Features((1.0, 0.5)), [a_teacher()]).distance
    a, b = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    draws = Draws(0, 0, range(2), 2)
    assert float(loss(a, a, draws).abs().max()) == 0
    assert float(loss(a, b, draws).min()) > 0.01
    answers = Fidelity(1.0, Features((), logits=1.0), [a_teacher()]).distance
    assert float(answers(a, a, draws).abs().max()) < 1e-6
    assert float(answers(a, b, draws).min()) > 0


def test_fidelity_joins_features_for_a_share_of_the_batch_from_a_point_on() -> None:
    torch.manual_seed(0)
    features = Features((1.0, 0.5), start=0.5, share=0.5, weight=2.0, squared_error=0.25)
    fidelity = Fidelity(0.5, features, [a_teacher()])
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    decoded, masks = pictures + 0.1, torch.zeros(4, 1, 64, 64)
    draws = Draws(0, 7, range(4), 4)
    early, terms = fidelity(decoded, pictures, masks, draws, 0.4)
    # all of it is background: half the squared error counts
    assert torch.allclose(early, torch.full((4,), 0.5 * (12.75**2)), rtol=1e-4) and not terms
    late, terms = fidelity(decoded, pictures, masks, draws, 0.6)
    chosen = draws.every(0.5)
    assert int(chosen.sum()) == 2 and torch.allclose(late[~chosen], early[~chosen])
    wanted = 0.25 * early[chosen].mean() + 2.0 * FEATURE_UNIT * terms["feature"]
    assert torch.allclose(late[chosen].mean(), wanted, rtol=1e-4)


def test_errors_are_told_apart_by_region() -> None:
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2] = 1
    error = torch.where(masks.bool(), 2.0, 4.0).expand(1, 3, 4, 4) / 127.5
    found = region_errors(error, torch.zeros_like(error), masks)
    assert float(found["mse_roi"]) == pytest.approx(4) and float(found["mse_background"]) == pytest.approx(16)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_draws_do_not_depend_on_how_the_batch_is_divided(count: int) -> None:
    whole = Draws(3, 11, range(8), 8)
    size = 8 // count
    parts = [Draws(3, 11, range(size * n, size * (n + 1)), 8) for n in range(count)]
    assert torch.equal(whole.uniform(2, 3), torch.cat([part.uniform(2, 3) for part in parts]))
    assert torch.equal(whole.normal(5), torch.cat([part.normal(5) for part in parts]))
    assert torch.equal(whole.integers(1, 101), torch.cat([part.integers(1, 101) for part in parts]))
    assert len({part.common(0, 10**9) for part in (whole, *parts)}) == 1
    for share in (0.1, 1 / 3, 0.5, 1.0):
        chosen = [part.every(share) for part in parts]
        assert torch.equal(whole.every(share), torch.cat(chosen))
        values = torch.arange(8.0)
        means = [
            part.part_mean(values[size * n : size * (n + 1)][mask], share)
            for n, (part, mask) in enumerate(zip(parts, chosen, strict=True))
        ]
        assert float(torch.stack(means).mean()) == pytest.approx(float(values[whole.every(share)].mean()))
    # a part of a share keeps its own numbers
    picked = torch.tensor([True, False] * 4)
    assert torch.equal(
        Draws(3, 11, range(8), 8).of(picked).uniform(4), Draws(3, 11, range(8), 8).uniform(4)[picked]
    )
    assert not torch.equal(Draws(3, 12, range(8), 8).uniform(4), Draws(3, 11, range(8), 8).uniform(4))


def test_words_are_sentences_then_the_label() -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert random_caption(Photo(pixels, None, False, "tench", ["a fish"]), rng) == "a fish"
    assert random_caption(Photo(pixels, None, False, "otter", []), rng) == "a photo of an otter"
    assert (
        random_caption(Photo(pixels, None, False, "otter", []), rng, ["an image: {label}"])
        == "an image: otter"
    )
    assert random_caption(Photo(pixels, None, False, None, []), rng) is None


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


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("compressor.backgroud=0.3", "unknown key 'backgroud'"),
        ("compressor.background=low", "background.*float"),
        ("autoencoder.optimisation.steps=1.5", "steps.*int"),
        ("steps", "key=value"),
        ("name.first=1", "name is a value"),
        ("compressor.network.latent_channels=64", "latent_channels is 64.*make them equal"),
        ("out=", "out is empty"),
        ("precision=fp8", "precision is 'fp8'; give bf16 or no"),
        ("roi.source=segmentation", "roi.segmenter is not set"),
        ("enhance.optimisation.crop=100", "crop is 100; give a multiple of 16"),
        ("diffusion.unet.width=100", "width must be a multiple"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_key(setting: str, message: str) -> None:
    with pytest.raises(SlimError, match=message):
        load_recipe("tiny-cpu", [setting])
    assert load_recipe("tiny-cpu", ["compressor.background=0.3"]).compressor.background == 0.3
    with pytest.raises(SlimError, match="built in are.*tiny-cpu"):
        load_recipe("nothing")


def test_built_in_recipes_load_and_data_is_short_for_the_photos() -> None:
    for path in RECIPES.glob("*.toml"):
        assert load_recipe(path.stem, ["data=photos/"]).data.photos == ("photos/",)
    recipe = load_recipe("smoke", ["teachers.models=a.pt", 'data.photos=["x", "y"]'])
    assert recipe.teachers.models == ("a.pt",) and recipe.data.photos == ("x", "y")


class WithBackground(nn.Module):
    """A tagger as a classifier whose first class is the background, and which makes its last convolution first."""

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        classes, width = tagger.head.weight.shape
        self.classes = nn.Conv2d(width, 1 + classes, 1)
        with torch.no_grad():
            self.classes.weight[1:, :, 0, 0] = tagger.head.weight
            self.classes.bias[1:] = tagger.head.bias  # type: ignore[index]
        self.body = tagger.body

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.body(pictures * 2 - 1).mean((2, 3), keepdim=True)
        scores: Tensor = self.classes(features)[:, 1:, 0, 0]
        return scores


@pytest.mark.slow
def test_the_captioner_can_start_from_a_mobilenet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = Tagger(CaptionerConfig(tags=7, side=32)).eval().requires_grad_(False)
    traced = torch.jit.trace(WithBackground(original).eval(), torch.rand(1, 3, 32, 32), check_trace=False)
    torch.jit.save(traced, str(tmp_path / "a.pt"))

    tagger = Tagger(CaptionerConfig(tags=9, side=32)).eval()
    start_from_classifier(tagger, load_classifier(tmp_path / "a.pt", as_teacher=True))
    pictures = torch.rand(2, 3, 40, 50) * 2 - 1
    with torch.no_grad():
        scores = tagger(pictures)
        assert torch.allclose(scores[:, :7], original(pictures), atol=1e-5)
    assert float(scores[:, 7:].max()) <= -6
    with pytest.raises(SlimError, match="7 classes, the vocabulary 5 tags"):
        start_from_classifier(
            Tagger(CaptionerConfig(tags=5, side=32)), load_classifier(tmp_path / "a.pt", as_teacher=True)
        )
    torch.jit.save(torch.jit.trace(Classifier(), torch.rand(1, 3, 32, 32)), str(tmp_path / "b.pt"))
    with pytest.raises(SlimError, match="MobileNet-v2"):
        start_from_classifier(tagger, load_classifier(tmp_path / "b.pt", as_teacher=True))


def test_a_captioner_learns_what_a_teacher_says_of_each_view(tmp_path: Path) -> None:
    def says(pictures: Tensor) -> tuple[Tensor, ...]:
        # class 0 for dark views, class 1 for light ones
        light = pictures.mean((1, 2, 3)) - 0.5
        return (torch.stack([-light, light], 1) * 100,)

    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = CaptionerConfig(tags=3, side=8)
            self.head = nn.Linear(1, 3)

        def predict(self, pictures: Tensor) -> tuple[Tensor, None]:
            return self.head(pictures.mean((1, 2, 3))[:, None]), None

    tagger: Any = Bias()
    settings = (f"out={tmp_path}", "teachers.models=[]", "captioner.start_from_weights=false")
    stage: Any = CaptionerStage(Run(load_recipe("smoke", settings)))
    stage.model, stage.teachers = tagger, [says]
    targets = torch.tensor([[0.0, 0, 1], [0, 0, 0]])
    pictures = torch.stack([torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), -0.5)])
    masks = torch.zeros(2, 1, 1, 1)
    views = Views(pictures, targets, torch.tensor([True, False]), masks, torch.zeros(2))
    with torch.no_grad():
        tagger.head.weight.zero_()
        tagger.head.bias.copy_(torch.tensor([0.0, -1, -2]))
    loss, _ = stage.loss(views, Draws(0, 0, range(2), 2), 0.0)
    scores = tagger.head.bias.log_softmax(0)
    # half its label and half the teacher for the first, the teacher alone for the second
    wanted = -(0.5 * scores[2] + 0.5 * scores[1] + scores[0]) / 2
    assert float(loss) == pytest.approx(float(wanted), abs=1e-4)


def test_sheets_show_pictures_of_any_precision() -> None:
    picture = torch.linspace(-1, 1, 3 * 8 * 8).view(3, 8, 8)
    (tile,) = picture_tiles(picture.bfloat16()[None], "a picture with many words under it")
    (heat,) = map_tiles(torch.linspace(0, 1, 4).view(1, 1, 2, 2).bfloat16(), (8, 8), "")
    assert tile.pixels.shape == heat.pixels.shape == (8, 8, 3)
    assert int(heat.pixels[0, 0, 0]) == 0 and int(heat.pixels[-1, -1, 0]) == 255
    drawn = contact_sheet([[tile, heat], [tile]])
    assert drawn.size == (2 * 8 + 3 * GAP, 2 * (8 + LINE) + 3 * GAP)


def test_a_bundle_says_what_made_it_and_nothing_of_the_machine(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    other = small_bundle()
    other.save_pretrained(disk / "slim")
    settings = (
        f"out={disk / 'run'}",
        f"data={disk}",
        f'captioner.also=["{disk / "slim"}"]',
        f"teachers.models={disk / 't.pt'}",
        f"data.vocabulary={disk / 'words.txt'}",
        "enhance.rate=1",
    )
    run = Run(load_recipe("smoke", settings), source="smoke", settings=settings)
    run.folder.mkdir()
    save_file({"x": torch.zeros(1)}, run.weights_path("captioner"), {"steps": "7"})
    vars(run.data).update(teachers=[SimpleNamespace(sha256="x")], vocabulary=other.vocabulary)
    made = training_record(run)
    assert made["commands"][1] == (
        "slim train all --config smoke --set data=PHOTOS --set data.vocabulary=VOCABULARY "
        "--set teachers.models=CLASSIFIERS "
        f"""--set 'captioner.also=["BUNDLE-{other.bundle_id}"]' --set enhance.rate=1"""
    )
    assert "disk" not in str(made) and made["recipe"]["captioner"]["also"] == [f"BUNDLE-{other.bundle_id}"]
    assert made["teachers"] == ["x"] and made["stages"] == {"captioner": {"steps": "7"}}
