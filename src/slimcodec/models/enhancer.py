"""Our own latent diffusion model, as slim-tiny has it: patch autoencoder, diffusion UNet and a small text encoder.

The UNet enhances a decompressed latent by its caption, in a few denoising steps. A straight path leads from
the decompressed latent, plus a little noise of the size of what was lost, to the original; the UNet sees the decompressed latent
beside the state and predicts the path's end, from which the velocity follows (flow matching, Lipman et al. 2023, between coupled
ends): mode ``bridge``. Pretrained UNets are served by ``slimcodec.models.pretrained.networks``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.blocks import at_level, dtype_of, quality_to_level
from slimcodec.models.config import BundleConfig, EnhancerConfig
from slimcodec.models.networks import own_module
from slimcodec.models.parts import CaptionEmbedding, LatentModel, Parts

#: special tokens of our text encoders, in the order of their numbers
SPECIAL = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}
#: longer captions are cut for the enhancer (the file keeps them whole)
MAX_TOKENS = 24


def seeded_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise from a counter-based generator (Philox), drawn on the CPU: the same for a seed everywhere."""
    values = np.random.Generator(np.random.Philox(key=seed)).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(values)


def scheduler_class(name: str, place: str) -> Any:
    """A class of diffusers by its name; ``SlimError``, which tells the place of the name, where it is no scheduler."""
    import diffusers

    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise SlimError(f"{place}: {name!r} is not a scheduler of diffusers")
    return kind


@dataclass(frozen=True)
class UNetSize:
    """Sizes of our own UNet: channels at the two resolutions, groups of its normalisation, width of the caption's states."""

    width: int = 128
    coarse_width: int = 144
    groups: int = 16
    text_width: int = 128


def small_unet_config(latent_channels: int, size: UNetSize) -> dict[str, Any]:
    """Configuration of slim-tiny's UNet: two resolutions, attention at the coarse one, the caption pooled and attended."""
    return {
        "sample_size": 16,
        "in_channels": 2 * latent_channels,
        "out_channels": latent_channels,
        "block_out_channels": (size.width, size.coarse_width),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "cross_attention_dim": size.text_width,
        "attention_head_dim": 16,
        "norm_num_groups": size.groups,
        "resnet_time_scale_shift": "scale_shift",
        "time_cond_proj_dim": 16,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
    }


class Enhancer(nn.Module):
    """A diffusers UNet and scheduler applied to decompressed latents."""

    #: side in latent positions that it works on best: any
    tile = None
    error_scale: Tensor

    def __init__(self, config: EnhancerConfig) -> None:
        """With untrained weights; ``config.scheduler`` names a diffusers scheduler as ``_class_name``."""
        from diffusers import UNet2DConditionModel

        super().__init__()
        self.config, settings = config, dict(config.scheduler)
        self.unet: Any = UNet2DConditionModel.from_config(dict(config.unet))
        name = settings.pop("_class_name", "FlowMatchEulerDiscreteScheduler")
        self.scheduler = scheduler_class(name, "enhancer.scheduler").from_config(settings)
        #: standard deviation of what the compressor loses, by level and channel
        self.register_buffer("error_scale", torch.full((config.levels, config.latent_channels), 0.5))

    def predict(
        self, state: Tensor, latents: Tensor, time: Tensor, level: Tensor, text: CaptionEmbedding
    ) -> Tensor:
        """The UNet's estimate, in units of the error scale, of latents minus original, at times [B] in (0, 1] of the path.

        It sees the state as its distance from the decompressed latent ``latents``, in the same units, beside ``latents`` itself.
        """
        scale = at_level(self.error_scale, level)[..., None, None]
        dtype = dtype_of(self.unet)
        sample = torch.cat([(state - latents) / scale, latents], dim=1).to(dtype)
        powers = torch.arange(8, dtype=torch.float32, device=level.device)
        angles = level[:, None] * (0.3 * 1.6**powers)[None]
        condition = torch.cat([angles.sin(), angles.cos()], dim=1).to(dtype)
        # the UNet halves its grid once: odd sizes are padded and cropped
        height, width = sample.shape[2:]
        sample = nn.functional.pad(sample, (0, width % 2, 0, height % 2), mode="replicate")
        output = self.unet(sample, time * 1000, text.states.to(dtype), timestep_cond=condition).sample
        return output[:, :, :height, :width].float()

    def start(self, latents: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """The beginning of the path: the decompressed latent plus noise of a share of the error scale."""
        return latents + self.config.noise * at_level(self.error_scale, level)[..., None, None] * noise

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
        """Decompressed latents [B, C, h, w] to enhanced ones after ``steps`` >= 1 denoising steps.

        ``noise``: standard normal, of the latents' shape (``seeded_noise``). ``text_scale``: classifier-free guidance (Ho &
        Salimans 2022), 1 = off.
        """
        if self.config.mode != "bridge":
            raise SlimError(f"enhancer mode {self.config.mode!r} is not known to this release")
        level = quality_to_level(
            torch.full((len(latents),), quality, device=latents.device), self.config.levels
        )
        scale = at_level(self.error_scale, level)[..., None, None]
        state = self.start(latents, level, noise)
        # schedulers count their steps: a copy of its own lets a codec serve several threads
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
        for time in scheduler.timesteps:
            moment = (time / 1000).expand(len(latents)).to(latents.device)
            lost = self.predict(state, latents, moment, level, captions)
            if text_scale != 1.0:
                unconditional = self.predict(state, latents, moment, level, no_captions)
                lost = unconditional + text_scale * (lost - unconditional)
            # the straight path through this state that ends at latents - scale * lost
            velocity = (state - latents + scale * lost) / moment.reshape(-1, 1, 1, 1)
            state = scheduler.step(velocity, time, state).prev_sample
        return state


class CaptionEncoder(nn.Module):
    """Text to the hidden states that the enhancer's cross-attention reads."""

    def __init__(self, tokenizer: Any, text_model: Any) -> None:
        super().__init__()
        self.tokenizer, self.text_model = tokenizer, text_model

    def forward(self, captions: Sequence[str | None]) -> CaptionEmbedding:
        """The embedding of captions; None is the empty caption, on which guidance is free to drop."""
        limit = min(MAX_TOKENS, self.text_model.config.max_position_embeddings)
        tokens = self.tokenizer(
            [caption or "" for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        tokens = tokens.to(self.text_model.device)
        output = self.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return CaptionEmbedding(output.last_hidden_state)


def fast_tokenizer(tokenizer: Any, **options: Any) -> Any:
    """A tokenizer of the library tokenizers as transformers calls it, with the special tokens of our text encoders."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **options)


def small_text_encoder(
    corpus: Sequence[str], tokens: int = 2048, width: int = 128, layers: int = 2
) -> CaptionEncoder:
    """An untrained caption encoder: a byte-level BPE tokenizer fitted to ``corpus`` and a small CLIP text model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    fast = fast_tokenizer(tokenizer, model_max_length=MAX_TOKENS)
    config = CLIPTextConfig(
        vocab_size=len(fast),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CaptionEncoder(fast, CLIPTextModel(config))


class NativeModel(LatentModel):
    """Our networks; the branches of the autoencoder run in the parts' type, all else in float32."""

    def __init__(self, config: BundleConfig, parts: Parts, text: tuple[Any, dict[str, Any]] | None) -> None:
        """``text``: a tokenizer's JSON and the configuration of a CLIP text model."""
        self.config, self.parts, self.text = config, parts, text

    @property
    def autoencoder(self) -> PatchAutoencoder:
        return own_module("autoencoder", self.config, self.parts)

    @property
    def enhancer(self) -> Enhancer:
        """The diffusion UNet with its scheduler; imports diffusers."""
        config = self.config.enhancer
        if config is None:
            raise SlimError(f"the bundle {self.config.name} has no enhancer")
        return self.parts.network("enhancer", lambda: Enhancer(config), meta=False)

    @property
    def text_encoder(self) -> CaptionEncoder:
        """Tokenizer and text model; imports transformers."""
        if self.text is None:
            raise SlimError(f"the bundle {self.config.name} has no text encoder")
        tokenizer, config = self.text

        def build() -> CaptionEncoder:
            from tokenizers import Tokenizer
            from transformers import CLIPTextConfig, CLIPTextModel

            fast = fast_tokenizer(Tokenizer.from_str(json.dumps(tokenizer)))
            return CaptionEncoder(fast, CLIPTextModel(CLIPTextConfig.from_dict(config)))

        return self.parts.network("text", build, meta=False)

    def offload(self) -> None:
        raise SlimError(f"offload moves pretrained parts, and {self.config.name} has none; leave it out")
