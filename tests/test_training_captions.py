"""Captions of training photos: from labels, from a bundle's captioner, from an image-to-text model of transformers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pretrained import save_blip
from safetensors.torch import save_file
from small import small_bundle
from support import photo

from slimcodec import SlimError
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.pretrained.hub import MAX_BYTES, clean_caption
from slimcodec.training.pseudo_labels import RoiCaptioner, label_captions, roi_box
from slimcodec.training.recipe import load_recipe
from slimcodec.training.run import Run
from slimcodec.training.stages import train_stage


def test_captions_of_labels() -> None:
    assert label_captions("espresso") == ["a photo of an espresso"]
    templates = ["a blurry photo of {a_label}", "{label}"]
    assert label_captions("tabby cat", templates) == ["a blurry photo of a tabby cat", "tabby cat"]
    for wrong in ("{name}", "{}", "{label", "{label.x}"):
        with pytest.raises(SlimError, match="label"):
            label_captions("cat", [wrong])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400))
def test_captions_are_one_line_of_few_bytes(text: str) -> None:
    caption = clean_caption(text)
    if caption is None:
        assert not any(character.isprintable() and not character.isspace() for character in text)
    else:
        assert 0 < len(caption.encode()) <= MAX_BYTES and caption == caption.strip()
        assert caption.isprintable()


def test_long_captions_end_with_a_word() -> None:
    assert clean_caption(" a cat\n on\ta mat\x00. ") == "a cat on a mat ."
    assert clean_caption("word " * 60) == " ".join(["word"] * 40)
    assert clean_caption("x" * 300) == "x" * 200
    assert clean_caption("é" * 150) == "é" * 100


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    cells=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 1000),
    margin=st.floats(0, 1),
    smallest=st.integers(1, 100),
)
def test_the_box_holds_the_region_and_stays_within_the_photo(
    size: tuple[int, int], cells: tuple[int, int], seed: int, margin: float, smallest: int
) -> None:
    rng = np.random.default_rng(seed)
    mask: NDArray[np.float32] = (rng.random(cells[::-1]) < 0.05).astype(np.float32)
    x0, y0, x1, y1 = roi_box(mask, size, margin, smallest)
    assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]
    assert x1 - x0 >= min(smallest, size[0]) and y1 - y0 >= min(smallest, size[1])
    if not mask.any():
        assert (x0, y0, x1, y1) == (0, 0, *size)
    for row, column in zip(*np.nonzero(mask), strict=True):
        assert x0 <= column * size[0] / cells[0] + 1e-6 and (column + 1) * size[0] / cells[0] <= x1 + 1e-6
        assert y0 <= row * size[1] / cells[1] + 1e-6 and (row + 1) * size[1] / cells[1] <= y1 + 1e-6


def test_the_box_has_its_margin_and_its_smallest_side() -> None:
    mask: NDArray[np.float32] = np.zeros((100, 200), np.float32)
    mask[40:60, 100:150] = 0.7
    assert roi_box(mask, (200, 100), 0.1, 10) == (95, 38, 155, 62)
    assert roi_box(mask, (400, 200), 0.0, 1) == (200, 80, 300, 120)
    assert roi_box(mask, (200, 100), 0.0, 40) == (100, 30, 150, 70)
    assert (
        roi_box(np.minimum(mask, np.float32(0.4)), (200, 100))
        == roi_box(None, (200, 100))
        == (0, 0, 200, 100)
    )
    mask[:] = 0
    mask[0, 199] = 1
    assert roi_box(mask, (200, 100), 0.1, 32) == (168, 0, 200, 32)


def test_the_embedded_captioner_names_what_is_in_the_region() -> None:
    pixels = np.full((240, 320, 3), 90, np.uint8)
    pixels[40:200, 100:300] = np.asarray(photo("chelsea", 200, 160))
    mask = np.zeros((240, 320), np.float32)
    mask[40:200, 100:300] = 1
    caption = RoiCaptioner("slim-tiny")(pixels, mask)
    assert caption is not None and caption.startswith("a photo of a") and "cat" in caption


def test_a_bundle_folder_captions_the_crop(tmp_path: Path) -> None:
    bundle = small_bundle()
    bundle.save_pretrained(tmp_path / "bundle")
    captioner = RoiCaptioner(str(tmp_path / "bundle"))
    pixels = np.asarray(photo("astronaut"))
    mask = np.zeros((8, 8), np.float32)
    mask[2:6, 4:8] = 1
    x0, y0, x1, y1 = roi_box(mask, (256, 256))
    picture = torch.from_numpy(pixels[y0:y1, x0:x1].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    tagger = bundle.captioners[0]
    (logits,) = tagger(picture).numpy()
    assert captioner(pixels, mask) == tagger.config.caption(logits, bundle.vocabulary)
    small_bundle(captioner=False).save_pretrained(tmp_path / "mute")
    with pytest.raises(SlimError, match="no captioner"):
        RoiCaptioner(str(tmp_path / "mute"))


def test_an_image_to_text_model_captions_the_crop(tmp_path: Path) -> None:
    words = save_blip(tmp_path)
    captioner = RoiCaptioner(str(tmp_path))
    pixels = np.asarray(photo("coffee"))
    mask = np.zeros((16, 16), np.float32)
    mask[8:, 8:] = 1
    captions = [captioner(pixels), captioner(pixels, mask), captioner(pixels, mask)]
    for caption in captions:
        assert caption is not None and set(caption.split()) <= set(words)
        assert len(caption.split()) <= 24
    assert captions[1] == captions[2]
    x0, y0, x1, y1 = roi_box(mask, (256, 256))
    assert captioner(pixels[y0:y1, x0:x1]) == captions[1]


def test_what_is_no_captioner_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SlimError, match="no such model"):
        RoiCaptioner(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(SlimError, match="AutoModelForImageTextToText"):
        RoiCaptioner(str(tmp_path))


def test_captions_reach_the_stages_that_read_them_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    rows = []
    for name in ("chelsea", "coffee"):
        buffer = io.BytesIO()
        photo(name, 96, 80).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}})
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "photos.parquet")
    small_bundle().save_pretrained(tmp_path / "captioner")
    # neither a teacher nor a segmentation network: the captioner is the only one that is asked
    settings = [f"data={tmp_path}/*.parquet", f"out={tmp_path / 'run'}"]
    recipe = load_recipe("smoke", [*settings, f"data.captioner={tmp_path / 'captioner'}"])
    run, captions = Run(recipe), {}

    def watched(stage: Any, *_: object) -> None:
        captions[stage.name] = set(stage.batches(0).captions)

    monkeypatch.setattr(run, "train", watched)
    (tmp_path / "run").mkdir(exist_ok=True)
    autoencoder = PatchAutoencoder(recipe.autoencoder.network)
    save_file(autoencoder.state_dict(), tmp_path / "run" / "autoencoder.safetensors")
    train_stage(run, "compressor")
    assert captions["compressor"] == {None} and not (tmp_path / "run" / "targets.pt").exists()
    train_stage(run, "diffusion")
    kept = torch.load(tmp_path / "run" / "targets.pt", weights_only=True)["captions"]
    assert all(caption.startswith("a photo of ") for caption in kept)
    assert captions["diffusion"] == set(kept)
    # a view has the pseudo-labels: the photos themselves, and stages that do not read them, stay without
    train_stage(run, "compressor")
    assert captions["compressor"] == {None}
