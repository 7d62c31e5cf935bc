"""Teachers from transformers: real classes with random weights, loaded from folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import NAMES, photo
from torch import Tensor, nn

import slimcodec
from slimcodec import SlimError
from slimcodec.data.classifiers import class_activation, load_classifier
from slimcodec.data.networks import EfficientNetLite, TransformersNetwork, last_of_each_stride
from slimcodec.models.captioner import InvertedResidual, Tagger
from slimcodec.models.config import CaptionerConfig
from slimcodec.models.pretrained.hub import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    read_preprocessing,
)
from slimcodec.training.batches import Draws
from slimcodec.training.losses import Features, Fidelity
from slimcodec.training.recipe import load_recipe
from slimcodec.training.run import Run
from slimcodec.training.stages.captioner import CaptionerStage, start_from_classifier

LABELS = {0: "tabby", 1: "goldfish", 2: "espresso", 3: "rocket", 4: "canoe"}
PREPROCESSING = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def classifier(kind: str, folder: Path, **settings: Any) -> Any:
    """A tiny image classifier with random weights, saved with its preprocessing; 96 pixels a side."""
    import transformers

    common: dict[str, Any] = {
        "id2label": LABELS,
        "label2id": {name: number for number, name in LABELS.items()},
    }
    tokens = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 96,
    }
    own: dict[str, dict[str, Any]] = {
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1]},
        "ConvNext": {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]},
        "MobileNetV2": {"depth_multiplier": 0.25},
        "ViT": tokens | {"patch_size": 16},
        "Dinov2": tokens | {"patch_size": 14, "image_size": 98},
        "Swin": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "image_size": 96},
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**own[kind], **common)
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    with torch.no_grad():
        # the small initial weights would make every picture look alike
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    content = {"size": {"height": 96, "width": 96}} | PREPROCESSING | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return model


def pictures(side: int) -> Tensor:
    """Four photos, [4, 3, side, side] in [0, 1]."""
    arrays = [np.array(photo(name, side, side)).transpose(2, 0, 1) for name in NAMES]
    return torch.from_numpy(np.stack(arrays)).float() / 255


def normalised(x: Tensor) -> Tensor:
    """Pictures as the classifiers above were saved to see them."""
    mean, std = (torch.tensor(PREPROCESSING[key])[:, None, None] for key in ("image_mean", "image_std"))
    return (x - mean) / std


@pytest.mark.parametrize("kind", ["ResNet", "ConvNext", "MobileNetV2"])
def test_a_convolutional_teacher_gives_logits_and_a_map_a_stride(kind: str, tmp_path: Path) -> None:
    model = classifier(kind, tmp_path)
    teacher = load_classifier(str(tmp_path), as_teacher=True)
    assert (teacher.side, teacher.classes) == (96, len(LABELS))
    assert teacher.name == tmp_path.name and len(teacher.sha256) == 64
    x = pictures(96)
    logits, *maps = teacher(x)
    assert [tuple(features.shape[2:]) for features in maps] == [(24, 24), (12, 12), (6, 6), (3, 3)]
    with torch.no_grad():
        expected = model(normalised(x), output_hidden_states=True)
    assert torch.allclose(logits, expected.logits, atol=1e-4)
    assert torch.allclose(maps[-1], expected.hidden_states[-1], atol=1e-4)
    assert isinstance(teacher.network, TransformersNetwork)
    assert not any(parameter.requires_grad for parameter in teacher.network.model.parameters())
    # another size than its own, and an autocast around it that must not reach inside
    with torch.autocast("cpu", torch.bfloat16):
        other = teacher(pictures(128).bfloat16())
    assert all(output.dtype == torch.float32 for output in other) and other[1].shape[2:] == (32, 32)


@pytest.mark.parametrize(("kind", "patch"), [("ViT", 16), ("Dinov2", 14)])
def test_a_transformer_teacher_gives_its_tokens_as_a_grid(kind: str, patch: int, tmp_path: Path) -> None:
    model = classifier(kind, tmp_path)
    teacher = load_classifier(str(tmp_path), as_teacher=True)
    for side in (96, 160):
        x = pictures(side)
        logits, *maps = teacher(x)
        (grid,) = maps
        assert grid.shape == (4, 24, side // patch, side // patch)
        options = {"interpolate_pos_encoding": True} if kind == "ViT" else {}
        with torch.no_grad():
            expected = model(normalised(x), output_hidden_states=True, **options)
        assert torch.allclose(logits, expected.logits, atol=1e-4)
        tokens = expected.hidden_states[-2][:, 1:]
        assert torch.allclose(grid.permute(0, 2, 3, 1).flatten(1, 2), tokens, atol=1e-4)


@pytest.mark.parametrize("kind", ["ResNet", "ViT"])
def test_activation_maps_and_feature_loss_work_with_a_transformers_teacher(kind: str, tmp_path: Path) -> None:
    classifier(kind, tmp_path)
    teacher = load_classifier(str(tmp_path), as_teacher=True)
    x = pictures(96)
    logits, heat = class_activation(teacher, x.clone())
    cells = 3 if kind == "ResNet" else 6
    assert logits.shape == (4, 5) and heat.shape == (4, cells, cells)
    assert float(heat.min()) >= 0 and float(heat.max()) == 1
    assert float(heat.flatten(1).std(1).max()) > 0.05

    loss, draws = Fidelity(1.0, Features(logits=0.1), [teacher]).distance, Draws(0, 0, range(4), 4)
    wanted = x * 2 - 1
    decoded = (wanted + 0.1 * torch.randn_like(wanted)).requires_grad_()
    assert float(loss(wanted, wanted, draws).abs().max()) < 1e-6
    values = loss(decoded, wanted, draws)
    (gradient,) = torch.autograd.grad(values.sum(), decoded)
    assert values.shape == (4,) and float(values.detach().min()) > 0
    assert float(gradient.abs().amax((1, 2, 3)).min()) > 0 and bool(gradient.isfinite().all())


def test_the_gradient_at_a_transformers_map_is_that_at_its_tokens(tmp_path: Path) -> None:
    model = classifier("ViT", tmp_path)
    teacher = load_classifier(str(tmp_path), as_teacher=True)
    logits, grid = teacher(pictures(96).requires_grad_())
    (ours,) = torch.autograd.grad(logits[:, 2].sum(), grid)
    outputs = model(normalised(pictures(96)), output_hidden_states=True)
    (tokens,) = torch.autograd.grad(outputs.logits[:, 2].sum(), outputs.hidden_states[-2])
    assert float(ours.abs().max()) > 0
    assert torch.allclose(ours.permute(0, 2, 3, 1).flatten(1, 2), tokens[:, 1:], atol=1e-5)


def test_a_torchscript_teacher_is_loaded_by_its_file(tmp_path: Path) -> None:
    class Script(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.convolution(x)
            return features.mean((2, 3)), features

    script = Script().eval()
    file = tmp_path / "judge.pt"
    torch.jit.save(torch.jit.script(script), str(file))
    teacher = load_classifier(file, as_teacher=True)
    assert (teacher.side, teacher.name) == (224, "judge.pt") and len(teacher.sha256) == 64
    x = pictures(64)
    assert all(torch.equal(a, b) for a, b in zip(teacher(x), script(x), strict=True))
    assert class_activation(teacher, x.clone())[1].shape == (4, 31, 31)
    # its weights are parameters, and no MobileNet's
    assert torch.equal(teacher.features(x, 1)[1][0], script(x)[1])
    file.write_bytes(b"no script")
    with pytest.raises(SlimError, match="judge.pt: not a TorchScript file.*image-classification folder"):
        load_classifier(file, as_teacher=True)


def test_what_is_no_teacher_is_an_error_that_says_what_is_accepted(tmp_path: Path) -> None:
    for missing in ("nothing", "folder/nothing.pt", str(tmp_path / "nothing")):
        with pytest.raises(SlimError, match="TorchScript file, a transformers image-classification folder"):
            load_classifier(missing, as_teacher=True)
    with pytest.raises(SlimError, match="config.json.*TorchScript file, a transformers"):
        load_classifier(tmp_path, as_teacher=True)
    classifier("Swin", tmp_path / "swin")
    with pytest.raises(SlimError, match="plain vision transformer"):
        load_classifier(tmp_path / "swin", as_teacher=True)


def test_a_model_without_a_classifier_is_not_filled_with_random_weights(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(SlimError, match="no weights for classifier"):
        load_classifier(tmp_path, as_teacher=True)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, Preprocessing(192, IMAGENET_MEAN, IMAGENET_STD)),
        ({"size": 160, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}, ((0.5,) * 3, (0.25,) * 3)),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            224,
        ),
        ({"size": {"shortest_edge": 256}, "do_center_crop": False, "crop_size": 224}, 256),
        ({"do_normalize": False, "do_flip_channel_order": True}, ((0.0,) * 3, (1.0,) * 3)),
    ],
)
def test_preprocessing_is_read_as_image_processors_write_it(
    settings: dict[str, Any], wanted: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"image_size": 192}')
    if settings:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = read_preprocessing(tmp_path)
    if isinstance(wanted, int):
        assert found.side == wanted
    elif isinstance(wanted, tuple):
        assert (found.mean, found.std) == wanted
    else:
        assert found == wanted
    # newer releases of transformers write it into the processor's file
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert read_preprocessing(tmp_path) == found
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": "large"}}))
    with pytest.raises(SlimError, match="processor_config.json: not the settings"):
        read_preprocessing(tmp_path)


def test_only_the_last_map_of_a_stride_is_kept() -> None:
    sides = [112, 56, 56, 28, 28, 14, 7]
    maps = tuple(torch.full((1, 2, side, side), float(number)) for number, side in enumerate(sides))
    assert [float(features[0, 0, 0, 0]) for features in last_of_each_stride(maps, 224)] == [2, 4, 5, 6]


class Mapped(nn.Module):
    """A MobileNet-v2 as teachers come: pictures in [0, 1], logits, and what strided blocks expand to."""

    def __init__(self, tagger: Tagger, clip: float) -> None:
        super().__init__()
        self.body, self.clip = tagger.body, clip
        # a background class comes first
        self.classes = nn.Conv2d(tagger.head.in_features, 1 + tagger.head.out_features, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        maps = []
        x = pictures * 2 - 1
        for layer in self.body:
            inner: Any = getattr(layer, "layers", None)
            if isinstance(layer, InvertedResidual) and inner[-3].stride[0] == 2:
                maps.append(inner[1](inner[0](x)))
                x = inner[4](inner[3](inner[2](maps[-1])))
            else:
                x = layer(x)
        answer = self.classes(x.mean((2, 3), keepdim=True))[:, 1:, 0, 0]
        return (answer, *[seen.clamp(max=self.clip) for seen in maps[1:]], x)


def mobilenet(file: Path, clip: float = 100.0) -> nn.Module:
    """A traced MobileNet-v2 with weights of a sensible size, in a file."""
    torch.manual_seed(3)
    tagger = Tagger(CaptionerConfig(tags=5, side=64)).eval().requires_grad_(False)
    for module in tagger.body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.ReLU6):
            module.inplace = False
    wrapped = Mapped(tagger, clip).eval()
    # as frozen graphs come: parameters as constants
    for layer in [m for m in wrapped.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]:
        for name, value in list(layer.named_parameters()):
            delattr(layer, name)
            layer.register_buffer(name, value.detach())
    torch.jit.save(torch.jit.trace(wrapped, torch.rand(1, 3, 64, 64), check_trace=False), str(file))
    return wrapped


@pytest.mark.slow
@pytest.mark.parametrize("side", [64, 96])
def test_maps_of_a_mobilenet_come_from_a_network_that_is_quick_to_train_through(
    side: int, tmp_path: Path
) -> None:
    mobilenet(tmp_path / "a.pt")
    teacher = load_classifier(tmp_path / "a.pt", as_teacher=True)
    assert teacher._quick is not None
    quick, slow = pictures(side).requires_grad_(), pictures(side).requires_grad_()
    ours, theirs = teacher.features(quick, 3)[1], teacher(slow)[1:4]
    assert [tuple(a.shape) for a in ours] == [tuple(b.shape) for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-3 * float(b.abs().max()))
    sum(seen.square().mean() for seen in ours).backward()  # type: ignore[union-attr]
    sum(seen.square().mean() for seen in theirs).backward()  # type: ignore[union-attr]
    assert quick.grad is not None and slow.grad is not None
    assert float((quick.grad - slow.grad).norm() / slow.grad.norm()) < 1e-3
    assert len(teacher.features(pictures(side), 1)[1]) == 1
    # the last map lies beyond the quick network
    deep = teacher.features(pictures(side), 4)[1]
    assert len(deep) == 4 and torch.equal(deep[3], teacher(pictures(side))[4])
    assert teacher.features(pictures(side), 3)[0] is None
    answer = teacher.features(pictures(side), 2, with_logits=True)[0]
    assert answer is not None and torch.allclose(answer, teacher(pictures(side))[0], rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        rough_answer, rough = load_classifier(tmp_path / "a.pt", as_teacher=True).features(
            pictures(side), 3, with_logits=True
        )
    assert rough_answer is not None
    for a, b in zip([*rough, rough_answer], [*ours, answer], strict=True):
        assert a.dtype == torch.float32 and float((a - b).norm() / b.norm()) < 0.2
    gradients = []
    for quickly in (True, False):
        x = pictures(side).requires_grad_()
        logits = teacher.features(x, 3, with_logits=True)[0] if quickly else teacher(x)[0]
        assert logits is not None
        logits.log_softmax(1)[:, 2].sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-3


@pytest.mark.slow
def test_a_script_that_does_something_else_is_run_itself(tmp_path: Path) -> None:
    wrapped = mobilenet(tmp_path / "clipped.pt", clip=0.1)
    teacher = load_classifier(tmp_path / "clipped.pt", as_teacher=True)
    assert teacher._quick is None
    for a, b in zip(teacher.features(pictures(64), 2)[1], wrapped(pictures(64))[1:3], strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_the_feature_loss_is_the_same_by_both_ways(tmp_path: Path) -> None:
    mobilenet(tmp_path / "a.pt")
    teacher = load_classifier(tmp_path / "a.pt", as_teacher=True)
    clean = pictures(64) * 2 - 1
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    def loss(way: Any) -> Tensor:
        return Fidelity(1.0, teachers=[way]).distance(noisy, clean, Draws(0, 0, range(4), 4))

    class Script:
        """The teacher's own script in the place of the quick network."""

        def features(self, pictures: Tensor, count: int, with_logits: bool = False) -> Any:
            return None, teacher(pictures)[1 : 1 + count]

    assert torch.allclose(loss(teacher), loss(Script()), rtol=1e-3)
    exact, rough = noisy.clone().requires_grad_(), noisy.clone().requires_grad_()

    def gradient(x: Tensor) -> Tensor:
        value = Fidelity(1.0, teachers=[teacher]).distance(x, clean, Draws(0, 0, range(4), 4))
        torch.autograd.backward(value.sum())
        assert x.grad is not None
        return x.grad.flatten()

    wanted = gradient(exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(loss(teacher), loss(Script()), rtol=0.1)
        assert float(torch.cosine_similarity(gradient(rough), wanted, 0)) > 0.9


def test_efficientnet_lite_is_teacher_judge_and_where_the_captioner_starts() -> None:
    picture = photo("chelsea", 240, 240)
    judge, teacher = (
        load_classifier("efficientnet-lite1"),
        load_classifier("efficientnet-lite0", as_teacher=True),
    )
    pixels = np.asarray(picture)
    names = slimcodec.load().bundle.vocabulary
    assert "cat" in names[int(judge.scores(pixels).argmax())]
    pictures = torch.from_numpy(np.array(picture.resize((224, 224)))).permute(2, 0, 1)[None] / 255
    logits, *maps = teacher(pictures.requires_grad_())
    assert [features.shape[1] for features in maps] == [24, 40, 112, 320]
    (gradient,) = torch.autograd.grad(maps[0].square().mean(), pictures)
    assert float(gradient.abs().max()) > 0
    tagger = Tagger(CaptionerConfig(1116, 224, network="efficientnet-lite0")).eval()
    start_from_classifier(tagger, teacher)
    with torch.no_grad():
        tags = tagger(pictures * 2 - 1)
    assert torch.allclose(tags[:, :1000], logits, atol=1e-3)
    assert int(tags.argmax()) < 1000
    with pytest.raises(SlimError, match="mobilenet-v2"):
        start_from_classifier(Tagger(CaptionerConfig(1116, 224)), teacher)


def test_the_captioner_stage_keeps_the_tags_of_its_package_and_trains_the_roi_head(tmp_path: Path) -> None:
    settings = [
        "data=generated:4",
        f"out={tmp_path}",
        "teachers.models=[]",
        "captioner.network.network=efficientnet-lite0",
        "captioner.network.side=64",
        "captioner.network.roi=true",
        "captioner.start_from_weights=true",
        "captioner.train_body=false",
    ]
    frozen = [*settings, "captioner.train_head=false"]
    stage = CaptionerStage(Run(load_recipe("smoke", frozen)))
    teacher = load_classifier("efficientnet-lite0", as_teacher=True)
    assert isinstance(teacher.network, EfficientNetLite)
    assert torch.equal(stage.model.head.weight[:1000], teacher.network.tagger.head.weight)
    trained = {name for name, parameter in stage.model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("roi_") for name in trained)
    with pytest.raises(SlimError, match="nothing to train"):
        CaptionerStage(Run(load_recipe("smoke", [*frozen, "captioner.network.roi=false"])))
    # the embedded captioner is an EfficientNet-Lite0
    with pytest.raises(SlimError, match=r"cannot start from the embedded one.*network\.network="):
        other = [setting.replace("efficientnet-lite0", "mobilenet-v2") for setting in settings]
        CaptionerStage(Run(load_recipe("smoke", other)))
