"""The enhancer with diffusers' own UNet and schedulers: seeded, any scheduler, any size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from slimcodec.models.enhancer import Enhancer, EnhancerConfig, guide_by_caption, seeded_noise
from slimcodec.models.tiling import blended, tile_starts, tiled


def plain_unet(prediction: str, scheduler: str) -> Enhancer:
    """An enhancer shaped like a pretrained latent diffusion model's: four channels, no extra conditions."""
    torch.manual_seed(0)
    unet = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    settings = {"_class_name": scheduler, "prediction_type": prediction}
    config = EnhancerConfig(mode="noise", latent_channels=4, unet=unet, scheduler=settings)
    return Enhancer.build(config).eval()


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(
    ("scheduler", "prediction"),
    [
        ("DDIMScheduler", "epsilon"),
        ("DDIMScheduler", "v_prediction"),
        ("EulerDiscreteScheduler", "epsilon"),
        ("DPMSolverMultistepScheduler", "epsilon"),
        ("LCMScheduler", "epsilon"),
    ],
)
def test_pretrained_style_models_denoise_from_the_decompressed_latent(
    scheduler: str, prediction: str, steps: int
) -> None:
    enhancer = plain_unet(prediction, scheduler)
    rough, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 12)
    noise = seeded_noise(rough.shape, 7)

    def run(seed_noise: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return enhancer(rough, 20, steps, seed_noise, text, torch.zeros_like(text), scale)

    first = run(noise)
    assert first.shape == rough.shape and torch.isfinite(first).all()
    assert torch.equal(first, run(noise))
    assert not torch.allclose(first, run(seeded_noise(rough.shape, 8)))
    assert not torch.allclose(first, run(noise, 3.0))


def test_noise_is_a_function_of_the_seed_alone() -> None:
    noise = seeded_noise((1, 2, 3, 4), 123)
    assert torch.equal(noise, seeded_noise((1, 2, 3, 4), 123))
    assert not torch.equal(noise, seeded_noise((1, 2, 3, 4), 124))
    # frozen: a file's picture must not change with a library's release
    frozen = [-0.504012942314148, 0.8471679091453552, -0.8139004111289978]
    assert np.allclose(noise.flatten()[:3], frozen, rtol=1e-6)
    large = seeded_noise((200_000,), 5)
    assert abs(float(large.mean())) < 0.01 and abs(float(large.std()) - 1) < 0.01


def test_guidance_raises_the_score_within_its_bound() -> None:
    torch.manual_seed(0)
    weights = torch.randn(5, 4)

    def tagger(latents: torch.Tensor) -> torch.Tensor:
        return latents.mean((2, 3)) @ weights.T

    latents, scale = torch.randn(1, 4, 6, 6), torch.tensor([1.0, 0.5, 0.1, 2.0])
    moved = guide_by_caption(latents, 3, [tagger], scale, 0.4)
    before, after = (tagger(x).log_softmax(1)[0, 3] for x in (latents, moved))
    assert after > before
    change = (moved - latents) / scale[:, None, None]
    assert 0.1 < float(change.square().mean().sqrt()) <= 0.4 + 1e-5
    assert torch.equal(guide_by_caption(latents, 3, [tagger], scale, 0.0), latents)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (20, 9), (33, 41)])
def test_tiles_of_a_convolution_equal_the_whole(height: int, width: int) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(3, 4, 3, padding=1)
    )
    shuffle = torch.nn.PixelShuffle(2)
    x = torch.randn(1, 2, height, width)
    with torch.no_grad():
        whole = shuffle(conv(x))
        pieces = tiled(lambda part: shuffle(conv(part)), x, margin=3, cell_out=2, tile=8)
        short = tiled(lambda part: shuffle(conv(part)), x, margin=1, cell_out=2, tile=8)
    assert torch.allclose(whole, pieces, atol=1e-6)
    assert whole.shape == short.shape
    if max(height, width) > 10:
        assert not torch.allclose(whole, short, atol=1e-6)  # the margin matters


def test_blended_tiles_cover_and_keep_what_a_pointwise_function_gives() -> None:
    x = torch.randn(1, 3, 50, 37)
    assert torch.allclose(blended(lambda part: 2 * part, x, tile=20, overlap=6), 2 * x, atol=1e-5)
    # a function with another offset on every tile has no jump larger than a step of the cross-fade
    offsets = iter(range(100))
    steps = blended(lambda part: torch.zeros_like(part) + next(offsets) % 2, x, tile=20, overlap=6)
    assert float(steps.diff(dim=3).abs().max()) < 0.5
    for length, tile, overlap in ((100, 20, 6), (21, 20, 6), (64, 64, 16)):
        starts = tile_starts(length, tile, overlap)
        assert starts[0] == 0 and starts[-1] + tile >= length
        assert all(b - a <= tile - overlap for a, b in pairwise(starts))
