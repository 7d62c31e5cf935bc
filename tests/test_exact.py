"""The exact prior: integer arithmetic that every configuration, and a plain numpy reference, agree on."""

from __future__ import annotations

import numpy as np
import pytest
import reference_prior
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import bundle_with_steps
from support import NAMES, photo

import slimcodec
from slimcodec.codec import Codec
from slimcodec.container import unpack
from slimcodec.models.config import ACTIVATION_BITS, LayerConfig
from slimcodec.models.latent_codec import anchor_mask, check_layer
from slimcodec.models.prior import ExactLayer, FloatLayer, interpolate_levels


@pytest.fixture(scope="module")
def codec() -> Codec:
    return slimcodec.load()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quality", [1, 37, 100])
def test_reference_reads_the_same_symbols_and_values(codec: Codec, name: str, quality: int) -> None:
    # 75x90 has partial hyper positions on both axes; small, since the reference is slow
    data = codec.encode(photo(name, 90, 75), quality, caption=None)
    _, coded = codec.read(data)
    tensors = codec.bundle.stored["prior"]
    symbols, grid = reference_prior.decode(tensors, unpack(data).payload, 5, 6, quality, codec.coder.steps)
    assert symbols == coded.symbols().tolist()
    assert np.array_equal(grid.transpose(2, 0, 1) / 16, coded.values[0])


@pytest.mark.parametrize("quality", [5, 90])
def test_reference_reads_a_map_of_steps(quality: int) -> None:
    codec = Codec(bundle_with_steps())
    mask = np.zeros((75, 90), np.float32)
    mask[20:60, 10:50] = 1
    data = codec.encode(photo("chelsea", 90, 75), quality, caption=None, roi=mask)
    _, coded = codec.read(data)
    tensors = codec.bundle.stored["prior"]
    symbols, grid = reference_prior.decode(tensors, unpack(data).payload, 5, 6, quality, steps=True)
    assert 0 < coded.values[0, -1].mean() < 1
    assert symbols == coded.symbols().tolist()
    assert np.array_equal(grid.transpose(2, 0, 1) / 16, coded.values[0])


def test_batch_threads_and_layout_change_no_integer(codec: Codec) -> None:
    prior = codec.bundle.module("prior")
    quality = torch.tensor([60])
    generator = torch.Generator().manual_seed(0)
    hyper = torch.randint(-20, 21, (8, 4, 4, 48), generator=generator)
    anchors = torch.randint(-(2**19), 2**19, (8, 16, 16, 128), generator=generator)
    mask = torch.from_numpy(anchor_mask(16, 16))
    anchors[:, ~mask] = 0
    first, rest = (chosen.flatten().nonzero().flatten() for chosen in (mask, ~mask))

    def run(hyper: torch.Tensor, anchors: torch.Tensor) -> list[torch.Tensor]:
        features = prior.features(hyper, quality)
        return [
            features,
            *prior.first_pass(features, first, quality),
            *prior.second_pass(features, anchors, rest, quality),
        ]

    together = run(hyper, anchors)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        strided = hyper.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        threaded = run(strided, anchors)
    finally:
        torch.set_num_threads(threads)
    for number in range(8):
        alone = run(hyper[number : number + 1], anchors[number : number + 1])
        for one, all_of_them, again in zip(alone, together, threaded, strict=True):
            assert torch.equal(one[0], all_of_them[number])
            assert torch.equal(again, all_of_them)
    assert len(set(together[2].flatten().tolist())) > 10  # the inputs reach many tables


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    inputs=st.integers(1, 64),
    outputs=st.integers(1, 16),
    relu=st.booleans(),
    quality=st.integers(1, 100),
)
def test_layer_is_integer_arithmetic_close_to_its_float_twin(
    seed: int, inputs: int, outputs: int, relu: bool, quality: int
) -> None:
    torch.manual_seed(seed)
    layer = FloatLayer(LayerConfig(inputs, outputs, levels=3, relu=relu))
    layer.bias.data.normal_()
    x = torch.rand(1, 7, inputs) * 4
    integers = (x * 2**ACTIVATION_BITS).round()
    stored = layer.quantise()
    exact = ExactLayer(stored["weight"], stored["bias"], stored["meta"])(
        integers.double(), torch.tensor([quality])
    )

    weight, shift = stored["weight"].long(), int(stored["meta"][0])
    (row,) = interpolate_levels(stored["bias"], torch.tensor([quality]))
    wanted = (integers.long() @ weight.T + row + (1 << (shift - 1))) >> shift
    if relu:
        wanted = wanted.clamp(0, 2**15 - 1)
    assert torch.equal(exact.long(), wanted)

    level = torch.tensor([(quality - 1) * 2 / 99])
    near = layer(integers / 2**ACTIVATION_BITS, level).detach()
    assert torch.allclose(exact.float() / 2**ACTIVATION_BITS, near, atol=0.02)


def test_a_layer_whose_sums_could_be_inexact_is_refused() -> None:
    weight = np.full((1, 2**18), 2**15 - 1, np.int16)
    with pytest.raises(ValueError, match="exact"):
        check_layer(weight, np.zeros((1, 1), np.int64), np.array([8, 1]))


def test_levels_are_interpolated_between_trained_ones() -> None:
    table = torch.tensor([[0, 990], [99, 0], [198, -990]])

    def row(quality: int) -> list[int]:
        (found,) = interpolate_levels(table, torch.tensor([quality])).tolist()
        return list(found)

    assert row(1) == [0, 990] and row(100) == [198, -990]
    assert row(50) == [98, 10]  # (49 * 2) / 99 of the way to the second level
