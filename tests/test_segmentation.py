"""RoI masks from segmentation models of transformers: real classes with random weights, loaded from folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import photo

from slimcodec import SlimError
from slimcodec.data.masks import Segmenter, class_numbers, query_probabilities
from slimcodec.models.pretrained.hub import Preprocessing


def test_wanted_classes_by_name_alias_or_background() -> None:
    names = ("background", "person, individual", "dog")
    assert class_numbers(names, ()) == [1, 2]
    assert class_numbers(names, ["Dog", "individual", "dog"]) == [1, 2]
    with pytest.raises(SlimError, match="'cat'.*background, person, individual, dog"):
        class_numbers(names, ["dog", "cat"])
    with pytest.raises(SlimError, match="name the classes.*wall, floor"):
        class_numbers(("wall", "floor"), ())


def test_input_sizes() -> None:
    assert Preprocessing(None).input_size((640, 480)) == (640, 480)
    assert Preprocessing(512).input_size((640, 480)) == (512, 512)
    assert Preprocessing(512, keep_shape=True).input_size((640, 480)) == (672, 512)
    assert Preprocessing(64, keep_shape=True).input_size((3, 400))[0] == 64


def test_query_probabilities_follow_the_surest_query() -> None:
    classes = torch.tensor([[[8.0, 0, 0], [0, 8, 0], [0, 0, 9]]])  # the third query sees nothing
    masks = torch.full((1, 3, 2, 2), -8.0)
    masks[0, 0, 0], masks[0, 1, 1], masks[0, 2] = 8, 8, 8
    found = query_probabilities(classes, masks)
    assert found.shape == (1, 2, 2, 2) and torch.allclose(found.sum(1), torch.ones(1, 2, 2))
    assert float(found[0, 0, 0].min()) > 0.99 and float(found[0, 1, 1].min()) > 0.99


NAMES = {0: "background", 1: "cat", 2: "coffee cup"}


def image_processor(folder: Path, kind: str, **settings: Any) -> None:
    """Writes the settings that belong to a saved model's pictures."""
    content = {"image_processor_type": f"{kind}ImageProcessor"} | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def segformer(folder: Path) -> Any:
    """A tiny SegFormer with random weights, saved as transformers saves it."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        id2label=NAMES,
        label2id={name: number for number, name in NAMES.items()},
    )
    model = SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(20)
    model.save_pretrained(folder)
    image_processor(folder, "Segformer", size={"height": 128, "width": 128})
    return model


def test_a_semantic_model_gives_the_probability_of_the_wanted_classes(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    model = segformer(tmp_path)
    picture = photo("chelsea", 120, 90)
    pixels = np.asarray(picture)
    masks = {name: Segmenter(str(tmp_path), [name])(pixels) for name in NAMES.values()}
    for mask in masks.values():
        assert mask.shape == (90, 120) and mask.dtype == np.float32
        assert 0 <= mask.min() < mask.max() <= 1
    assert np.allclose(sum(masks.values()), 1, atol=1e-5)
    both = Segmenter(str(tmp_path))(pixels)
    assert np.allclose(both, masks["cat"] + masks["coffee cup"], atol=1e-5)

    # transformers' own processor and post-processing agree on the class of nearly every pixel
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        outputs = model(**processor(images=picture, return_tensors="pt"))
    (classes,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(90, 120)])
    ours = np.stack([masks[name] for name in NAMES.values()]).argmax(0)
    assert (ours == classes.numpy()).mean() > 0.98
    with pytest.raises(SlimError, match="unknown class 'dog'.*coffee cup"):
        Segmenter(str(tmp_path), ["dog"])


def test_a_query_model_gives_the_probability_of_the_wanted_classes(tmp_path: Path) -> None:
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        ResNetConfig,
    )

    torch.manual_seed(0)
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    backbone.out_features = ["stage1", "stage2", "stage3", "stage4"]
    config = MaskFormerConfig(
        fpn_feature_size=32,
        mask_feature_size=32,
        backbone_config=backbone,
        decoder_config=DetrConfig(
            d_model=16,
            decoder_layers=1,
            encoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=16,
            num_queries=5,
        ),
        id2label=NAMES,
        label2id={name: number for number, name in NAMES.items()},
    )
    MaskFormerForInstanceSegmentation(config).save_pretrained(tmp_path)
    image_processor(tmp_path, "MaskFormer", size={"shortest_edge": 64, "longest_edge": 128})
    mask = Segmenter(str(tmp_path), ["cat", "coffee cup"])(np.asarray(photo("coffee", 100, 70)))
    assert mask.shape == (70, 100) and 0 <= mask.min() < mask.max() <= 1


def test_a_folder_without_a_segmentation_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SlimError, match="config.json"):
        Segmenter(str(tmp_path))
    with pytest.raises(SlimError, match="no such model.*hub id"):
        Segmenter(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    with pytest.raises(SlimError, match="cannot load it"):
        Segmenter(str(tmp_path))
