"""The latent space of pretrained autoencoders behind the codec's own interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretrained import autoencoder, tiny_autoencoder

from slimcodec.models.blocks import dtype_of
from slimcodec.models.pretrained.networks import PretrainedAutoencoder
from slimcodec.models.pretrained.pipeline import load_autoencoder
from slimcodec.models.pretrained.references import FoundPart
from slimcodec.models.tiles import blended


def made(kind: str) -> PretrainedAutoencoder:
    torch.manual_seed(0)
    vae: Any = tiny_autoencoder() if kind == "tiny" else autoencoder()
    return PretrainedAutoencoder(vae.eval().requires_grad_(False))


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_pictures_become_scaled_latents_and_return(kind: str) -> None:
    space = made(kind)
    assert space.stride == 8 and space.vae.config.latent_channels == 4
    pictures = torch.rand(2, 3, 64, 48) * 2 - 1
    latents = space.encode(pictures)
    assert latents.shape == (2, 4, 8, 6) and latents.dtype == torch.float32
    assert torch.equal(latents, space.encode(pictures))
    assert space.decode(latents).shape == pictures.shape
    if kind == "kl":
        plain = space.vae.encode(pictures).latent_dist.mode()
        assert torch.allclose(latents, plain * 0.18215)
        assert torch.allclose(space.decode(latents), space.vae.decode(plain).sample, atol=1e-4)


def test_a_shift_is_undone_by_decoding() -> None:
    space = made("kl")
    latents = torch.randn(1, 4, 4, 4)
    plain = space.decode(latents)
    space.shift = 0.5
    assert torch.allclose(space.decode(latents - 0.5 * space.scale), plain, atol=1e-4)


def test_large_pictures_are_divided() -> None:
    assert made("kl").tile == 64
    rng, seen = np.random.default_rng(0), []

    def enlarge(latents: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        seen.append(latents.shape[2:])
        return latents.repeat(2, 2).repeat(2, 3)

    for kind in (np.float32, np.uint8):
        latents = rng.integers(0, 256, (1, 3, 20, 50)).astype(kind)
        whole = enlarge(latents)
        seen.clear()
        divided = blended(enlarge, latents, cell_out=2, tile=16, overlap=4)
        assert np.allclose(divided, whole, atol=1e-4) and divided.dtype == kind
        assert set(seen) == {(16, 16)} and len(seen) == 8
        pooled = blended(lambda x: x[..., ::2, ::2], whole, cell_in=2, tile=16)
        assert np.allclose(pooled, latents, atol=1e-4) and pooled.dtype == kind


def test_the_scale_of_a_channel_is_its_energy_in_the_picture() -> None:
    space = made("kl")

    def decode(latents: torch.Tensor) -> torch.Tensor:
        wide = latents.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return torch.stack([3 * wide[:, 0], wide[:, 1], 0 * wide[:, 2] + wide[:, 3]], 1)

    space.decode = decode  # type: ignore[method-assign]
    scale = space.latent_scale(torch.randn(2, 4, 4, 4))
    assert torch.allclose(scale, torch.tensor([24.0, 8.0, 1e-4, 8.0]), rtol=1e-3)


def test_half_precision_is_left_to_those_that_bear_it(tmp_path: Path) -> None:
    for upcast in (True, False):
        vae = autoencoder()
        vae.register_to_config(force_upcast=upcast)
        vae.save_pretrained(tmp_path / str(upcast))
        space = load_autoencoder(FoundPart(tmp_path / str(upcast), "", "folder"), torch.float16)
        assert dtype_of(space) == (torch.float32 if upcast else torch.float16)
        assert load_autoencoder(FoundPart(tmp_path / str(upcast), "", "folder"), torch.bfloat16)
