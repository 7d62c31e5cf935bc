"""Fused layers give what plain ones give."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import NAMES, photo
from torch import nn

import slimcodec
from slimcodec.models import blocks
from slimcodec.models.blocks import Fusable, FusableConv, FusableSequential, Fused, FusedConv, works
from slimcodec.models.captioner import Tagger
from slimcodec.models.config import CaptionerConfig


@pytest.fixture
def available() -> None:
    if not works(torch.float32):
        pytest.skip("this PyTorch has no fused convolutions for processors")


def fusable(*modules: Any) -> list[Fusable]:
    return [part for module in modules for part in module.modules() if isinstance(part, Fusable)]


def embedded(dtype: str) -> Tagger:
    return slimcodec.load(dtype=dtype).bundle.captioners[0]


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_fused_layers_say_what_plain_ones_say(dtype: str, tolerance: float) -> None:
    tagger = embedded(dtype)
    if not works(next(tagger.body.parameters()).dtype):
        pytest.skip(f"no fused convolutions in {dtype}")
    assert tagger.body.fused
    arrays = [np.asarray(photo(name, 256, 200)).transpose(2, 0, 1) for name in NAMES]
    pictures = torch.from_numpy(np.stack(arrays)).float() / 127.5 - 1
    with torch.inference_mode():
        # weights are laid out for one size: others work with them
        fused = [tagger.predict(pictures[:1]), tagger.predict(pictures), tagger.predict(pictures[2:3])]
        tagger.body._forget()
        plain = [tagger.predict(pictures[:1]), tagger.predict(pictures), tagger.predict(pictures[2:3])]
    for ours, theirs in zip(fused, plain, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a is not None and b is not None
            assert float((a - b).norm() / b.norm()) < tolerance
    assert fused[0][0].argmax() == plain[0][0].argmax()


@pytest.mark.usefixtures("available")
def test_a_small_picture_first_leaves_weights_of_large_ones() -> None:
    torch.manual_seed(0)
    layout: Any = {"memory_format": torch.channels_last}
    convolution = nn.Conv2d(16, 16, 3, 1, 1).to(**layout)
    fused = FusedConv(convolution)
    # laid out for a tiny input, weights take four times as long for a larger one
    for side, laid_out_for in ((4, 16), (5, 16), (32, 1024), (4, 1024), (200, 4096), (300, 4096)):
        x = torch.rand(1, 16, side, side).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            torch.testing.assert_close(fused(x), convolution(x), rtol=1e-4, atol=1e-5)
        assert fused.weights[False][0] == laid_out_for


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_the_fused_codec_gives_what_plain_layers_give(dtype: str, tolerance: float) -> None:
    codec = slimcodec.load(dtype=dtype)
    bundle = codec.bundle
    if not works(bundle.parts.dtype):
        pytest.skip(f"no fused convolutions in {dtype}")
    parts = fusable(bundle.latent_model.autoencoder, bundle.compressor)
    assert len(parts) == 9 and all(part.fused for part in parts)
    pixels = torch.from_numpy(np.asarray(photo("coffee", 192, 160)).transpose(2, 0, 1)[None].copy())
    level = bundle.compressor.level(torch.tensor([40]))

    def results() -> list[torch.Tensor]:
        latents = bundle.latent_model.autoencoder.encode(pixels.float() / 127.5 - 1)
        values = bundle.compressor.analyse(latents, level)
        hyper = bundle.compressor.hyper_analyse(values, level)
        return [
            latents,
            values,
            hyper,
            bundle.latent_model.autoencoder.decode(bundle.compressor.synthesise(values, level)),
        ]

    with torch.inference_mode():
        ours = results()
        assert all(part._fused for part in parts)
        for part in parts:
            part._forget()
        for a, b in zip(ours, results(), strict=True):
            assert float((a - b).norm() / b.norm()) < tolerance


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("side", [33, 64, 70])
def test_odd_sides_and_residuals(side: int) -> None:
    torch.manual_seed(0)
    body: Any = Tagger(CaptionerConfig(tags=3)).eval().to(memory_format=torch.channels_last).body  # type: ignore[call-overload]
    x = torch.rand(2, 3, side, side + 6).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.allclose(Fused(body)(x), body(x), atol=1e-4)


def test_a_tagger_that_has_looked_can_be_copied() -> None:
    tagger = embedded("float32")
    pictures = torch.rand(1, 3, 64, 80) * 2 - 1
    with torch.inference_mode():
        wanted = tagger(pictures)
        for copied in (copy.deepcopy(tagger), pickle.loads(pickle.dumps(tagger))):
            assert torch.equal(copied(pictures), wanted)


def test_gradients_pass_the_plain_layers() -> None:
    # guidance follows them
    tagger = embedded("float32")
    pictures = torch.rand(1, 3, 192, 192, requires_grad=True)
    tagger(pictures)[0, 3].backward()
    assert pictures.grad is not None and float(pictures.grad.abs().sum()) > 0


def test_without_the_operators_layers_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo("chelsea")
    fused_codec = slimcodec.load(dtype="float32")
    wanted, latent = fused_codec.encode(image, 30), fused_codec.latents(image)
    monkeypatch.setattr(blocks, "works", lambda dtype: False)
    codec = slimcodec.load(dtype="float32")
    bundle = codec.bundle
    parts = fusable(bundle.latent_model.autoencoder, bundle.compressor, *bundle.captioners)
    assert len(parts) == 10 and not any(part.fused for part in parts)
    assert slimcodec.inspect(codec.encode(image, 30)).caption == slimcodec.inspect(wanted).caption
    assert float((codec.latents(image) - latent).norm() / latent.norm()) < 1e-4
    assert not any(part._fused for part in parts)


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("forgotten", ["activation", "sum", "operator"])
def test_broken_operators_are_found_out(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = blocks._convolve

    def wrong(x: Any, weight: Any, conv: Any, padding: Any, activation: Any, added: Any) -> Any:
        if forgotten == "operator":
            raise AttributeError("no such operator")
        if forgotten == "activation":
            activation = blocks.NONE
        return right(x, weight, conv, padding, activation, None if forgotten == "sum" else added)

    monkeypatch.setattr(blocks, "_tried", blocks._tried.__wrapped__)
    assert works(torch.float32)
    monkeypatch.setattr(blocks, "_convolve", wrong)
    assert not works(torch.float32)


class Block(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.residual = nn.Sequential(*layers), True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.layers(x)
        return result


@pytest.mark.usefixtures("available")
def test_what_cannot_be_fused_runs_as_it_is() -> None:
    torch.manual_seed(0)
    layers = FusableSequential(
        Block(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU()),
        Block(nn.Conv2d(4, 4, 1), nn.Dropout()),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.SiLU(),
    ).eval()
    x = torch.rand(1, 4, 12, 10).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted = layers(x)
        layers.fuse()
        assert torch.allclose(layers(x), wanted, atol=1e-6) and layers._fused
    alone = FusableConv(4, 4, 1)
    copied = copy.deepcopy(alone)
    alone.fuse()
    with torch.no_grad():
        assert torch.allclose(alone(x), copied(x), atol=1e-6) and alone._fused and not copied._fused
        assert torch.equal(copy.deepcopy(alone)(x), alone(x))
    empty = FusableSequential(nn.SiLU())
    empty.fuse()
    assert not empty.fused


@pytest.mark.usefixtures("available")
def test_under_autocast_plain_layers_run() -> None:
    codec = slimcodec.load(dtype="float32")
    with torch.autocast("cpu", torch.bfloat16):
        data = codec.encode(photo("rocket", 64, 48), 40)
    assert codec.decode(data, steps=0).size == (64, 48)


@pytest.mark.usefixtures("available")
def test_what_changes_the_weights_or_the_backend_ends_fused_layers() -> None:
    changes: list[Callable[[Tagger], object]] = [
        lambda tagger: tagger.float(),
        lambda tagger: tagger.load_state_dict(tagger.state_dict()),
    ]
    for change in changes:
        tagger = embedded("float32")
        assert tagger.body.fused
        change(tagger)
        assert not tagger.body.fused
    pictures = torch.rand(1, 3, 192, 192)
    with torch.inference_mode():
        wanted = embedded("float32")(pictures)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not works(torch.float32)
            built_without = embedded("float32")
            # one that is fused already runs its plain layers
            tagger = embedded("float32")
            tagger.body._may_fuse = True
            assert torch.allclose(tagger(pictures), wanted, atol=1e-3) and not tagger.body._fused
    assert not built_without.body.fused and works(torch.float32)
