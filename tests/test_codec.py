"""The codec through its public contract: real photos, real bytes, fresh processes."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import bundle_with_steps
from support import NAMES, SMALL, photo, psnr

import slimcodec
from slimcodec import FormatError, ImageError, ModelMismatchError, SlimError, VersionError
from slimcodec.codec import Codec
from slimcodec.container import pack, unpack
from slimcodec.encoder import MAP_FROM, Interest
from slimcodec.models.bundle import Bundle


@pytest.fixture(scope="module")
def codec() -> Codec:
    return slimcodec.load()


@pytest.mark.parametrize(
    "name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
def test_rate_and_fidelity_grow_with_quality(codec: Codec, name: str) -> None:
    original = photo(name)
    files = [codec.encode(original, quality, caption=None) for quality in (1, 25, 50, 75, 100)]
    sizes = [len(data) for data in files]
    assert sizes == sorted(sizes) and sizes[-1] > 5 * sizes[0]
    fidelity = [psnr(codec.decode(data, steps=0), original) for data in files]
    assert fidelity == sorted(fidelity)
    assert fidelity[0] > 15 and fidelity[-1] > 27


def test_a_step_changes_the_picture_but_not_what_it_shows(codec: Codec) -> None:
    data = codec.encode(photo("chelsea"), 20)
    rough, enhanced = codec.decode(data), codec.decode(data, steps=1)
    assert rough.tobytes() == codec.decode(data, steps=0).tobytes()
    assert rough.tobytes() != enhanced.tobytes()
    assert psnr(enhanced, photo("chelsea")) > psnr(rough, photo("chelsea")) - 1.5


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_file_gives_the_same_picture_each_time(codec: Codec, steps: int) -> None:
    data = codec.encode(photo("coffee", 128, 96), 30)
    first = codec.decode(data, steps=steps)
    assert first.tobytes() == codec.decode(data, steps=steps).tobytes()
    assert first.tobytes() == slimcodec.load().decode(data, steps=steps).tobytes()


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    quality=st.integers(1, 100),
    mode=st.sampled_from(["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"]),
    steps=st.sampled_from([0, 0, 1]),
)
def test_any_size_and_mode_comes_back_at_its_size(
    width: int, height: int, quality: int, mode: str, steps: int
) -> None:
    codec = slimcodec.codec.default_codec()
    image = photo("astronaut", width, height)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    else:
        image = image.convert(mode)
    decoded = codec.decode(codec.encode(image, quality, effort=0), steps=steps)
    assert (decoded.size, decoded.mode) == ((width, height), "RGB")


def test_extreme_pictures_survive(codec: Codec) -> None:
    flat = Image.new("RGB", (200, 120), (12, 200, 90))
    error = np.asarray(codec.decode(codec.encode(flat, 60), steps=0), np.float64) - np.asarray(flat)
    assert (
        np.abs(error.mean((0, 1))).max() <= 12 and np.abs(error).max() <= 30
    )  # hardly a colour shift, no blotch
    squares = ((np.indices((128, 128)).sum(0) % 2) * 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for array in (squares, noise):
        assert codec.decode(codec.encode(array, 100), steps=0).size == (128, 128)


def test_targets_take_the_largest_file_that_fits(codec: Codec) -> None:
    original = photo("rocket")
    data = codec.encode(original, target_bytes=2500)
    quality = slimcodec.inspect(data).quality
    assert len(data) <= 2500 < len(codec.encode(original, quality + 1))
    assert data == codec.encode(original, quality)
    by_rate = codec.encode(original, target_bpp=2500 * 8 / 256**2)
    assert by_rate == data
    with pytest.raises(SlimError, match="no quality fits in 20 bytes"):
        codec.encode(original, target_bytes=20)
    with pytest.raises(SlimError, match="not both"):
        codec.encode(original, target_bytes=500, target_bpp=0.1)


def test_a_target_where_the_map_of_steps_begins_takes_the_largest_quality_too() -> None:
    codec, original = slimcodec.load(), photo("rocket")
    sizes = {q: len(codec.encode(original, q, effort=0)) for q in range(MAP_FROM - 6, MAP_FROM + 9)}
    before, after = sizes[MAP_FROM - 1], sizes[MAP_FROM]
    # the map saves more than it costs: what this test is about
    assert after < before
    for limit in (after, before - 1, before):
        data = codec.encode(original, target_bytes=limit, effort=0)
        assert slimcodec.inspect(data).quality == max(q for q, size in sizes.items() if size <= limit)


def test_captions_travel_in_the_file(codec: Codec) -> None:
    image = photo("chelsea", 96, 96)
    tag = slimcodec.inspect(codec.encode(image, 30, caption="a photo of a egyptian cat"))
    free = slimcodec.inspect(codec.encode(image, 30, caption="two dogs under a red umbrella"))
    none = slimcodec.inspect(codec.encode(image, 30, caption=None))
    assert (tag.caption, tag.caption_bytes) == ("a photo of an egyptian cat", 2)
    assert free.caption == "two dogs under a red umbrella" and 2 < free.caption_bytes < 30
    assert (none.caption, none.caption_bytes) == (None, 0)
    assert tag.payload_bytes == none.payload_bytes == free.payload_bytes


def test_guidance_moves_the_picture_only_with_a_tag(codec: Codec) -> None:
    image = photo("chelsea", 128, 128)
    tagged, free = codec.encode(image, 20, "egyptian cat"), codec.encode(image, 20, "zq")
    plain = codec.decode(tagged, steps=1, guidance=0)
    guided = codec.decode(tagged, steps=1, guidance=0.3)
    assert 20 < psnr(plain, guided) < 60
    assert (
        codec.decode(free, steps=1, guidance=0).tobytes()
        == codec.decode(free, steps=1, guidance=0.3).tobytes()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quality": 0}, "1 to 100"),
        ({"quality": 101}, "1 to 100"),
        ({"quality": 50.5}, "whole number"),
        ({"quality": True}, "whole number"),
        ({"caption": "x" * 2000}, "1024"),
        ({"caption": 5}, "caption"),
        ({"target_bpp": float("nan")}, "target_bpp"),
        ({"target_bpp": float("inf")}, "target_bpp"),
        ({"target_bytes": 0}, "target_bytes"),
        ({"target_bytes": "1000"}, "target_bytes"),
        ({"max_pixels": "x"}, "max_pixels"),
    ],
)
def test_bad_arguments_of_encode_are_named(codec: Codec, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SlimError, match=message):
        codec.encode(photo("coffee", 32, 32), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": -1},
        {"steps": 1001},
        {"steps": 1.5},
        {"guidance": -0.1},
        {"guidance": float("nan")},
        {"guidance": "x"},
        {"guidance_steps": 5},
        {"max_pixels": "x"},
    ],
)
def test_bad_arguments_of_decode_are_named(codec: Codec, arguments: dict[str, object]) -> None:
    data = codec.encode(photo("coffee", 32, 32))
    with pytest.raises(SlimError, match=next(iter(arguments))):
        codec.decode(data, **arguments)  # type: ignore[arg-type]


def test_a_number_of_numpy_is_a_number(codec: Codec) -> None:
    data = codec.encode(photo("coffee", 32, 32), np.int64(40), "espresso")
    plain = codec.decode(data, 0, 0.5)
    assert codec.decode(data, np.int64(0), np.float32(0.5)) == plain


def test_steps_of_guidance_may_be_given_where_guidance_is_chosen(codec: Codec) -> None:
    for chosen in ({"guidance": 0}, {"guidance": 0.2}, {"preset": "machine"}):
        assert codec.sampling(guidance_steps=5, **chosen).guidance_steps == 5


def test_an_empty_name_is_an_error_and_not_this_folder(codec: Codec) -> None:
    for call in (codec.encode, codec.decode):
        with pytest.raises(SlimError, match="name of the file is empty"):
            call("")
    for source in ("", 5):
        with pytest.raises(SlimError, match="is no bundle"):
            slimcodec.load(source)  # type: ignore[arg-type]


def test_a_file_of_another_bundle_names_the_bundle_that_it_needs(codec: Codec) -> None:
    made = unpack(codec.encode(photo("coffee", 32, 32)))
    other = pack(type(made)(made.width, made.height, made.quality, b"\xde\xad\xbe\xef", b"", made.payload))
    with pytest.raises(ModelMismatchError, match="deadbeef") as caught:
        codec.decode(other)
    assert caught.value.bundle_id == "deadbeef"


def test_a_header_that_claims_a_huge_picture_is_refused_before_work(codec: Codec) -> None:
    made = unpack(codec.encode(photo("coffee", 32, 32)))
    # a line of one pixel's height has as many coded positions as a picture of sixteen
    for width, height in ((60000, 60000), (2**24, 1), (1, 2**24)):
        huge = pack(type(made)(width, height, 50, made.bundle_id, b"", made.payload))
        with pytest.raises(ImageError, match="max_pixels"):
            codec.decode(huge, steps=0)
    small = codec.encode(photo("coffee", 40, 30))
    assert codec.decode(small, steps=0, max_pixels=1200).size == (40, 30)
    with pytest.raises(ImageError, match="max_pixels"):
        codec.decode(small, steps=0, max_pixels=1199)


@pytest.mark.parametrize(
    "arguments", [{"device": "cudaa"}, {"dtype": "int8"}, {"dtype": "wide"}, {"device": "meta"}]
)
def test_a_device_or_type_that_cannot_work_is_named(arguments: dict[str, str]) -> None:
    with pytest.raises(SlimError, match=next(iter(arguments))):
        slimcodec.load(**arguments)  # type: ignore[arg-type]


def test_a_codec_can_be_loaded_and_used_in_inference_mode() -> None:
    with torch.inference_mode():
        codec = slimcodec.load()
        data = codec.encode(photo("rocket", 64, 48), 40)
        assert codec.decode(data, preset="machine").size == (64, 48)
    assert codec.decode(data, preset="machine").size == (64, 48)


@pytest.mark.parametrize("size", [(1, 1), (97, 41), (100, 100)])
def test_guidance_works_at_any_size_and_in_inference_mode(size: tuple[int, int]) -> None:
    codec = slimcodec.load()
    with torch.inference_mode():
        data = codec.encode(photo("chelsea", *size), 20, "egyptian cat")
        inside = codec.decode(data, steps=1, guidance=0.2)
    assert inside.size == size
    assert codec.decode(data, steps=1, guidance=0.2).tobytes() == inside.tobytes()


def test_loading_and_coding_leave_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    codec = slimcodec.load()
    codec.decode(codec.encode(photo("coffee", 40, 40), 30), steps=1)
    assert torch.equal(torch.rand(3), wanted)


def test_every_truncation_and_every_changed_byte_is_refused(codec: Codec) -> None:
    data = codec.encode(photo("astronaut", 64, 64), 10)
    for length in range(len(data)):
        with pytest.raises((FormatError, VersionError)):
            codec.decode(data[:length], steps=0)
    for position in range(len(data)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= change
            with pytest.raises((FormatError, VersionError, ModelMismatchError)):
                codec.decode(bytes(damaged), steps=0)


def test_a_payload_that_does_not_belong_to_the_header_is_an_error_or_another_picture_never_a_crash(
    codec: Codec,
) -> None:
    made = unpack(codec.encode(photo("astronaut", 64, 64), 30))
    rng = np.random.default_rng(1)
    outcomes: set[object] = set()
    for _ in range(60):
        payload = rng.bytes(int(rng.integers(0, 400)))
        # a correct checksum over a payload that no encoder wrote
        forged = pack(type(made)(64, 64, int(rng.integers(1, 101)), made.bundle_id, b"", payload))
        try:
            outcomes.add(codec.decode(forged, steps=0).size)
        except FormatError:
            outcomes.add("refused")
    assert outcomes <= {(64, 64), "refused"} and "refused" in outcomes


SCRIPT = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
import slimcodec
codec = slimcodec.load(dtype=sys.argv[2])
for path in sys.argv[3:]:
    print(hashlib.sha256(codec.read(path)[1].symbols().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_another_process_with_other_threads_and_types_reads_the_same_symbols(
    codec: Codec, tmp_path: Path
) -> None:
    import hashlib

    wanted, paths = [], []
    for name in NAMES:
        for quality in (5, 60):
            coded = codec.quantise(photo(name, 200, 120), quality)
            paths.append(str(tmp_path / f"{name}-{quality}.slim"))
            Path(paths[-1]).write_bytes(codec.encode(photo(name, 200, 120), quality))
            wanted.append(hashlib.sha256(coded.symbols().tobytes()).hexdigest())
    for threads, dtype in (("1", "float32"), ("2", "bfloat16")):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, threads, dtype, *paths], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == wanted


def test_files_of_every_type_decode_with_every_other(codec: Codec) -> None:
    image = photo("chelsea", 160, 112)
    other = slimcodec.load(dtype="float32" if codec.bundle.parts.dtype == torch.bfloat16 else "bfloat16")
    for writer, reader in ((codec, other), (other, codec)):
        data = writer.encode(image, 40)
        assert np.array_equal(writer.quantise(image, 40).symbols(), reader.read(data)[1].symbols())
        assert psnr(writer.decode(data, steps=0), reader.decode(data, steps=0)) > 35


@pytest.mark.slow
def test_one_codec_serves_many_threads(codec: Codec) -> None:
    images = [photo(name, 96 + 16 * number, 80) for number in range(3) for name in NAMES]
    alone = [codec.encode(image, 30) for image in images]
    fresh = slimcodec.load()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: fresh.encode(image, 30), images))
    assert alone == together
    pictures = [codec.decode(data, steps=2).tobytes() for data in alone]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda data: fresh.decode(data, steps=2).tobytes(), alone)) == pictures


def test_the_coder_stays_within_one_percent_and_eight_bytes_of_ideal(codec: Codec) -> None:
    for name in NAMES:
        for quality in (1, 50, 100):
            payload = slimcodec.inspect(codec.encode(photo(name), quality, effort=0)).payload_bytes
            ideal = codec.bit_map(photo(name), quality, effort=0).astype(np.float64).sum() / 8
            assert ideal - 1 <= payload <= 1.01 * ideal + 8


def test_the_bit_map_has_a_position_per_patch_and_follows_the_detail(codec: Codec) -> None:
    half = np.full((128, 160, 3), 128, np.uint8)
    half[:, 80:] = np.asarray(photo("astronaut", 80, 128))
    bits = codec.bit_map(half, 60)
    assert bits.shape == (8, 10)
    assert bits[:, 6:].sum() > 3 * bits[:, :4].sum()
    assert codec.bit_map(photo("coffee", 33, 17), 60).shape == (2, 3)
    for options in ({"quality": 0}, {"quality": 101}, {"effort": 33}, {"roi": "all"}):
        with pytest.raises(SlimError, match=next(iter(options))):
            codec.bit_map(photo("coffee", 33, 17), **options)


def test_decode_latent_returns_what_decode_starts_from(codec: Codec) -> None:
    data = codec.encode(photo("coffee", 70, 50), 50)
    latent = codec.decode_latent(data)
    assert latent.shape == (128, 4, 5) and latent.dtype == torch.float32
    picture = codec.bundle.latent_model.autoencoder.decode(latent[None])[0, :, :50, :70]
    levels = ((picture.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).numpy()
    decoded = np.asarray(codec.decode(data, steps=0))
    assert np.abs(levels - decoded.astype(np.float32)).max() <= 1
    assert np.array_equal(np.asarray(codec.picture(latent, (70, 50))), decoded)
    for size in ((50, 70), (0, 50), (81, 50)):
        with pytest.raises(SlimError, match="covers 80x64"):
            codec.picture(latent, size)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_picture_is_made_of_latents_of_any_type(runtime: str) -> None:
    codec = slimcodec.load(SMALL, runtime=runtime)
    latent = torch.as_tensor(codec.decode_latent(codec.encode(photo("coffee", 32, 32))))
    expected = np.asarray(codec.picture(latent, (32, 32)))
    for same in (latent.double(), latent.double().numpy(), latent.requires_grad_()):
        assert np.array_equal(np.asarray(codec.picture(same, (32, 32))), expected)
    assert codec.picture(latent.bfloat16(), (32, 32)).size == (32, 32)


def test_pictures_come_as_image_array_path_or_bytes(codec: Codec, tmp_path: Path) -> None:
    image = photo("coffee", 60, 44)
    image.save(tmp_path / "coffee.png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    kinds: list[Any] = [
        image,
        np.asarray(image),
        tmp_path / "coffee.png",
        str(tmp_path / "coffee.png"),
        buffer.getvalue(),
    ]
    assert len({codec.encode(kind, 40) for kind in kinds}) == 1


@pytest.mark.slow
def test_tiles_leave_no_trace() -> None:
    exact = slimcodec.load(dtype="float32")
    pieces = Codec(exact.bundle, tile=6)
    image = photo("astronaut", 512, 400)
    data, again = exact.encode(image, 50), pieces.encode(image, 50)
    whole = np.asarray(exact.decode(data, steps=0), np.int16)
    assert np.abs(whole - np.asarray(pieces.decode(data, steps=0), np.int16)).max() <= 1
    # rounding noise may turn single symbols at the encoder; the file stays the same picture
    assert abs(len(again) - len(data)) <= 0.002 * len(data) + 2


def test_tiles_of_the_enhancer_show_no_seam() -> None:
    codec = slimcodec.load(dtype="float32")
    data = codec.encode(photo("coffee", 640, 320), 20, caption=None)
    rough = np.asarray(codec.decode(data, steps=0), np.float64)
    change = np.asarray(Codec(codec.bundle, tile=20).decode(data, steps=1), np.float64) - rough
    jumps = np.abs(np.diff(change, axis=1)).mean((0, 2))
    # tiles begin every few latent positions: no column stands out among those on the grid of patches
    grid = jumps[15::16]
    assert grid.max() < 3 * np.median(grid) + 0.5


def test_the_five_public_names() -> None:
    assert {"load", "encode", "decode", "inspect", "Codec"} <= set(slimcodec.__all__)
    data = slimcodec.encode(photo("coffee", 48, 48), quality=30)
    assert slimcodec.decode(data, steps=0).size == (48, 48)


def test_the_captioner_tells_the_compressor_where_to_look() -> None:
    codec = Codec(bundle_with_steps())
    picture = photo("chelsea", 150, 110)
    pixels = np.asarray(picture)
    roi = codec.encoder.interest(pixels)
    assert roi is not None and roi.weights.shape == (1, 1, 7, 10)
    assert 0 <= float(roi.weights.min()) < float(roi.weights.max()) <= 1
    # what is outside gets fewer bits, and the file says where that is
    left = np.zeros((1, 1, 7, 10), np.float32)
    left[..., :5] = 1
    (latent,) = codec.encoder.latents([pixels])
    everywhere, told = (codec.encoder.quantise(latent, 90, roi) for roi in (None, Interest(left)))
    assert np.array_equal(everywhere.values[:, -1:], np.zeros_like(left))
    assert np.array_equal(told.values[:, -1:], 1 - left)
    maps = [codec.coder.bit_map(coded) for coded in (everywhere, told)]
    assert maps[1][:, 5:].sum() < 0.8 * maps[0][:, 5:].sum()
    assert maps[1][:, :5].sum() > 0.9 * maps[0][:, :5].sum()
    # coarser outside, and the same inside
    decompressed = (codec.decoder.synthesise(coded, 90)[0] for coded in (everywhere, told))
    errors = [np.square(one - latent[0]).mean(0) for one in decompressed]
    assert float(errors[1][:, 6:].mean()) > 1.5 * float(errors[0][:, 6:].mean())
    assert float(errors[1][:, :4].mean()) == pytest.approx(float(errors[0][:, :4].mean()), rel=0.1)
    coded = codec.quantise(picture, 90)
    assert np.array_equal(codec.read(codec.encode(picture, 90))[1].values, coded.values)
    assert np.array_equal(coded.symbols(), Codec(codec.bundle, tile=3).quantise(picture, 90).symbols())


def test_below_a_quality_only_a_mask_of_yours_is_worth_its_map() -> None:
    codec = Codec(bundle_with_steps())
    picture, mask = photo("chelsea", 150, 110), np.zeros((110, 150), np.float32)
    mask[:, :80] = 1
    low, high = MAP_FROM - 1, MAP_FROM
    for roi, held in (("auto", (False, True)), (mask, (True, True)), (None, (False, False))):
        coded = [codec.quantise(picture, quality, roi=roi) for quality in (low, high)]
        assert tuple(bool(one.values[0, -1].any()) for one in coded) == held
        assert tuple(codec.coder.region(one) is not None for one in coded) == held
        files = [codec.encode(picture, quality, None, roi=roi) for quality in (low, high)]
        for file, one in zip(files, coded, strict=True):
            assert np.array_equal(codec.read(file)[1].values, one.values)


def test_presets_choose_guidance() -> None:
    bundle = bundle_with_steps()
    config = replace(bundle.config, guidance=0.1, machine_guidance=0.4)
    codec = Codec(Bundle(config, bundle.stored, bundle.vocabulary, bundle.text))
    assert codec.sampling() == (1, 0.1, 4) and codec.sampling(preset="machine") == (1, 0.4, 4)
    assert codec.sampling(2, 0.3, "machine", 8) == (2, 0.3, 8)
    data = codec.encode(photo("chelsea", 64, 48), 30, "a photo of an egyptian cat")
    pictures = [np.asarray(codec.decode(data, preset=preset)) for preset in ("natural", "machine")]
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[1], np.asarray(codec.decode(data, 1, 0.4)))
    with pytest.raises(SlimError, match="natural or machine"):
        codec.decode(data, preset="pretty")


def test_a_mask_can_be_given_and_is_checked(codec: Codec) -> None:
    with_steps = Codec(bundle_with_steps())
    picture = photo("chelsea", 150, 110)
    mask = np.zeros((110, 150), np.float32)
    mask[:, :80] = 1
    region = with_steps.coder.region(with_steps.quantise(picture, 50, roi=mask))
    assert region is not None and region[:, :5].all() and not region[:, 5:].any()
    data = with_steps.encode(picture, 50, None, roi=mask)
    assert len(data) < len(with_steps.encode(picture, 50, None, roi=None))
    assert with_steps.decode(data, 0).size == (150, 110)
    # as coarse as one likes
    assert with_steps.encode(picture, 50, None, roi=mask[::10, ::10]) == data
    for wrong, reason in (
        (mask[0], "two axes"),
        (mask * 2, "values in"),
        (Image.new("L", (150, 110), 255), "values from 255 to 255; .* booleans"),
        ("middle", "'middle'"),
        (Path("mask.png"), "Path"),
    ):
        with pytest.raises(SlimError, match=reason):
            with_steps.encode(picture, 50, roi=wrong)  # type: ignore[arg-type]
    if codec.bundle.config.compressor.step_octaves == 0:
        with pytest.raises(SlimError, match="takes no roi"):
            codec.encode(picture, 50, roi=mask)


def test_a_map_of_steps_is_part_of_what_decodes() -> None:
    codec = Codec(bundle_with_steps())
    other = replace(codec.bundle.config, compressor=replace(codec.bundle.config.compressor, step_octaves=0.5))
    parts = {name: dict(state) for name, state in codec.bundle.stored.items()}
    assert (
        Bundle(other, parts, codec.bundle.vocabulary, codec.bundle.text).bundle_id != codec.bundle.bundle_id
    )
