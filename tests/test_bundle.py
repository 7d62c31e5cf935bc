"""Bundles as folders: strict, identified by what decoding needs, safetensors only."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import VOCABULARY, small_bundle
from support import photo

import slimcodec
from slimcodec import ModelMismatchError, SlimError
from slimcodec.codec import Codec
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.models.bundle import Bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "small"
    small_bundle().save_pretrained(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_saved_bundle_is_the_same_codec(folder: Path) -> None:
    made, loaded = Codec(small_bundle()), slimcodec.load(folder, dtype="float32")
    assert made.bundle.bundle_id == loaded.bundle.bundle_id
    for steps in (0, 2):
        data = made.encode(photo("coffee", 80, 64), 40)
        assert data == loaded.encode(photo("coffee", 80, 64), 40)
        assert made.decode(data, steps=steps).tobytes() == loaded.decode(data, steps=steps).tobytes()
    assert slimcodec.inspect(data, vocabulary=VOCABULARY).caption is not None


def test_saving_a_loaded_bundle_changes_nothing(folder: Path, tmp_path: Path) -> None:
    Bundle.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_the_id_depends_on_what_decoding_depends_on_and_on_nothing_else(folder: Path) -> None:
    bundle = Bundle.from_pretrained(folder)

    def changed(part: str, name: str) -> str:
        stored = {key: dict(state) for key, state in bundle.stored.items()}
        value = stored[part][name].copy()
        value.reshape(-1)[0] += 1
        stored[part][name] = value
        return Bundle(bundle.config, stored, bundle.vocabulary, bundle.text).bundle_id

    for part, name in (
        ("prior", "anchor_1.weight"),
        ("prior", "tables.radii"),
        ("compressor", "log_inverse_gain"),
        ("autoencoder", "synthesis"),
        ("enhancer", "error_scale"),
    ):
        assert changed(part, name) != bundle.bundle_id, (part, name)
    for part, name in (("compressor", "log_gain"), ("autoencoder", "analysis")):
        assert changed(part, name) == bundle.bundle_id, (part, name)

    config = bundle.config
    encoder = replace(config.autoencoder, encoder_blocks=(3, 3), encoder_width=(8, 8))
    tagger = replace(config.captioners[0], threshold=0.5)
    compressor = replace(config.compressor, analysis_blocks=4, hyper_width=8)
    for same in (
        replace(config, name="other", training={"note": 1}, steps=3, guidance=0.2, text_scale=2.0),
        replace(config, autoencoder=encoder, compressor=compressor, captioners=(tagger,)),
    ):
        assert Bundle(same, bundle.stored, bundle.vocabulary, bundle.text).bundle_id == bundle.bundle_id
    deeper = replace(config, compressor=replace(config.compressor, synthesis_blocks=4))
    assert Bundle(deeper, bundle.stored, bundle.vocabulary, bundle.text).bundle_id != bundle.bundle_id
    other_tags = (*VOCABULARY[:-1], "cosmonaut")
    assert Bundle(bundle.config, bundle.stored, other_tags, bundle.text).bundle_id != bundle.bundle_id


def test_a_setting_that_a_later_release_adds_keeps_the_id(folder: Path, copy: Path) -> None:
    # the folder of an older release: without a setting that this one has, and with the id of its day
    bundle = Bundle.from_pretrained(folder)
    older = json.loads((copy / "config.json").read_text())
    del older["enhancer"]["strength"]
    hashes = ("format", "bundle_id", "sha256", "weights_sha256")
    settings = {key: value for key, value in older.items() if key not in hashes}
    old = Bundle(bundle.config, bundle.stored, bundle.vocabulary, bundle.text, described=settings)
    assert old.bundle_id != bundle.bundle_id
    (copy / "config.json").write_text(json.dumps(older | {"bundle_id": old.bundle_id, "sha256": old.sha256}))
    loaded = Bundle.from_pretrained(copy)
    assert loaded.bundle_id == old.bundle_id and loaded.config == bundle.config


def test_an_altered_weight_is_an_error_that_names_the_bundle(copy: Path) -> None:
    tensors = load_file(copy / "compressor.safetensors")
    tensors["log_inverse_gain"][0, 0] += 1
    save_file(tensors, copy / "compressor.safetensors")
    with pytest.raises(ModelMismatchError, match="get the bundle again"):
        slimcodec.load(copy)


@pytest.mark.parametrize("change", ["missing", "extra", "altered"])
def test_weights_of_the_encoder_are_guarded_too(copy: Path, change: str) -> None:
    tensors = load_file(copy / "compressor.safetensors")
    if change == "missing":
        del tensors["log_gain"]
    elif change == "extra":
        tensors["analysis.surprise"] = torch.zeros(1)
    else:
        tensors["log_gain"][0, 0] += 1
    save_file(tensors, copy / "compressor.safetensors")
    with pytest.raises(ModelMismatchError, match="weights_sha256"):
        slimcodec.load(copy)


@pytest.mark.parametrize(("part", "name"), [("compressor", "log_gain"), ("prior", "context.bias")])
def test_parts_are_built_strictly(part: str, name: str) -> None:
    bundle = small_bundle()
    del bundle.stored[part][name]
    with pytest.raises(SlimError, match=f"(?s)part {part} .*{name}"):
        Codec(bundle).encode(photo("coffee", 32, 32))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("compressor.safetensors", b"short"),
        ("vocabulary.txt", None),
        ("text.json", b"{"),
        ("text.json", b"{}"),
        ("config.json", b"[]"),
        ("config.json", b'{"format": 1}'),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_it(copy: Path, file: str, content: bytes | None) -> None:
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(SlimError, match="copy"):
        slimcodec.load(copy)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format 1"),
        ("surprise", 1, "unknown key 'surprise'"),
        ("steps", "many", "steps"),
        ("compressor", {"width": "wide"}, "width"),
    ],
)
def test_a_bad_configuration_names_the_key(copy: Path, key: str, value: object, message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(SlimError, match=message):
        slimcodec.load(copy)


def test_what_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(SlimError, match="config.json"):
        slimcodec.load(tmp_path)
    with pytest.raises(SlimError, match="no such bundle"):
        slimcodec.load("./nowhere")


def test_a_hub_id_without_a_network_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SlimError, match="nobody/slim-nothing"):
        slimcodec.load("nobody/slim-nothing")


def test_the_embedded_bundle_is_small_and_safe() -> None:
    files = [path for path in EMBEDDED_BUNDLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 26_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md", ".onnx"}
