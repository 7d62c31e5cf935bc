"""What is drawn is bounded: error falls with quality, nothing comes back as garbage, and photos keep their values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import SIDE, drawn
from support import NAMES, photo, psnr

from slimcodec.codec import Codec
from slimcodec.models.compressor import Compressor
from slimcodec.models.trials import strays

PICTURES = drawn()
QUALITIES = (1, 50, 100)
#: garbage at all qualities, beside a picture, and in colour at high ones, before values were bounded
QUICK = ("stripes beside a gradient/45-degrees-period-4", "colour bars/of-4-pixels")
#: dB: differences that are tolerated, and PSNR from which on nothing is garbage, and from which on all is equal
TOLERANCE, FINE, SEEN = 2.0, 13.0, 28.0


def decoded(codec: Codec, name: str, quality: int) -> np.ndarray:
    data = codec.encode(PICTURES[name], quality, caption=None)
    return np.asarray(codec.decode(data, steps=0))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PICTURES]
)
def test_error_falls_with_quality_and_is_never_garbage(tiny: Codec, name: str) -> None:
    picture = PICTURES[name]
    flat = psnr(picture, np.broadcast_to(picture.mean((0, 1)), picture.shape))
    found = [min(psnr(picture, decoded(tiny, name, quality)), SEEN) for quality in QUALITIES]
    assert min(found) > min(flat, FINE) - TOLERANCE
    assert max(np.maximum.accumulate(found) - found) < TOLERANCE
    assert found[2] > found[1] - 0.1


def test_a_picture_beside_stripes_is_what_it_is_without_them(tiny: Codec) -> None:
    name, left = "stripes beside a gradient/45-degrees-period-4", slice(0, SIDE // 2 - 32)
    assert psnr(PICTURES[name][:, left], decoded(tiny, name, 70)[:, left]) > 30


def test_the_best_quality_is_reached_where_it_fits(tiny: Codec) -> None:
    picture = PICTURES["colour bars/of-4-pixels"]
    best = tiny.encode(picture, 100, caption=None)
    assert tiny.encode(picture, caption=None, target_bytes=len(best)) == best


@pytest.mark.parametrize("name", NAMES[:2])
def test_photos_keep_their_values(tiny: Codec, name: str) -> None:
    (latent,) = tiny.encoder.latents([np.asarray(photo(name))])
    for quality in (1, 50, 100):
        given = latent, np.array([quality]), np.ones_like(latent[:, :1])
        values, linear = (tiny.runtime.run(network, *given)[0] for network in ("analyse", "analyse_linearly"))
        assert not strays(values, linear)


def test_the_linear_path_is_the_analysis_without_its_branch(small: Codec) -> None:
    compressor = Compressor(replace(small.bundle.compressor.config, step_octaves=1.0))
    latent, level = torch.randn(1, compressor.config.latent_channels, 5, 3), torch.tensor([1.5])
    region = torch.tensor([0.0, 0.5, 1.0]).expand(1, 1, 5, 3)
    with torch.no_grad():
        linear = compressor.analyse_linearly(latent, level, region)
        assert not torch.allclose(compressor.analyse(latent, level, region), linear)
        for parameter in compressor.analysis.leave.parameters():
            parameter.zero_()
        assert torch.allclose(compressor.analyse(latent, level, region), linear)
