"""Bundles made to harm: huge numbers, huge files, pipes, and paths that lead out are refused before they cost anything."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import slimcodec
from slimcodec import ModelMismatchError, SlimError
from slimcodec.codec import Codec
from slimcodec.config import check_sizes, from_plain
from slimcodec.files import inside
from slimcodec.models.bundle import Bundle
from slimcodec.models.config import BundleConfig
from slimcodec.models.pretrained.part_files import fingerprint
from slimcodec.models.pretrained.references import PartReference, find_part

SMALL = Path(__file__).parent / "golden" / "small"
HUGE = 10**9


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(SMALL, tmp_path / "copy")
    return tmp_path / "copy"


def put(settings: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """The settings with a value at a path of names."""
    changed = json.loads(json.dumps(settings))
    *parents, last = path.split(".")
    place = changed
    for name in parents:
        place = place[name]
    place[last] = value
    return dict(changed)


# ---- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("compressor.prior.channels", HUGE),
        ("compressor.synthesis_blocks", 65),
        ("compressor.patch", 10**5),
        ("autoencoder.latent_channels", HUGE),
        ("autoencoder.decoder_blocks", [HUGE, 1]),
        ("enhancer.unet.block_out_channels", [HUGE, HUGE]),
        ("enhancer.unet.layers_per_block", HUGE),
        ("enhancer.unet.down_block_types", ["DownBlock2D"] * 1000),
        ("enhancer.noise", float("nan")),
        ("steps", HUGE),
        ("enhancer.scheduler", {"num_train_timesteps": -HUGE}),
    ],
)
def test_huge_numbers_of_a_configuration_are_refused_by_name(copy: Path, path: str, value: object) -> None:
    config = copy / "config.json"
    config.write_text(json.dumps(put(json.loads(config.read_text()), path, value)))
    name = path.split(".")[-1]
    with pytest.raises(SlimError, match=rf"{name}.*(out of range|at most|not a finite)") as error:
        slimcodec.load(copy)
    assert not isinstance(error.value, ModelMismatchError)  # before anything is hashed or built


def test_huge_numbers_of_the_text_model_are_refused(copy: Path) -> None:
    text = copy / "text.json"
    text.write_text(json.dumps(put(json.loads(text.read_text()), "model.hidden_size", HUGE)))
    with pytest.raises(SlimError, match=r"hidden_size: 1000000000 is out of range"):
        slimcodec.load(copy)


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        # each would take over 100 GB if it were allocated before it is compared with the weights
        ("enhancer.unet.block_out_channels", [59_984, 60_000], "enhancer"),
        ("autoencoder.decoder_width", [60_000, 60_000], "autoencoder"),
        ("compressor.width", 60_000, "compressor"),
        ("compressor.prior.head_width", 60_000, "prior"),
        ("compressor.prior.channels", 60_000, "prior"),
    ],
)
def test_sizes_that_the_weights_do_not_have_cost_no_memory(path: str, value: object, part: str) -> None:
    bundle = Bundle.from_pretrained(SMALL)
    described = put(bundle.described, path, value)
    config = from_plain(BundleConfig, described, "here")
    hostile = Bundle(config, bundle.stored, bundle.vocabulary, bundle.text, described=described)
    with pytest.raises(SlimError, match="does not fit its configuration"):
        # the exact stage is looked at when a codec is made, whatever its runtime
        Codec(hostile)
        getattr(hostile if hasattr(Bundle, part) else hostile.latent_model, part)


def test_a_prior_without_symbol_tables_names_them() -> None:
    bundle = Bundle.from_pretrained(SMALL)
    prior = {name: value for name, value in bundle.stored["prior"].items() if name != "tables.radii"}
    hostile = Bundle(bundle.config, {**bundle.stored, "prior": prior}, bundle.vocabulary, bundle.text)
    with pytest.raises(SlimError, match="symbol tables lack tables.radii"):
        Codec(hostile)


def test_a_text_model_of_another_size_costs_no_memory() -> None:
    bundle = Bundle.from_pretrained(SMALL)
    assert bundle.text is not None
    model = {**bundle.text[1], "vocab_size": 1 << 20, "hidden_size": 1 << 16, "intermediate_size": 1 << 16}
    hostile = Bundle(bundle.config, bundle.stored, bundle.vocabulary, (bundle.text[0], model))
    with pytest.raises(SlimError, match="does not fit its configuration"):
        hostile.latent_model.embed_captions(["a cat"])


def test_usual_numbers_pass() -> None:
    check_sizes({"vocab_size": 49408, "num_train_timesteps": 1000, "blocks": [64], "on": True}, "here")
    for values in ({"side": 1025}, {"x_layers": [65]}, {"a": {"b": [[HUGE]]}}, {"a": float("inf")}):
        with pytest.raises(SlimError, match="here"):
            check_sizes(values, "here")


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "text.json", "vocabulary.txt"])
def test_huge_files_are_not_read(copy: Path, name: str) -> None:
    with open(copy / name, "wb") as file:
        file.truncate(1 << 40)  # sparse: costs no disk
    with pytest.raises(SlimError, match=f"{name}.*more than such a file needs"):
        slimcodec.load(copy)


def test_a_huge_header_of_a_weight_file_is_not_read(copy: Path) -> None:
    with open(copy / "prior.safetensors", "wb") as file:
        file.write((1 << 39).to_bytes(8, "little"))
        file.truncate(1 << 40)
    with pytest.raises(SlimError, match=r"prior.safetensors.*header claims 549755813888 bytes"):
        slimcodec.load(copy)


@pytest.mark.parametrize("name", ["config.json", "compressor.safetensors"])
def test_a_pipe_is_refused_and_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(SlimError, match="regular file"):
        slimcodec.load(copy)


def test_deeply_nested_settings_are_refused(copy: Path) -> None:
    for content in ("[" * 100_000, '{"format": 1, "training": ' + '{"a":' * 90_000 + "1" + "}" * 90_001):
        (copy / "config.json").write_text(content)
        with pytest.raises(SlimError, match="nested too deeply"):
            slimcodec.load(copy)


# ---- paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "text.json", "vocabulary.txt", "prior.safetensors"])
def test_links_out_of_a_bundle_are_refused(copy: Path, tmp_path: Path, name: str) -> None:
    shutil.move(copy / name, tmp_path / name)
    (copy / name).symlink_to(tmp_path / name)
    with pytest.raises(SlimError, match=f"{name}: a link that leads out of"):
        slimcodec.load(copy)


def test_links_within_a_bundle_and_within_the_hubs_cache_are_followed(copy: Path, tmp_path: Path) -> None:
    (copy / "prior.safetensors").rename(copy / "held")
    (copy / "prior.safetensors").symlink_to("held")
    slimcodec.load(copy)
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(SMALL.iterdir()):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    slimcodec.load(snapshot)
    (snapshot / "vocabulary.txt").unlink()
    (snapshot / "vocabulary.txt").symlink_to(tmp_path / "copy" / "vocabulary.txt")
    with pytest.raises(SlimError, match="leads out of"):
        slimcodec.load(snapshot)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/../../x", "/etc/passwd", "C:\\x", "a\\..\\x", "\\\\host\\x"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SlimError, match="no path inside"):
        inside(tmp_path, name)
    with pytest.raises(SlimError):
        PartReference(name, "0", "owner/name")
    if name:
        with pytest.raises(SlimError, match="no path inside"):
            PartReference("vae", "0", "owner/name", subfolder=name)


@pytest.fixture
def part(tmp_path: Path) -> PartReference:
    """A part in a folder outside of any bundle."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "Thing"}')
    return PartReference("vae", fingerprint(folder)[0], str(folder))


def test_links_out_of_a_packed_part_are_refused(part: PartReference, tmp_path: Path) -> None:
    packed = tmp_path / "bundle" / "parts" / "vae"
    packed.mkdir(parents=True)
    shutil.copy(Path(part.source, "config.json"), packed)
    assert find_part(part, tmp_path / "bundle").place == "packed"
    (packed / "config.json").unlink()
    (packed / "config.json").symlink_to(Path(part.source, "config.json"))
    with pytest.raises(SlimError, match="leads out of"):
        find_part(part, tmp_path / "bundle")
    shutil.rmtree(packed)
    packed.symlink_to(part.source)
    with pytest.raises(SlimError, match="leads out of"):
        find_part(part, tmp_path / "bundle")


def test_a_bundle_from_the_hub_names_no_folder_of_this_machine(part: PartReference, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    with pytest.raises(ModelMismatchError, match="may not name the folder"):
        find_part(part, snapshot)
    assert find_part(part, snapshot, base=part.source).place == "base"  # the user may
    assert find_part(part, tmp_path).place == "folder"  # and so may a bundle of the user's own
