"""Captions as vectors: a tokenizer and a text encoder, both through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: longer captions are cut for the enhancer (the file keeps them whole)
MAX_TOKENS = 24


class CaptionEncoder(nn.Module):
    """Text to the hidden states that the enhancer's cross-attention reads."""

    def __init__(self, tokenizer: Any, text_model: Any) -> None:
        super().__init__()
        self.tokenizer, self.text_model = tokenizer, text_model

    def forward(self, captions: Sequence[str | None]) -> Tensor:
        """Captions to hidden states [B, tokens, D]; None is the empty caption, on which guidance is free to drop."""
        limit = min(MAX_TOKENS, self.text_model.config.max_position_embeddings)
        tokens = self.tokenizer(
            [caption or "" for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        device = next(self.text_model.parameters()).device
        hidden: Tensor = self.text_model(
            tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        ).last_hidden_state
        return hidden


def small_text_encoder(
    corpus: Sequence[str], tokens: int = 2048, width: int = 128, layers: int = 2
) -> CaptionEncoder:
    """An untrained caption encoder: a byte-level BPE tokenizer fitted to ``corpus`` and a small CLIP text model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<start>", "<end>"]
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=MAX_TOKENS,
    )
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


@torch.no_grad()
def encode_captions(encoder: CaptionEncoder, captions: Sequence[str | None]) -> Tensor:
    """Hidden states [B, tokens, D] without a gradient."""
    hidden: Tensor = encoder(captions)
    return hidden
