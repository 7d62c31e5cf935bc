"""Bundles on pretrained latent diffusion models: created, encoded in one process, decoded in another without a network."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretrained import (
    FAMILIES,
    WORDS,
    save_blip,
    save_blip2,
    save_clip,
    save_florence2,
    save_pipeline,
    tiny_autoencoder,
)
from small import small_bundle
from support import photo, slim

import slimcodec
import slimcodec.training.create
from slimcodec import ModelMismatchError, SlimError
from slimcodec.codec import Codec
from slimcodec.models.bundle import Bundle
from slimcodec.models.config import LdmConfig
from slimcodec.models.pretrained.pipeline import REQUIRED, refer_ldm
from slimcodec.models.publishing import save
from slimcodec.training.create import create, with_captioner

OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

#: reads and decodes the .slim files of a folder with the bundle of their name, at several numbers of steps, in a fresh process
DECODE = """
import hashlib, sys
from pathlib import Path
import slimcodec
folder = Path(sys.argv[1])
for file in sorted(folder.glob("*.slim")):
    codec = slimcodec.load(folder / file.stem, dtype="float32")
    values = codec.read(file)[1].values
    file.with_suffix(".sha256").write_text(hashlib.sha256(values.tobytes()).hexdigest())
    for steps in (0, 1, 4):
        codec.decode(file, steps=steps).save(folder / f"{file.stem}-{steps}.png")
"""


@pytest.fixture(scope="module", autouse=True)
def few_samples() -> Iterator[None]:
    """Untrained compressors are made from fewer pictures than users' are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slimcodec.training.create, "SAMPLES", 3)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline and a bundle of every family."""
    folder = tmp_path_factory.mktemp("hub")
    for family in FAMILIES:
        source = save_pipeline(family, folder / "models")
        save(create(str(source), captioner=""), folder / "bundles" / family)
    return folder


@pytest.mark.slow
def test_every_family_is_decoded_in_another_process_without_a_network(home: Path, tmp_path: Path) -> None:
    pictures: dict[str, Any] = {}
    values: dict[str, str] = {}
    for family in FAMILIES:
        shutil.copytree(home / "bundles" / family, tmp_path / family)
        codec = slimcodec.load(home / "bundles" / family, dtype="float32")
        data = codec.encode(photo("coffee", 64, 50), 30, caption="a photo of a cat")
        (tmp_path / f"{family}.slim").write_bytes(data)
        assert slimcodec.inspect(data).bundle_id == codec.bundle.bundle_id
        values[family] = hashlib.sha256(codec.read(data)[1].values.tobytes()).hexdigest()
        for steps in (0, 1, 4):
            pictures[f"{family}-{steps}"] = np.asarray(codec.decode(data, steps=steps), np.int16)
    subprocess.run([sys.executable, "-c", DECODE, str(tmp_path)], check=True, env=OFFLINE, timeout=300)
    from PIL import Image

    for name, picture in pictures.items():
        assert picture.shape == (50, 64, 3)
        # what is coded is exact; the networks after it sum in another order on another number of threads
        other = np.asarray(Image.open(tmp_path / f"{name}.png"), np.int16)
        assert np.abs(other - picture).max() <= 2, name
    for family in FAMILIES:
        assert (tmp_path / f"{family}.sha256").read_text() == values[family]
        assert not np.array_equal(pictures[f"{family}-0"], pictures[f"{family}-1"]), family
        assert not np.array_equal(pictures[f"{family}-1"], pictures[f"{family}-4"]), family


def test_an_untrained_compressor_is_a_transform_code(home: Path) -> None:
    codec = slimcodec.load(home / "bundles" / "sd1", dtype="float32")
    picture = photo("coffee", 128, 96)
    latents = codec.latents(picture)[None]
    sizes, errors = [], []
    for quality in (1, 30, 60, 100):
        data = codec.encode(picture, quality)
        sizes.append(len(data))
        errors.append(float((codec.decode_latent(data) - latents[0]).square().mean() / latents.var()))
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05 * errors[0]


def test_odd_sizes_and_large_pictures_have_their_size(home: Path) -> None:
    codec = slimcodec.load(home / "bundles" / "sdxl", dtype="float32")
    for width, height in ((1, 1), (70, 33), (150, 20)):
        data = codec.encode(photo("coffee", width, height), 20)
        assert codec.decode(data, steps=1).size == (width, height)


def test_the_id_is_that_of_what_decodes(home: Path, tmp_path: Path) -> None:
    source, bundle = home / "models" / "sd1", Bundle.from_pretrained(home / "bundles" / "sd1")
    config = bundle.config
    assert config.ldm is not None

    def identity(ldm: LdmConfig, **settings: Any) -> str:
        made = replace(config, ldm=ldm, **settings)
        return Bundle(made, bundle.stored, bundle.vocabulary, bundle.text).bundle_id

    elsewhere = replace(
        config.ldm,
        parts=tuple(
            replace(
                part, source="a/b", revision="1", encoder_sha256="0", alternatives=("c/d",), licence="mit"
            )
            for part in config.ldm.parts
        ),
    )
    assert identity(elsewhere, steps=4, text_scale=3.0, name="other", training={"a": 1}) == bundle.bundle_id
    for number, part in enumerate(config.ldm.parts):
        parts = list(config.ldm.parts)
        parts[number] = replace(part, sha256="0" * 64)
        assert identity(replace(config.ldm, parts=tuple(parts))) != bundle.bundle_id, part.name
    # notes in configurations and the names of files change nothing
    shutil.copytree(source, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*/config.json"):
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(settings | {"_diffusers_version": "9", "_name_or_path": "x"}))
    unet = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert refer_ldm(str(tmp_path / "copy"))[0].part("unet") == replace(
        config.ldm.parts[1], source=str(tmp_path / "copy"), megabytes=config.ldm.parts[1].megabytes
    )
    codec = slimcodec.load(home / "bundles" / "sd1", base=tmp_path / "copy")
    data = codec.encode(photo("coffee", 32, 32), 20)
    assert codec.decode(data, steps=1).size == (32, 32)
    assert codec.bundle.pretrained_part("unet").variant == "fp16"


def test_the_written_description_of_other_bundles_is_as_it_was() -> None:
    embedded = Bundle.from_pretrained()
    assert "ldm" not in embedded.config.described()
    assert set(embedded.config.described()) == set(embedded.described)


@pytest.fixture
def cache(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache on this machine that has one commit of ``someone/sd``, and no network."""
    commit = "1" * 40
    repository = tmp_path / "cache" / "models--someone--sd"
    shutil.copytree(home / "models" / "sd1", repository / "snapshots" / commit)
    (repository / "snapshots" / commit / "README.md").write_text("---\nlicense: mit\n---\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository


def test_a_hub_id_is_pinned_to_its_commit(cache: Path, tmp_path: Path, home: Path) -> None:
    bundle = create("someone/sd", captioner="", alternatives=("else/where",))
    save(bundle, tmp_path / "made")
    assert bundle.bundle_id == Bundle.from_pretrained(home / "bundles" / "sd1").bundle_id
    for part in bundle.references():
        assert (part.source, part.revision, part.licence) == ("someone/sd", "1" * 40, "mit")
    data = slimcodec.load(tmp_path / "made").encode(photo("coffee", 32, 32), 20)

    # another commit at the hub, and no network to get ours
    (cache / "snapshots" / ("1" * 40)).rename(cache / "snapshots" / ("2" * 40))
    codec = slimcodec.load(tmp_path / "made")
    with pytest.raises(ModelMismatchError) as caught:
        codec.decode(data, steps=0)
    reference = bundle.references()[0]
    for words in (
        "part vae of someone/sd at revision 1111",
        reference.sha256,
        "else/where",
        "SLIMCODEC_BASE",
    ):
        assert words in str(caught.value)
    assert f"hf download someone/sd --revision {'1' * 40} --include 'vae/*'" in str(caught.value)

    # the mirror has it, at a commit of its own
    shutil.copytree(cache, cache.with_name("models--else--where"))
    (cache.with_name("models--else--where") / "refs" / "main").write_text("2" * 40)
    assert slimcodec.load(tmp_path / "made").decode(data).size == (32, 32)


def test_no_hub_and_no_cache_is_an_error_that_names_the_id(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SlimError, match="no/body"):
        create("no/body", captioner="")
    with pytest.raises(SlimError, match="no such model"):
        create(str(tmp_path / "nowhere"), captioner="")


def test_a_bundle_at_the_hub_lends_its_captioner(cache: Path, home: Path) -> None:
    repository = cache.with_name("models--someone--tagger")
    lender = small_bundle()
    lender.save_pretrained(repository / "snapshots" / ("1" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1" * 40)
    bundle = with_captioner(Bundle.from_pretrained(home / "bundles" / "sd1"), "someone/tagger")
    assert bundle.config.caption_model is None and bundle.vocabulary == lender.vocabulary
    assert bundle.config.captioners == lender.config.captioners[:1] and len(bundle.captioners) == 1


@pytest.mark.parametrize("change", ["missing", "altered", "cut", "config"])
def test_a_changed_model_is_an_error_that_names_the_part(home: Path, tmp_path: Path, change: str) -> None:
    shutil.copytree(home / "models" / "sd1", tmp_path / "model")
    bundle = create(str(tmp_path / "model"), captioner="")
    save(bundle, tmp_path / "made")
    codec = slimcodec.load(tmp_path / "made", dtype="float32")
    data = codec.encode(photo("coffee", 32, 32), 20)
    unet = tmp_path / "model" / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    if change == "missing":
        shutil.rmtree(unet)
    elif change == "altered":
        content = bytearray(weights.read_bytes())
        content[-3] ^= 1
        weights.write_bytes(content)
    elif change == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    else:
        settings = json.loads((unet / "config.json").read_text())
        (unet / "config.json").write_text(json.dumps(settings | {"norm_num_groups": 2}))
    codec = slimcodec.load(tmp_path / "made", dtype="float32")
    assert codec.decode(data, steps=0).size == (32, 32)
    with pytest.raises(ModelMismatchError, match=f"part unet .*{bundle.references()[1].sha256}"):
        codec.decode(data, steps=1)
    with pytest.raises(ModelMismatchError, match="part unet"):
        save(codec.bundle, tmp_path / "packed", packed=True)
    assert not (tmp_path / "packed").exists() and not list(tmp_path.glob(".slim-*"))


def test_the_command_makes_shows_checks_and_packs(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "models" / "turbo", tmp_path / "model")
    tiny_autoencoder().save_pretrained(tmp_path / "small-vae")
    wanted = ("bundle", "create", "--ldm", tmp_path / "model", "--autoencoder", tmp_path / "small-vae")
    assert slim(*wanted, "-o", tmp_path / "made") == 0
    assert slim(*wanted, "-o", tmp_path / "made") == 1
    assert "exists" in capsys.readouterr().err
    assert slim("bundle", "show", tmp_path / "made", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in shown["parts"]] == list(REQUIRED) and shown["enhancer"] == "noise"
    assert slim("bundle", "verify", tmp_path / "made") == 0
    assert "5 of 5" in capsys.readouterr().out
    assert slim("bundle", "pack", tmp_path / "made", "-o", tmp_path / "packed") == 0
    shutil.rmtree(tmp_path / "small-vae")
    (tmp_path / "model").rename(tmp_path / "moved")
    assert slim("bundle", "verify", tmp_path / "made") == 1
    said = capsys.readouterr()
    assert "0 of 5" in said.out and "part unet" in said.err and "Traceback" not in said.err
    assert slim("bundle", "show", tmp_path / "made") == 0
    assert slim("bundle", "verify", tmp_path / "packed") == 0
    assert "packed" in capsys.readouterr().out
    photo("coffee", 48, 40).save(tmp_path / "photo.png")
    slims, pictures = tmp_path / "photo.slim", tmp_path / "back.png"
    assert slim("encode", tmp_path / "photo.png", "-o", slims, "--model", tmp_path / "packed", "-q", 20) == 0
    # the same bundle, its parts elsewhere: the small autoencoder is gone, so the packed copy serves
    monkeypatch.setenv("SLIMCODEC_BASE", f"{tmp_path / 'packed' / 'parts'}{os.pathsep}{tmp_path / 'moved'}")
    assert slim("decode", slims, "-o", pictures, "--model", tmp_path / "made", "--steps", 2) == 0
    assert slimcodec.load(tmp_path / "made").bundle.pretrained_part("unet").place == "base"


def test_what_cannot_be_used_is_refused(home: Path, tmp_path: Path) -> None:
    def altered(part: str, file: str, changes: dict[str, Any]) -> str:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(home / "models" / "sd1", tmp_path / "model")
        path = tmp_path / "model" / part / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return str(tmp_path / "model")

    for part, changes, message in (
        ("unet", {"in_channels": 9}, "inpainting"),
        ("unet", {"_class_name": "Transformer2DModel"}, "known is UNet2DConditionModel"),
        ("vae", {"_class_name": "AutoencoderDC"}, "known are AutoencoderKL"),
        ("", {"unet": [None, None]}, "names no unet"),
    ):
        file = "config.json" if part else "model_index.json"
        with pytest.raises(SlimError, match=message):
            create(altered(part, file, changes), captioner="")
    with pytest.raises(SlimError, match="codes latents of 128 channels"):
        create(str(home / "models" / "sd1"), compressor="slim-tiny")
    source = altered("", "model_index.json", {})
    weights = Path(source) / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(SlimError, match="pickled"):
        create(source, captioner="")


@pytest.mark.slow
def test_captioners_of_transformers_name_captions_at_the_encoder(home: Path, tmp_path: Path) -> None:
    source = str(home / "models" / "sd1")
    words = save_blip(tmp_path / "blip")
    save_clip(tmp_path / "clip")
    (tmp_path / "tags.txt").write_text("cat\ncoffee cup\nrocket\n")
    plain = create(source, captioner="")
    said = create(source, captioner=str(tmp_path / "blip"))
    asked = create(source, captioner=str(tmp_path / "blip"), prompt="a photo of")
    tagged = create(source, captioner=str(tmp_path / "clip"), tags=str(tmp_path / "tags.txt"))
    # who names captions is the encoder's business
    assert plain.bundle_id == said.bundle_id == asked.bundle_id
    picture = photo("coffee", 64, 64)
    captions = []
    for bundle in (said, asked):
        data = Codec(bundle).encode(picture, 30)
        caption = slimcodec.inspect(data).caption
        assert caption is not None and set(caption.split()) <= set(words) and len(caption.encode()) <= 200
        captions.append(caption)
        assert Codec(plain).decode(data, steps=1).size == (64, 64)
    assert captions[1].startswith("a photo of")
    save(tagged, tmp_path / "tagged", packed=True)
    shutil.rmtree(tmp_path / "clip")
    codec = slimcodec.load(tmp_path / "tagged", dtype="float32")
    assert codec.bundle.vocabulary == ("cat", "coffee cup", "rocket")
    data = codec.encode(picture, 30)
    caption = codec.decoder.decompress(data).caption
    assert caption in ("a photo of a cat", "a photo of a coffee cup", "a photo of a rocket")
    # a missing captioner is missed by nobody who decodes
    shutil.rmtree(tmp_path / "blip")
    with pytest.raises(ModelMismatchError, match="part captioner"):
        Codec(fresh(said)).encode(picture, 30)
    assert Codec(fresh(said)).encode(picture, 30, "a cup")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blip2", "florence2"])
def test_larger_captioners_answer_by_their_own_processors(
    home: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "florence2":
        transformers = pytest.importorskip("transformers")
        if not hasattr(transformers, "Florence2Processor"):
            pytest.skip("transformers has Florence-2 from 4.56 on")
        save_florence2(tmp_path / "captioner")
        prompts = ["<CAPTION>", "what does the image describe?"]
    else:
        save_blip2(tmp_path / "captioner")
        prompts = ["", "a photo of"]
    pictures = [np.asarray(photo(name, 64, 64)) for name in ("coffee", "chelsea", "rocket")]
    for number, prompt in enumerate(prompts):
        command = [
            "bundle",
            "create",
            "--ldm",
            home / "models" / "sd1",
            "--captioner",
            tmp_path / "captioner",
        ]
        assert slim(*command, "--prompt", prompt, "-o", tmp_path / f"{number}", "--pack") == 0
        codec = slimcodec.load(tmp_path / f"{number}", dtype="float32")
        model = codec.bundle.caption_model
        assert model is not None
        together = model.captions(pictures)
        alone = [caption for picture in pictures for caption in model.captions([picture])]
        assert together == alone and len(set(together)) > 1
        assert all(said and set(said.split()) <= set(WORDS) for said in together)
        assert slimcodec.inspect(codec.encode(pictures[0], 30)).caption == together[0]
    assert "Traceback" not in capsys.readouterr().err


def fresh(bundle: Bundle) -> Bundle:
    """The same bundle with nothing loaded yet."""
    return Bundle(bundle.config, bundle.stored, bundle.vocabulary)


def test_the_doctor_says_what_is_missing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slim("doctor") == 0
    said = capsys.readouterr().out
    for words in ("torch", "diffusers", "peft", "cpu", "slim-tiny", "cache"):
        assert words in said
    shutil.copytree(home / "models" / "sd1", tmp_path / "model")
    save(create(str(tmp_path / "model"), captioner=""), tmp_path / "made")
    assert slim("doctor", "--model", tmp_path / "made", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["bundle"]["parts"]) == set(REQUIRED)
    shutil.rmtree(tmp_path / "model" / "vae")
    assert slim("doctor", "--model", tmp_path / "made") == 1
    assert "missing: the bundle needs the pretrained part vae" in capsys.readouterr().out
    assert slim("doctor", "--model", tmp_path / "nothing", "--json") == 1
    assert json.loads(capsys.readouterr().out)["bundle"]["problems"]


def test_guidance_is_said_to_be_of_other_bundles(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = slimcodec.load(home / "bundles" / "sd1", dtype="float32")
    data = codec.encode(photo("coffee", 32, 32), 20, "a cat")
    with pytest.raises(SlimError, match="classifier-free guidance, text_scale, 1 in sd1"):
        codec.decode(data, guidance=0.3)
    assert codec.decode(data, steps=1, guidance=0).size == (32, 32)
    for name in ("a", "b"):
        (tmp_path / f"{name}.slim").write_bytes(data)
    assert slim("decode", tmp_path, "--model", home / "bundles" / "sd1", "--guidance", 0.3) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "slim: " in line]
    assert len(said) == 1 and "--text-scale" in said[0]
    # what does act there can be changed in the bundle, and files stay its files
    shutil.copytree(home / "bundles" / "sd1", tmp_path / "sd1")
    settings = json.loads((tmp_path / "sd1" / "config.json").read_text())
    (tmp_path / "sd1" / "config.json").write_text(json.dumps(settings | {"text_scale": 6.0}))
    stronger = slimcodec.load(tmp_path / "sd1", dtype="float32")
    assert stronger.bundle.config.text_scale == 6 and stronger.decode(data, steps=1).size == (32, 32)


class Moves:
    """Notes which modules go where; "cpu:0" is this machine's processor under another name than "cpu"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        to = torch.nn.Module.to

        def noted(module: Any, *arguments: Any, **options: Any) -> Any:
            if arguments and str(arguments[0]) in ("cpu", "cpu:0"):
                self.seen.append((type(module).__name__, str(arguments[0])))
            return to(module, *arguments, **options)

        monkeypatch.setattr(torch.nn.Module, "to", noted)


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_offloaded_parts_come_one_at_a_time(
    home: Path, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_blip(tmp_path / "blip")
    captioned = create(str(home / "models" / family), captioner=str(tmp_path / "blip"), text_scale=2.0)
    save(captioned, tmp_path / "made")
    plain = slimcodec.load(tmp_path / "made", dtype="float32")
    data = plain.encode(photo("coffee", 64, 64), 30)
    picture = np.asarray(plain.decode(data, steps=2), np.int16)
    moves = Moves(monkeypatch)
    codec = slimcodec.load(tmp_path / "made", device="cpu:0", dtype="float32", offload=True)
    assert codec.encode(photo("coffee", 64, 64), 30) == data
    assert codec.bundle.latent_model.autoencoder.vae.use_slicing  # type: ignore[union-attr]
    assert np.abs(np.asarray(codec.decode(data, steps=2), np.int16) - picture).max() <= 2
    there: set[str] = set()
    order: list[str] = []
    for name, place in moves.seen:
        if name not in (
            "AutoencoderKL",
            "UNet2DConditionModel",
            *TEXT_MODELS,
            "BlipForConditionalGeneration",
        ):
            continue
        if place == "cpu:0":
            there.add(name)
            order.append(name)
        else:
            there.discard(name)
        assert len(there) <= 1
    texts = TEXT_MODELS if family == "sdxl" else TEXT_MODELS[:1]
    wanted = ["AutoencoderKL", "BlipForConditionalGeneration", "BlipForConditionalGeneration"]
    # the captioner is loaded where it runs; without a caption the text models are asked again
    wanted += [*texts, *texts, "UNet2DConditionModel", "AutoencoderKL"]
    assert [name for name, _ in itertools.groupby(order)] == [name for name, _ in itertools.groupby(wanted)]


TEXT_MODELS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def test_offload_is_refused_where_nothing_can_be_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    with pytest.raises(SlimError, match="slim-tiny has none"):
        slimcodec.load(offload=True)
    photo("coffee", 32, 32).save(tmp_path / "photo.png")
    assert slim("encode", tmp_path / "photo.png", "--offload") == 1
    assert "slim-tiny has none" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(SlimError, match="pip install accelerate"):
        slimcodec.load(home / "bundles" / "sd1", offload=True)


def parts_of(codec: Codec) -> tuple[Any, Any]:
    return codec.bundle.latent_model.autoencoder, codec.bundle.latent_model.enhancer


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_codes_nearly_the_same(home: Path, dtype: str) -> None:
    codecs = [slimcodec.load(home / "bundles" / "sd2", dtype=name) for name in (dtype, "float32")]
    half, single = codecs
    picture = photo("coffee", 64, 64)
    # the autoencoder's configuration asks for more than float16 (force_upcast)
    kinds = {str(value.dtype) for part in parts_of(half) for value in part.parameters()}
    assert kinds == ({"torch.bfloat16"} if dtype == "bfloat16" else {"torch.float16", "torch.float32"})
    for part in parts_of(half):
        weights = [value for value in part.parameters() if value.dim() == 4]
        assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)
    for data in (half.encode(picture, 30, "a cat"), single.encode(picture, 30, "a cat")):
        values = [codec.read(data)[1].values for codec in codecs]
        assert np.array_equal(values[0], values[1])
        for steps in (0, 2):
            first, second = (np.asarray(codec.decode(data, steps=steps), np.float32) for codec in codecs)
            assert np.abs(first - second).mean() < 3


def test_a_bundle_goes_to_the_hub_with_its_card(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    seen: dict[str, Any] = {}

    class Hub:
        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> str:
            seen["private"] = private
            return f"https://hub/{repository}"

        def upload_folder(self, repo_id: str, folder_path: str) -> None:
            seen["files"] = {path.name for path in Path(folder_path).iterdir()}
            seen["card"] = (Path(folder_path) / "README.md").read_text()
            seen["id"] = Bundle.from_pretrained(folder_path).bundle_id

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    bundle = create("someone/sd", captioner="")
    address = bundle.push_to_hub("me/mine", private=True, curve=[{"bpp": 0.1, "top-1": 50.0}])
    assert address == "https://hub/me/mine" and seen["private"] and seen["id"] == bundle.bundle_id
    assert seen["files"] == {
        "README.md",
        "config.json",
        "vocabulary.txt",
        *(f"{p}.safetensors" for p in bundle.stored),
    }
    for words in (
        "base_model: [someone/sd]",
        "| unet | someone/sd | 1111",
        "| mit |",
        "| 0.1 | 50.0 |",
        bundle.sha256,
    ):
        assert words in seen["card"]

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(Hub, "upload_folder", refuse)
    with pytest.raises(SlimError, match="the hub did not take"):
        bundle.push_to_hub("me/mine")
