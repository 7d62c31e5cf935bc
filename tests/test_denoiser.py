"""Pretrained UNets as enhancers: any scheduler and prediction type of the Stable Diffusion kind, seeded, few steps."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from pretrained import NOISE, pipeline, unet
from torch import Tensor

from slimcodec import SlimError
from slimcodec.models.config import EnhancerConfig
from slimcodec.models.enhancer import seeded_noise
from slimcodec.models.parts import CaptionEmbedding
from slimcodec.models.pretrained.networks import (
    Denoiser,
    PromptEncoder,
    clean_latent,
    prediction_target,
)
from slimcodec.models.pretrained.pipeline import load_scheduler
from slimcodec.models.pretrained.references import FoundPart

SCHEDULERS = [
    ("DDIMScheduler", "epsilon"),
    ("DDIMScheduler", "v_prediction"),
    ("PNDMScheduler", "epsilon"),
    ("EulerDiscreteScheduler", "epsilon"),
    ("EulerDiscreteScheduler", "v_prediction"),
    ("EulerAncestralDiscreteScheduler", "epsilon"),
    ("DPMSolverMultistepScheduler", "epsilon"),
    ("UniPCMultistepScheduler", "v_prediction"),
    ("LCMScheduler", "epsilon"),
]


def scheduler_of(name: str, prediction: str, folder: Path) -> Any:
    """A scheduler as the bundle loads it from its configuration."""
    settings = NOISE | {"_class_name": name, "prediction_type": prediction, "steps_offset": 1}
    if name.startswith("DDIM"):
        settings |= {"clip_sample": False}
    (folder / "scheduler_config.json").write_text(json.dumps(settings))
    return load_scheduler(FoundPart(folder, "", "folder"))


class Oracle(torch.nn.Module):
    """A UNet that knows the clean latent."""

    def __init__(self, clean: Tensor, kind: str, alphas: Tensor) -> None:
        super().__init__()
        self.clean, self.kind, self.alphas = clean, kind, alphas
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(time_cond_proj_dim=None, sample_size=8)
        self.seen: list[float] = []

    def forward(self, x: Tensor, time: Tensor, states: Tensor) -> Any:
        a = self.alphas[int(time)].sqrt()
        s = (1 - a**2).sqrt()
        self.seen.append(float(time))
        return SimpleNamespace(
            sample=prediction_target(self.kind, self.clean, (x - a * self.clean) / s, a, s)
        )


@pytest.mark.parametrize("mode", ["noise", "trained"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("name", "prediction"), SCHEDULERS)
def test_a_perfect_network_gives_the_clean_latent(
    name: str, prediction: str, steps: int, mode: str, tmp_path: Path
) -> None:
    scheduler = scheduler_of(name, prediction, tmp_path)
    torch.manual_seed(0)
    clean = torch.randn(1, 4, 8, 8)
    rough = clean + 0.3 * torch.randn_like(clean)
    oracle = Oracle(clean, prediction, scheduler.alphas_cumprod)
    config = EnhancerConfig(mode, 4, noise=0.2, strength=(0.5, 0.1))
    denoiser = Denoiser(config, oracle, scheduler)
    prompt = CaptionEmbedding(torch.zeros(1, 1, 1))
    made = denoiser(rough, 1, steps, seeded_noise(rough.shape, 7), prompt, prompt)
    # what is left is the schedule's last noise, and LCM's skip connection
    assert float((made - clean).abs().max()) < 0.1
    assert len(oracle.seen) == steps and oracle.seen == sorted(oracle.seen, reverse=True)
    # denoising begins where the quality says, whatever the number of steps
    assert abs(oracle.seen[0] - 500) < 30
    oracle.seen.clear()
    denoiser(rough, 100, steps, seeded_noise(rough.shape, 7), prompt, prompt)
    assert abs(oracle.seen[0] - 100) < 30


def plain(**settings: Any) -> Denoiser:
    torch.manual_seed(0)
    scheduler = diffusers.DDIMScheduler(**NOISE, clip_sample=False, timestep_spacing="trailing")
    return Denoiser(EnhancerConfig("noise", 4), unet(12, **settings).eval(), scheduler)


def test_a_file_has_one_picture_and_captions_count() -> None:
    denoiser = plain()
    rough, text = torch.randn(1, 4, 7, 5), CaptionEmbedding(torch.randn(1, 5, 12))
    noise, empty = seeded_noise(rough.shape, 7), CaptionEmbedding(torch.zeros(1, 5, 12))

    def run(noise: Tensor, scale: float = 1.0) -> Tensor:
        return denoiser(rough, 20, 2, noise, text, empty, scale)

    first = run(noise)
    assert first.shape == rough.shape and torch.isfinite(first).all()
    assert torch.equal(first, run(noise))
    assert not torch.allclose(first, run(seeded_noise(rough.shape, 8)))
    # guidance is linear in its strength, between no caption at 0 and the caption at 1
    time = torch.tensor(300)
    with_, without = denoiser.predict(rough, time, text), denoiser.predict(rough, time, empty)
    assert not torch.allclose(with_, without)
    nothing = denoiser(rough, 20, 2, noise, empty, empty)
    assert torch.allclose(run(noise, 0.0), nothing, atol=1e-5)
    assert not torch.allclose(run(noise, 3.0), first)


def test_distilled_guidance_is_a_condition() -> None:
    denoiser = plain(time_cond_proj_dim=9)
    rough, text = torch.randn(1, 4, 8, 8), CaptionEmbedding(torch.randn(1, 5, 12))
    noise = seeded_noise(rough.shape, 7)
    empty = CaptionEmbedding(torch.full((1, 5, 12), float("nan")))
    one, three = (denoiser(rough, 20, 1, noise, text, empty, scale) for scale in (1.0, 3.0))
    assert torch.isfinite(three).all() and not torch.allclose(one, three)


def test_predictions_and_clean_latents_are_inverse() -> None:
    clean, error = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    a = torch.tensor([0.3, 0.9]).reshape(2, 1, 1, 1)
    s = (1 - a**2).sqrt()
    for kind in ("epsilon", "v_prediction", "sample"):
        prediction = prediction_target(kind, clean, error, a, s)
        assert torch.allclose(clean_latent(kind, prediction, a * clean + s * error, a, s), clean, atol=1e-5)
    with pytest.raises(SlimError, match="prediction type"):
        prediction_target("colour", clean, error, a, s)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_captions_are_encoded_as_the_pipelines_do(family: str, tmp_path: Path) -> None:
    made = pipeline(family, tmp_path)
    numbers = ["", "_2"] if family == "sdxl" else [""]
    encoder = PromptEncoder(
        [getattr(made, f"tokenizer{number}") for number in numbers],
        [getattr(made, f"text_encoder{number}").eval() for number in numbers],
        zero_empty=family == "sdxl",
    )
    long = "a photo of a cat " * 10
    with torch.no_grad():
        for caption in ("a photo of a cat", long):
            options: dict[str, Any] = {"device": "cpu", "num_images_per_prompt": 1}
            options["do_classifier_free_guidance"] = True
            states, empty, *pooled = made.encode_prompt(caption, **options)
            ours = encoder([caption, None])
            assert torch.allclose(ours.states[:1], states, atol=1e-5)
            assert torch.allclose(ours.states[1:], empty, atol=1e-5)
            if pooled:
                assert ours.pooled is not None
                assert torch.allclose(ours.pooled, torch.cat(pooled), atol=1e-5)


def test_unknown_schedulers_are_refused(tmp_path: Path) -> None:
    for name, message in (
        ("Nothing", "not a scheduler"),
        ("FlowMatchEulerDiscreteScheduler", "no cumulative alphas"),
    ):
        (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(SlimError, match=message):
            load_scheduler(FoundPart(tmp_path, "", "folder"))
    with pytest.raises(SlimError, match="at most 50"):
        denoiser = plain()
        denoiser.scheduler = diffusers.LCMScheduler(**NOISE)
        denoiser.times(50, 60, torch.device("cpu"))
