"""An autoencoder without a denoiser as latent model: TAEF2 and diffusers' AutoencoderKLFlux2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_prior
import torch
from conftest import Slim
from numpy.typing import NDArray
from pretrained import flux2_autoencoder, save_taef2
from safetensors.torch import load_file
from support import photo
from torch import Tensor
from torch.nn import functional as F

import slimcodec
import slimcodec.training.create
from slimcodec import ModelMismatchError, SlimError
from slimcodec.models.bundle import Bundle
from slimcodec.models.pretrained.part_files import TAEF2_FILES
from slimcodec.models.pretrained.pipeline import load_autoencoder, refer_ldm
from slimcodec.models.pretrained.references import find_part
from slimcodec.training.create import changed, create, patterns
from slimcodec.training.export import save_bundle
from slimcodec.training.recipe import load_recipe
from slimcodec.training.run import Run
from slimcodec.training.stages import compressor, train_stage
from slimcodec.training.stages.compressor import LatentCache

#: the published weights, with a picture, its latent and that decoded, for those who have them
PUBLISHED = Path(os.environ.get("SLIMCODEC_TAEF2", Path(__file__).parents[2] / "shared" / "ldm"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_taef2(tmp_path_factory.mktemp("models") / "any name")


@pytest.fixture(scope="module")
def bundle(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an untrained compressor and slim-tiny's tagger."""
    folder = tmp_path_factory.mktemp("bundles") / "taef2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slimcodec.training.create, "SAMPLES", 3)
        create(str(weights)).save_pretrained(folder)
    return folder


def pixels(name: str, width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(photo(name, width, height))


def reference(folder: Path, part: str, x: Tensor) -> Tensor:
    """TAEF2 as its files describe it: the layers by their numbers."""
    tensors = {name: value.float() for name, value in load_file(folder / TAEF2_FILES[part]).items()}

    def convolve(x: Tensor, name: str, **options: Any) -> Tensor:
        weight = tensors[f"{name}.weight"]
        return F.conv2d(x, weight, tensors.get(f"{name}.bias"), padding=weight.shape[-1] // 2, **options)

    def block(x: Tensor, number: int) -> Tensor:
        if f"{number}.pool.0.weight" in tensors:
            scale, shift = (tensors[f"{number}.pool.1.{name}"] for name in ("weight", "bias"))
            hidden = F.group_norm(convolve(x, f"{number}.pool.0"), 4, scale, shift)
            x = x + convolve(hidden.relu(), f"{number}.pool.3")
        hidden = convolve(convolve(x, f"{number}.conv.0").relu(), f"{number}.conv.2").relu()
        return (x + convolve(hidden, f"{number}.conv.4")).relu()

    if part == "encoder":
        x = block(convolve(x, "0"), 1)
        for first in (2, 6, 10):
            x = convolve(x, str(first), stride=2)
            for number in (1, 2, 3):
                x = block(x, first + number)
        return convolve(x, "14")
    x = convolve(3 * torch.tanh(x / 3), "1").relu()
    for first in (3, 8, 13):
        for number in (0, 1, 2):
            x = block(x, first + number)
        x = convolve(x.repeat_interleave(2, 2).repeat_interleave(2, 3), str(first + 4))
    return convolve(block(x, 18), "19")


def autoencoder(folder: Path) -> Any:
    config, _ = refer_ldm(str(folder))
    assert config.part("unet") is None and config.stride == 8
    return load_autoencoder(find_part(config.parts[0]), torch.float32)


def test_taef2_is_what_its_files_describe(weights: Path) -> None:
    space = autoencoder(weights)
    picture = torch.from_numpy(pixels("coffee", 64, 48).transpose(2, 0, 1)[None] / np.float32(255))
    latent = space.encode(picture * 2 - 1)
    assert latent.shape == (1, 32, 6, 8)
    assert torch.allclose(latent, reference(weights, "encoder", picture), atol=1e-5)
    decoded = space.decode(latent)
    assert torch.allclose(decoded / 2 + 0.5, reference(weights, "decoder", latent), atol=1e-5)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published weights are not here (SLIMCODEC_TAEF2)")
def test_taef2_equals_its_published_example() -> None:
    space = autoencoder(PUBLISHED)
    with np.load(PUBLISHED / "taef2_reference.npz") as example:
        picture, latent, decoded = (
            torch.from_numpy(example[name]) for name in ("picture", "latent", "decoded")
        )
    pixels = picture.permute(2, 0, 1)[None].float() / 127.5 - 1
    assert (space.encode(pixels) - latent).abs().max() < 1e-4
    assert (space.decode(latent) / 2 + 0.5 - decoded).abs().max() < 1e-4


def test_flux2_latents_are_normalised_as_the_model_does(tmp_path: Path) -> None:
    vae = flux2_autoencoder()
    vae.save_pretrained(tmp_path / "vae")
    space = autoencoder(tmp_path / "vae")
    picture = torch.from_numpy(pixels("coffee", 64, 48).transpose(2, 0, 1)[None].copy()).float() / 127.5 - 1
    raw = vae.encode(picture).latent_dist.mode()
    patches = F.pixel_unshuffle(raw, 2)
    norm = vae.bn
    expected = F.batch_norm(patches, norm.running_mean, norm.running_var, eps=norm.eps)
    latent = space.encode(picture)
    assert torch.allclose(F.pixel_unshuffle(latent, 2), expected, atol=1e-5)
    assert torch.allclose(space.decode(latent), vae.decode(raw).sample, atol=1e-4)
    create(str(tmp_path / "vae"), captioner="").save_pretrained(tmp_path / "bundle")
    codec = slimcodec.load(tmp_path / "bundle", dtype="float32")
    assert codec.decode(codec.encode(photo("coffee", 50, 34), 60)).size == (50, 34)


@pytest.mark.slow
def test_a_fresh_process_decodes_with_a_folder_of_any_name(
    bundle: Path, weights: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in TAEF2_FILES.values():
        (moved / name).symlink_to(weights / name)
    described = (bundle / "config.json").read_text()
    there = tmp_path / "bundle"
    there.mkdir()
    for path in bundle.glob("*.*"):
        (there / path.name).write_bytes(path.read_bytes())
    # where the weights were is no part of the bundle's identity
    (there / "config.json").write_text(described.replace(str(weights), "somewhere"))
    codec = slimcodec.load(bundle, dtype="float32")
    picture = photo("chelsea", 90, 60)
    data = codec.encode(picture, 50)
    (tmp_path / "cat.slim").write_bytes(data)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "SLIMCODEC_BASE": str(moved), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "slimcodec.cli",
        "decode",
        tmp_path / "cat.slim",
        "-o",
        tmp_path / "cat.png",
    ]
    subprocess.run([*map(str, command), "--model", str(there)], env=environment, check=True, timeout=300)
    from PIL import Image

    other = np.asarray(Image.open(tmp_path / "cat.png"), np.int16)
    assert np.abs(other - np.asarray(codec.decode(data), np.int16)).max() <= 2
    with pytest.raises(ModelMismatchError, match="SLIMCODEC_BASE"):
        slimcodec.load(there, base=tmp_path).decode(data)


@pytest.mark.slow
def test_steps_are_refused_and_captions_guide(bundle: Path, slim: Slim, tmp_path: Path) -> None:
    codec = slimcodec.load(bundle, dtype="float32")
    data = codec.encode(photo("chelsea", 96, 64), 30, caption="a photo of a siamese cat")
    with pytest.raises(SlimError, match="without a denoiser"):
        codec.decode(data, steps=1)
    plain, guided = codec.decode(data), codec.decode(data, preset="machine")
    difference = np.abs(np.asarray(plain, np.int16) - np.asarray(guided, np.int16))
    assert difference.any()
    assert "siamese cat" in guided.info["comment"] and "comment" not in plain.info
    guide = codec.bundle.stored["guide"]
    assert codec.bundle.guide_path is guide["basis"]
    # random weights lose most of a picture at every quality, of every pattern
    lost = guide["error_scale"]
    assert lost.shape == (8, guide["basis"].shape[1]) and 0 < lost.min() and lost.max() < 50
    # a bundle of before guides along its linear map
    known = {"synthesis": guide["synthesis"], "error_scale": np.full((8, guide["synthesis"].shape[1]), 0.5)}
    older = slimcodec.Codec(changed(codec.bundle, {"guide": known}))
    assert older.bundle.guide_path is older.bundle.linear_path
    again = older.encode(photo("chelsea", 96, 64), 30, caption="a photo of a siamese cat")
    assert np.asarray(older.decode(again, preset="machine")).any()
    (tmp_path / "cat.slim").write_bytes(data)
    refused = slim("decode", tmp_path / "cat.slim", "--model", bundle, "--steps", 2)
    assert refused.status == 1 and "give steps 0" in refused.err
    bare = create(str(bundle_weights(bundle)), captioner="")
    with pytest.raises(SlimError, match="no tagger"):
        slimcodec.Codec(bare).sampling(guidance=0.4)


def test_guidance_moves_patterns_of_photos_whatever_the_patch() -> None:
    klt = slimcodec.load().bundle.linear_path
    assert klt is not None
    np.testing.assert_array_equal(patterns(16), klt)
    np.testing.assert_array_equal(patterns(64), klt)
    assert patterns(24).shape == (3 * 8 * 8, klt.shape[1]) and patterns(4).shape == (3 * 4 * 4, klt.shape[1])


@pytest.mark.slow
def test_the_encoders_effort_sees_what_the_decoder_gives(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = slimcodec.load(bundle, dtype="float32")
    seen, pixels = list[NDArray[Any]](), codec.decoder.pixels

    def noted(latents: NDArray[Any]) -> NDArray[Any]:
        seen.append(latents)
        return pixels(latents)

    monkeypatch.setattr(codec.decoder, "pixels", noted)
    picture = photo("chelsea", 90, 60)
    plain = codec.encode(picture, 90, effort=0)
    codec.encode(picture, 90, effort=2)
    assert len(seen) == 2
    # what is seen first is what plain rounding gives
    np.testing.assert_array_equal(seen[0][0], codec.decode_latent(plain))


def bundle_weights(folder: Path) -> str:
    ldm = Bundle.from_pretrained(folder).config.ldm
    assert ldm is not None
    return ldm.parts[0].source


@pytest.mark.slow
def test_large_pictures_are_worked_on_in_tiles_without_seams(weights: Path) -> None:
    space = autoencoder(weights)
    codec = slimcodec.Codec(create(str(weights), captioner=""))
    picture = np.tile(np.asarray(photo("coffee", 256, 128)), (1, 3, 1))[:, :736]
    (latent,) = codec.encoder.latents([picture])
    with torch.no_grad():
        whole = space.encode(torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()).float() / 127.5 - 1)
    # groups are normalised in each tile for itself
    assert np.abs(latent - whole.numpy()).mean() < 0.05 * float(whole.std())
    pixels = codec.decoder.pixels(latent).astype(np.int16)
    with torch.no_grad():
        expected = ((space.decode(torch.from_numpy(latent)) + 1) * 127.5).round().clamp(0, 255).numpy()
    assert pixels.shape == (1, 3, 128, 736) and np.abs(pixels - expected).mean() < 2


TRAINING = [
    "data=generated:16",
    "data.workers=0",
    "precision=no",
    "roi.source=none",
    "latents.count=8",
    "latents.side=64",
    "reports.log_every=4",
    "reports.checkpoint_every=4",
    "compressor.network.width=16",
    "compressor.network.hyper_width=16",
    "compressor.network.prior.width=16",
    "compressor.network.prior.head_width=16",
    "compressor.network.prior.hyper_channels=4",
    *(
        f"{stage}.optimisation.{setting}"
        for stage in ("latents", "compressor")
        for setting in ("steps=8", "batch=4", "crop=48", "warmup=2")
    ),
    "compressor.optimisation.steps=2",
]


@pytest.mark.slow
def test_a_compressor_is_trained_on_latents_that_are_computed_once(weights: Path, tmp_path: Path) -> None:
    def run(resume: bool = False, *settings: str) -> Run:
        chosen = (*TRAINING, f"ldm.source={weights}", f"out={tmp_path}", *settings)
        return Run(load_recipe("hub-latent", chosen), resume, "hub-latent", chosen)

    assert {"autoencoder", "diffusion", "enhance"} <= run().replaced.keys()
    with pytest.raises(SlimError, match="slim train latents"):
        train_stage(run(), "compressor")
    train_stage(run(), "latents")
    kept = np.load(tmp_path / "latents" / "latents.npy", mmap_mode="r")
    assert kept.shape == (8, 32, 8, 8) and kept.dtype == np.float16 and np.abs(kept).min() > 0
    before = (tmp_path / "latents" / "latents.npy").stat().st_mtime_ns
    first = load_file(tmp_path / "latents.safetensors")
    train_stage(run(), "latents")
    assert (tmp_path / "latents" / "latents.npy").stat().st_mtime_ns == before
    again = load_file(tmp_path / "latents.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(SlimError, match="remove it"):
        train_stage(run(False, "latents.count=9"), "latents")
    with pytest.raises(SlimError, match="remove it"):
        train_stage(run(False, "data=generated:12"), "latents")
    train_stage(run(), "compressor")
    save_bundle(run())
    codec = slimcodec.load(tmp_path / "bundle", dtype="float32")
    data = codec.encode(photo("coffee", 70, 50), 40)
    assert codec.decode(data, preset="machine").size == (70, 50)
    assert codec.bundle.config.steps == 0 and codec.bundle.config.enhancer is None
    # where the weights lay says nothing to others
    training = codec.bundle.config.training
    assert "ldm.source=MODEL" in training["commands"][-1] and str(weights) not in json.dumps(training)


def test_a_filled_cache_goes_on_where_it_was_stopped(weights: Path, tmp_path: Path) -> None:
    settings = (*TRAINING, f"ldm.source={weights}", f"out={tmp_path}", "latents.optimisation.batch=1")
    crops = Run(load_recipe("hub-latent", settings)).data.crops("latents")
    calls = 0

    def encode(pictures: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return F.avg_pool2d(pictures, 8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressor, "NOTED", 2)
        cache = LatentCache(tmp_path / "cache", crops, 3, 8, 8, "test")
        with pytest.raises(KeyboardInterrupt):
            cache.fill(encode)
        resumed = LatentCache(tmp_path / "cache", crops, 3, 8, 8, "test")
        assert resumed.done == 4
        resumed.fill(encode)
    whole = LatentCache(tmp_path / "whole", crops, 3, 8, 8, "test")
    whole.fill(lambda pictures: F.avg_pool2d(pictures, 8))
    for one, other in zip(resumed.arrays("r"), whole.arrays("r"), strict=True):
        assert np.array_equal(one, other)


def test_a_cache_that_another_process_has_filled_stays(weights: Path, tmp_path: Path) -> None:
    settings = (*TRAINING, f"ldm.source={weights}", f"out={tmp_path}")
    crops = Run(load_recipe("hub-latent", settings)).data.crops("latents")
    # all processes open the cache before the first one fills it
    first, second = (LatentCache(tmp_path / "cache", crops, 3, 8, 8, "test") for _ in range(2))
    first.fill(lambda pictures: F.avg_pool2d(pictures, 8))
    kept = np.array(first.arrays("r")[0])

    def encode(pictures: Tensor) -> Tensor:
        raise AssertionError("the latents are there")

    second.fill(encode)
    assert np.array_equal(second.arrays("r")[0], kept)


@pytest.mark.parametrize("quality", [5, 60, 100])
def test_symbols_of_this_latent_are_exact(quality: int) -> None:
    folder = Path(__file__).parents[1] / "bundles" / "slim-flux2"
    rng = np.random.default_rng(quality)
    latent = F.interpolate(
        torch.from_numpy(rng.normal(size=(1, 32, 3, 4))).float(), (10, 12), mode="bilinear"
    ).numpy()
    codecs = [slimcodec.load(folder, dtype=dtype) for dtype in ("float32", "bfloat16")]
    coded = codecs[0].encoder.quantise(latent, quality, None)
    payload = codecs[0].coder.write(coded)
    tensors = codecs[0].bundle.stored["prior"]
    symbols, grid = reference_prior.decode(tensors, payload, 5, 6, quality, steps=True)
    assert symbols == coded.symbols().tolist() and np.abs(coded.symbols()).max() > 0
    assert np.array_equal(grid.transpose(2, 0, 1) / 16, coded.values[0])
    threads = torch.get_num_threads()
    try:
        for codec, count in zip(codecs, (1, 3), strict=True):
            torch.set_num_threads(count)
            assert np.array_equal(codec.coder.read(payload, 5, 6, quality).values, coded.values)
    finally:
        torch.set_num_threads(threads)
