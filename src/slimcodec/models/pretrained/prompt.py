"""Captions as a pretrained latent diffusion model was trained to read them: its own tokenizers and text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Prompt:
    """Captions encoded: hidden states [B, tokens, D], and for SDXL the pooled state [B, P]."""

    states: Tensor
    pooled: Tensor | None = None


class PromptEncoder(nn.Module):
    """One text encoder, whose last states are read, or SDXL's two, whose last but one states stand side by side."""

    def __init__(self, tokenizers: Sequence[Any], models: Sequence[Any], zero_empty: bool = False) -> None:
        """``zero_empty``: no caption is a state of zeros, as SDXL was trained, not the encoded empty text."""
        super().__init__()
        self.tokenizers, self.zero_empty = list(tokenizers), zero_empty
        self.models = nn.ModuleList(models)

    @torch.no_grad()
    def forward(self, captions: Sequence[str | None]) -> Prompt:
        """Captions to what the UNet's cross-attention reads; longer ones are cut to the encoder's tokens. None: no caption."""
        texts = [caption or "" for caption in captions]
        outputs = [
            self._encode(tokenizer, model, texts)
            for tokenizer, model in zip(self.tokenizers, self.models, strict=True)
        ]
        if len(outputs) == 1:
            return Prompt(outputs[0].last_hidden_state)
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled: Tensor = outputs[-1].text_embeds
        if self.zero_empty:
            kept = torch.tensor([caption is not None for caption in captions], device=states.device)
            states, pooled = states * kept[:, None, None], pooled * kept[:, None]
        return Prompt(states, pooled)

    def _encode(self, tokenizer: Any, model: Any, texts: list[str]) -> Any:
        config = model.config
        tokens = tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=min(tokenizer.model_max_length, config.max_position_embeddings),
            return_tensors="pt",
        )
        device = next(model.parameters()).device
        # as the pipelines do: padding is attended unless the encoder's configuration says otherwise
        mask = tokens["attention_mask"].to(device) if getattr(config, "use_attention_mask", False) else None
        return model(
            tokens["input_ids"].to(device), attention_mask=mask, output_hidden_states=len(self.models) > 1
        )
