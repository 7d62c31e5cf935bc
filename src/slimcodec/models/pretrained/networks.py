"""The networks of a pretrained pipeline: autoencoder, UNet with its scheduler, and text encoders.

The UNet enhances decompressed latents with or without training of ours. With a = sqrt(cumulative alpha) and s = sqrt(1 - a^2) at
step T of the model's own schedule, and n standard normal noise seeded by the file, denoising starts from ``z_T = a z^ + nu s n``,
z^ the decompressed latent:

- ``noise`` (zero-shot, no training): nu = 1, SDEdit (Meng et al. 2022). The noise drowns what compression did, and the model
  paints it anew.
- ``trained``: nu is small or 0. The error of compression itself is the noise: z_T = a z + s e with
  ``e = a (z^ - z) / s + nu n``, and the UNet has been taught (LoRA, stage ``enhance``) to predict it.

T is a share of the schedule that falls with the quality (``EnhancerConfig.strength``). From there on the model's own scheduler
goes its few steps, by its own prediction type.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.blocks import dtype_of
from slimcodec.models.config import EnhancerConfig
from slimcodec.models.parts import CaptionEmbedding

#: how a pretrained UNet is used (see above)
MODES = ("noise", "trained")
#: pixels a side up to which a picture is worked on whole, where the model's configuration says nothing
WHOLE_SIDE = 512
#: classes of diffusers that are known to map pictures to latents of two spatial dimensions
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderKLFlux2", "AutoencoderTaef2")


class PretrainedAutoencoder(nn.Module):
    """Pictures in [-1, 1] to the scaled latents that a diffusion model was trained on, and back.

    Normalisation and attention look at the whole picture, so larger ones than ``tile`` are worked on in cross-faded tiles.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, config = vae, vae.config
        self.stride = stride_of(config)
        self.scale = float(config.get("scaling_factor") or 1.0)
        self.shift = float(config.get("shift_factor") or 0.0)
        #: side in latent positions
        self.tile = max(_longest(config.get("sample_size") or 0), WHOLE_SIDE) // self.stride

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], sides multiples of ``stride``, to latents [B, C, H/stride, W/stride], float32."""
        # the most likely latent, not a random one: a picture has one file
        encoded = self.vae.encode(pictures.to(dtype_of(self.vae)))
        latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        latents = (latents.float() - self.shift) * self.scale
        return latents if self.statistics is None else _normalised(latents, *self.statistics)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pictures [B, 3, stride * h, stride * w], float32, near [-1, 1] and not clipped."""
        if self.statistics is not None:
            mean, deviation = self.statistics
            latents = _normalised(latents, -mean / deviation, 1 / deviation)
        raw = latents.float() / self.scale + self.shift
        decoded: Tensor = self.vae.decode(raw.to(dtype_of(self.vae))).sample
        return decoded.float()

    @property
    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation [4C] of patches of 2x2 raw latents, by which FLUX.2 normalises them; None for other models."""
        norm = getattr(self.vae, "bn", None)
        return None if norm is None else (norm.running_mean, (norm.running_var + norm.eps).sqrt())

    @torch.no_grad()
    def latent_scale(self, latents: Tensor) -> Tensor:
        """Picture energy of a unit of each latent channel [C], as ``PatchAutoencoder.latent_scale``, measured around ``latents``.

        The root of |D(z + d e) - D(z)|^2 per latent position, over d = 0.1, for a change e of one channel by +-1 at every position.
        """
        change, before = 0.1, self.decode(latents)
        generator = torch.Generator().manual_seed(0)
        energy = []
        for channel in range(latents.shape[1]):
            sign = (
                torch.randint(0, 2, latents[:, channel].shape, generator=generator).to(latents.device) * 2.0
                - 1
            )
            moved = latents.clone()
            moved[:, channel] += change * sign
            energy.append((self.decode(moved) - before).square().sum() / (sign.numel() * change**2))
        return torch.stack(energy).sqrt().clamp(min=1e-4)


def _normalised(latents: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Latents [B, C, h, w] by mean and deviation [4C] of their patches of 2x2."""
    patches = nn.functional.pixel_unshuffle(latents, 2)
    return nn.functional.pixel_shuffle((patches - mean[:, None, None]) / deviation[:, None, None], 2)


Autoencoder = PatchAutoencoder | PretrainedAutoencoder


def stride_of(config: Any) -> int:
    """Pixels a side of a latent position, by the configuration of a diffusers autoencoder."""
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    if not blocks:
        raise SlimError(
            f"an autoencoder without block_out_channels is not known; give one of {', '.join(AUTOENCODERS)}"
        )
    return int(2 ** (len(blocks) - 1))


def _longest(size: Any) -> int:
    """The longest side of a configuration's ``sample_size``, one number or two."""
    return int(max(size) if isinstance(size, (list, tuple)) else size)


class Denoiser(nn.Module):
    """A pretrained UNet and its scheduler applied to decompressed latents."""

    def __init__(self, config: EnhancerConfig, unet: Any, scheduler: Any, stride: int = 8) -> None:
        """``stride``: pixels a side of a latent position, for models that are told the picture's size."""
        super().__init__()
        if config.mode not in MODES:
            raise SlimError(
                f"enhancer.mode is {config.mode!r}; give {' or '.join(MODES)} with a pretrained model"
            )
        self.config, self.unet, self.scheduler, self.stride = config, unet, scheduler, stride

    @property
    def tile(self) -> int:
        """Side, in latent positions, of the pictures that the UNet was trained on."""
        return _longest(self.unet.config.sample_size or 64)

    @property
    def noise_share(self) -> float:
        """How much noise joins the decompressed latent at the start, relative to the schedule's."""
        return 1.0 if self.config.mode == "noise" else self.config.noise

    def start(self, quality: Tensor) -> Tensor:
        """The step T of the schedule (whole numbers [B]) at which denoising begins for qualities [B]."""
        count = self.scheduler.config.num_train_timesteps
        return (self.strength(quality) * count).round().long().clamp(1, count) - 1

    def strength(self, quality: Tensor) -> Tensor:
        """T as a share of the schedule, linear in the quality."""
        low, high = self.config.strength
        return low + (high - low) * (quality.float() - 1) / 99

    def factors(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """a and s at steps [B], each [B, 1, 1, 1]."""
        alphas = self.scheduler.alphas_cumprod.to(times.device)[times].float().reshape(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()

    def predict(
        self, sample: Tensor, times: Tensor, captions: CaptionEmbedding, text_scale: float = 1.0
    ) -> Tensor:
        """The UNet's output in float32 for its input [B, C, h, w] at steps [B] or a single one."""
        dtype = dtype_of(self.unet)
        conditions: dict[str, Any] = {}
        if captions.pooled is not None:
            height, width = sample.shape[2] * self.stride, sample.shape[3] * self.stride
            # original size, no crop, target size: what SDXL is told of a whole picture
            ids = sample.new_tensor([height, width, 0, 0, height, width]).expand(len(sample), 6)
            pooled = captions.pooled.to(dtype)
            conditions["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids.to(dtype)}
        if self.unet.config.time_cond_proj_dim is not None:
            from diffusers import LatentConsistencyModelPipeline

            # by it LCM is told the strength of guidance (Luo et al. 2023); the method reads nothing of its pipeline
            embed: Any = LatentConsistencyModelPipeline.get_guidance_scale_embedding
            strength = torch.tensor([text_scale - 1], dtype=torch.float64)
            scale = embed(None, strength, self.unet.config.time_cond_proj_dim)
            conditions["timestep_cond"] = scale.to(sample.device, dtype).expand(len(sample), -1)
        output: Tensor = self.unet(sample.to(dtype), times, captions.states.to(dtype), **conditions).sample
        return output.float()

    @torch.no_grad()
    def forward(
        self,
        latents: Tensor,
        quality: int,
        steps: int,
        noise: Tensor,
        captions: CaptionEmbedding,
        no_captions: CaptionEmbedding,
        text_scale: float = 1.0,
    ) -> Tensor:
        """Decompressed latents [B, C, h, w] to enhanced ones.

        See ``Enhancer.forward``. Models that were distilled with guidance (LCM) take ``text_scale`` as a condition.
        """
        scheduler, times = self.times(quality, steps, latents.device)
        options: dict[str, Any] = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            # some schedulers draw noise of their own at every step: it too is a function of the file, alone or in a batch
            seeds = noise.flatten(1)[:, :1].cpu().view(torch.int32) & 0x7FFFFFFF
            options["generator"] = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        state = scheduler.add_noise(latents, self.noise_share * noise, times[:1].expand(len(latents)))
        distilled = self.unet.config.time_cond_proj_dim is not None
        for time in times:
            sample = scheduler.scale_model_input(state, time)
            prediction = self.predict(sample, time, captions, text_scale)
            if text_scale != 1.0 and not distilled:
                unconditional = self.predict(sample, time, no_captions)
                prediction = unconditional + text_scale * (prediction - unconditional)
            state = scheduler.step(prediction, time, state, **options).prev_sample
        return state

    def times(self, quality: int, steps: int, device: torch.device) -> tuple[Any, Tensor]:
        """A copy of the scheduler that is about to take its last ``steps`` steps, from about T on, and those steps."""
        strength = float(self.strength(torch.tensor([quality])))
        # schedulers count their steps: a copy of its own lets a codec serve several threads
        scheduler = copy.deepcopy(self.scheduler)
        most = int(scheduler.config.get("original_inference_steps") or scheduler.config.num_train_timesteps)
        if steps > most:
            raise SlimError(f"steps is {steps}; this model's scheduler has at most {most}")
        scheduler.set_timesteps(min(max(steps, round(steps / max(strength, 1e-3))), most), device=device)
        times: Tensor = scheduler.timesteps[-steps:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(len(scheduler.timesteps) - steps)
        return scheduler, times


def prediction_target(kind: str, clean: Tensor, error: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """What a model of prediction type ``kind`` should say of ``a * clean + s * error``."""
    return _of_kind(kind, {"epsilon": error, "v_prediction": a * error - s * clean, "sample": clean})


def clean_latent(kind: str, prediction: Tensor, state: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """The clean latent that a prediction of type ``kind`` at ``state`` means: the inverse of ``prediction_target``."""
    by_velocity = a * state - s * prediction
    return _of_kind(
        kind,
        {"epsilon": (state - s * prediction) / a, "v_prediction": by_velocity, "sample": prediction},
    )


def _of_kind(kind: str, values: dict[str, Tensor]) -> Tensor:
    if kind not in values:
        raise SlimError(f"the model's prediction type {kind!r} is not known to this release")
    return values[kind]


def fitting_strength(errors: tuple[float, float], scheduler: Any) -> tuple[float, float]:
    """The shares of the schedule at which its own noise, s / a, is as large as ``errors``.

    ``errors`` are the root mean squared errors of decompressed latents, at quality 1 and at quality 100.
    """
    alphas = scheduler.alphas_cumprod
    ratio = ((1 - alphas) / alphas).sqrt()

    def share(error: float) -> float:
        return min(max(int((ratio < error).sum()), 1) / len(ratio), 1.0)

    return share(errors[0]), share(errors[1])


class PromptEncoder(nn.Module):
    """The tokenizers and text encoders of a pipeline: one, or SDXL's two, read as diffusers' pipelines read them."""

    def __init__(
        self,
        tokenizers: Sequence[Any],
        models: Sequence[Any],
        zero_empty: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """``zero_empty``: no caption is a state of zeros, as SDXL was trained, not the encoded empty text."""
        super().__init__()
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        self.models, self.zero_empty, self.device = nn.ModuleList(models), zero_empty, device
        for tokenizer, model in zip(tokenizers, models, strict=True):
            tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
        parts: dict[str, Any] = {"text_encoder": models[0], "tokenizer": tokenizers[0]}
        parts |= dict.fromkeys(("vae", "unet", "scheduler"))
        if len(models) == 1:
            unused: dict[str, Any] = dict.fromkeys(("safety_checker", "feature_extractor"))
            self.pipeline: Any = StableDiffusionPipeline(**parts, **unused, requires_safety_checker=False)
        else:
            second = {"text_encoder_2": models[1], "tokenizer_2": tokenizers[1]}
            self.pipeline = StableDiffusionXLPipeline(**parts, **second, add_watermarker=False)

    @torch.no_grad()
    def forward(self, captions: Sequence[str | None]) -> CaptionEmbedding:
        """Captions to what the UNet's cross-attention reads; longer ones are cut to the encoder's tokens. None: no caption."""
        texts = [caption or "" for caption in captions]
        states, _, *pooled = self.pipeline.encode_prompt(
            texts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if not pooled:
            return CaptionEmbedding(states)
        if self.zero_empty:
            kept = torch.tensor([caption is not None for caption in captions], device=states.device)
            return CaptionEmbedding(states * kept[:, None, None], pooled[0] * kept[:, None])
        return CaptionEmbedding(states, pooled[0])
