"""Caption guidance: the gradient graph equals automatic differentiation, and guided pictures say what the caption says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Slim
from numpy.typing import NDArray
from PIL import Image
from support import photo
from torch import nn

import slimcodec
from slimcodec.batches import decode_many
from slimcodec.codec import Codec
from slimcodec.models.bundle import Bundle
from slimcodec.models.captioner import NETWORKS, Tagger
from slimcodec.models.config import BundleConfig, CaptionerConfig
from slimcodec.models.guidance import CaptionGuide, Floats, resized
from slimcodec.models.networks import build_graph
from slimcodec.models.parts import tensors_of
from slimcodec.models.runtime import OnnxRuntime

TAGS = 7


def random_tagger(network: str = "mobilenet-v2", seed: int = 0) -> Tagger:
    """A tagger whose activations stay alive from layer to layer."""
    torch.manual_seed(seed)
    tagger = Tagger(CaptionerConfig(TAGS, 32, network=network)).eval()
    for layer in tagger.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.get_parameter("bias"), std=0.1)
        elif isinstance(layer, nn.ReLU6):
            layer.inplace = False
    return tagger


def by_autograd(tagger: Tagger, view: torch.Tensor, tag: int) -> torch.Tensor:
    view = view.clone().requires_grad_()
    x = view
    for layer in tagger.body:
        x = layer(x)
    (gradient,) = torch.autograd.grad(tagger.head(x.mean((2, 3))).log_softmax(1)[0, tag], view)
    return gradient


@pytest.mark.parametrize("network", list(NETWORKS))
def test_the_gradient_graph_equals_automatic_differentiation(network: str) -> None:
    tagger = random_tagger(network)
    view = torch.rand(1, 3, 96, 64) * 2 - 1
    target = np.eye(TAGS, dtype=np.float32)[None, 3]
    (ours,) = runtime_of(tagger).run("gradient-0", view.numpy(), target)
    theirs = by_autograd(tagger, view, 3)
    assert float(np.abs(ours).max()) > 0
    # an activation at the very edge of a ReLU6 may fall to either side
    assert alike(ours, theirs) > 1 - 1e-4


def test_the_embedded_taggers_gradient_is_right_to_six_digits(codec: slimcodec.Codec) -> None:
    with torch.device("meta"):
        tagger = Tagger(codec.bundle.config.captioners[0])
    tagger.load_state_dict(tensors_of(codec.bundle.stored["captioner-0"]), assign=True)
    for layer in tagger.modules():
        if isinstance(layer, nn.ReLU6):
            layer.inplace = False
    view = torch.from_numpy(np.array(photo("chelsea", 96, 96))).permute(2, 0, 1)[None] / 127.5 - 1
    target = np.zeros((1, len(codec.bundle.vocabulary)), np.float32)
    target[0, 3] = 1
    (ours,) = codec.runtime.run("gradient-0", view.numpy(), target)
    assert alike(ours, by_autograd(tagger.requires_grad_(False), view, 3)) > 1 - 1e-6


def runtime_of(tagger: Tagger) -> OnnxRuntime:
    """A runtime of a tagger's networks."""
    config = BundleConfig(captioners=(tagger.config,))
    stored = {"captioner-0": {name: value.detach().numpy() for name, value in tagger.state_dict().items()}}
    return OnnxRuntime(partial(build_graph, config, stored), stored)


def alike(ours: Floats, theirs: torch.Tensor) -> float:
    """Cosine similarity."""
    return float(torch.cosine_similarity(torch.from_numpy(ours).flatten(), theirs.flatten(), dim=0))


def linear_guide(size: Sequence[int], channels: int = 12) -> CaptionGuide:
    """A guide of a picture of a size on a linear path of a few smooth patterns."""
    coarse = np.random.default_rng(1).standard_normal((channels * 3, 4, 4), dtype=np.float32)
    smooth = resized(coarse, (16, 16)).reshape(channels, -1)
    tagger = random_tagger()
    parts = {"captioner-0": tagger.state_dict()}
    bundle = Bundle(BundleConfig(captioners=(tagger.config,)), parts, tuple(map(str, range(TAGS))))
    return CaptionGuide(bundle.onnx.run, bundle, smooth.T / 10, size, tag=2, seed=5)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (1, 3, height, width), dtype=np.uint8)


@pytest.mark.parametrize(("before", "after"), [((7, 10), (13, 16)), ((40, 33), (17, 12)), ((5, 5), (5, 5))])
@pytest.mark.parametrize("smooth", [False, True])
def test_pictures_are_resized_as_torch_does(
    before: tuple[int, int], after: tuple[int, int], smooth: bool
) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, *before), dtype=np.float32)
    wanted = nn.functional.interpolate(torch.from_numpy(x), after, mode="bilinear", antialias=smooth)
    assert np.allclose(resized(x, after, smooth=smooth), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "size", [(64, 64), (16, 400), *(pytest.param(s, marks=pytest.mark.slow) for s in [(48, 208), (1024, 16)])]
)
def test_a_change_has_the_strength_that_was_asked_for_at_any_size(size: tuple[int, int]) -> None:
    guide, pixels = linear_guide(size), noise(*size)
    lost = np.linspace(0.5, 2, 12, dtype=np.float32)
    change = guide.change(pixels, lost, strength=0.4, steps=4)
    assert change.shape == (1, 12, size[0] // 16, size[1] // 16)
    # four steps that agree in part: together not above the strength, and not nothing
    assert 0.05 < float(np.sqrt(np.square(change / lost[:, None, None]).mean())) <= 0.4 + 1e-6
    moved = guide.apply(pixels, change, rows=3)
    assert moved.shape == pixels.shape and moved.dtype == np.uint8 and not np.array_equal(moved, pixels)
    assert np.array_equal(moved, guide.apply(pixels, change, rows=100))
    again = linear_guide(size).change(pixels, lost, strength=0.4, steps=4)
    assert np.array_equal(change, again)


def test_a_change_shows_no_edges_of_patches() -> None:
    pixels = np.full((1, 3, 96, 64), 128, np.uint8)
    guide = linear_guide(pixels.shape[2:])
    change = np.random.default_rng(3).standard_normal((1, 12, 6, 4), dtype=np.float32)
    whole = guide.apply(pixels, change, rows=6)
    assert all(np.array_equal(guide.apply(pixels, change, rows), whole) for rows in (1, 2, 4, 5))
    moved = whole.astype(float)
    patches = 127.5 * (guide.synthesis @ change[0].reshape(12, -1)).reshape(3, 16, 16, 6, 4)
    apart = np.abs(patches[:, -1, :, :-1] - patches[:, 0, :, 1:]).mean()
    for axis in (2, 3):
        steps = np.abs(np.diff(moved, axis=axis)).mean(tuple({0, 1, 2, 3} - {axis}))
        edges = steps[15::16].mean()
        assert edges < 1.1 * np.delete(steps, np.s_[15::16]).mean() < apart / 5


def test_what_was_not_lost_does_not_move() -> None:
    guide, pixels = linear_guide((64, 64)), noise(64, 64)
    lost = np.ones(12, np.float32)
    lost[3] = 0
    change = guide.change(pixels, lost, strength=0.4, steps=4)
    assert np.abs(change[:, 3]).max() == 0 < np.abs(change[:, 4]).max()


@pytest.fixture(scope="module")
def codec() -> slimcodec.Codec:
    return slimcodec.load()


def test_the_tagger_reads_the_caption_from_a_guided_picture(codec: slimcodec.Codec) -> None:
    data = codec.encode(photo("chelsea", 256, 192), 12, "tabby")
    tag = codec.bundle.vocabulary.index("tabby")

    def probability(**options: Any) -> float:
        pixels = torch.from_numpy(np.array(codec.decode(data, 0, **options))).permute(2, 0, 1)[None]
        return float(codec.bundle.captioners[0](pixels.float() / 127.5 - 1).softmax(1)[0, tag])

    plain, short, long = (
        probability(guidance=0.0),
        probability(preset="machine"),
        probability(preset="machine", guidance_steps=8),
    )
    assert 4 * plain < short and 4 * plain < long


def test_guidance_without_denoising_reads_no_unet() -> None:
    codec = slimcodec.load()
    data = codec.encode(photo("chelsea", 64, 64), 12, "tabby")
    codec.decode(data, 0, preset="machine")
    assert not {"enhancer", "text"} & set(codec.bundle.parts._built)


def test_a_batch_and_tiles_guide_as_single_pictures_do(codec: slimcodec.Codec) -> None:
    files = [codec.encode(photo(name, 80, 64), 12, "tabby") for name in ("chelsea", "rocket")]
    files.append(codec.encode(photo("coffee", 80, 64), 30, None))
    for data, batched in zip(files, decode_many(codec, files, 0, preset="machine"), strict=True):
        assert isinstance(batched, Image.Image)
        alone, tiled = (
            np.asarray(c.decode(data, 0, preset="machine"), int) for c in (codec, Codec(codec.bundle, 2))
        )
        assert np.abs(alone - np.asarray(batched, int)).max() <= 4
        assert np.abs(alone - tiled).max() <= 4


def test_drawn_pixels_say_so(codec: slimcodec.Codec, slim: Slim, tmp_path: Path) -> None:
    source = tmp_path / "cat.slim"
    source.write_bytes(codec.encode(photo("chelsea", 64, 64), 12, "tabby"))
    for preset, suffix, said in (
        ("natural", "png", ""),
        ("machine", "png", "tabby"),
        ("machine", "jpg", "tabby"),
    ):
        out = tmp_path / f"{preset}.{suffix}"
        assert slim("decode", source, "-o", out, "--steps", "0", "--preset", preset).status == 0
        with Image.open(out) as picture:
            comment = picture.info.get("Comment", picture.info.get("comment", b""))
        comment = comment.decode() if isinstance(comment, bytes) else comment
        assert ("drawn by slimcodec" in comment) == bool(said) and said in comment
