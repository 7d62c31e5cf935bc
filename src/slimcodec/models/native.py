"""Our own latent diffusion model: patch autoencoder, UNet and a small text encoder, as slim-tiny has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from slimcodec.errors import SlimError
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.config import BundleConfig
from slimcodec.models.enhancer import Enhancer
from slimcodec.models.networks import own_module
from slimcodec.models.parts import CaptionEmbedding, LatentModel, Parts

#: special tokens of our text encoders, in the order of their numbers
SPECIAL = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}
#: longer captions are cut for the enhancer (the file keeps them whole)
MAX_TOKENS = 24


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
        return cast("PatchAutoencoder", own_module("autoencoder", self.config, self.parts))

    @property
    def enhancer(self) -> Enhancer:
        """The diffusion UNet with its scheduler; imports diffusers."""
        config = self.config.enhancer
        if config is None:
            raise SlimError(f"the bundle {self.config.name} has no enhancer")
        return self.parts.network("enhancer", lambda: Enhancer.build(config), meta=False)

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
