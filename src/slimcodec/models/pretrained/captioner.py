"""Captions by pretrained models of transformers: image-to-text models, and zero-shot taggers over a list of tags.

They run at the encoder alone: the caption travels in the file, so no decoder needs them and no file depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.entropy.caption import normalise_caption, tag_phrase
from slimcodec.errors import SlimError
from slimcodec.models.pretrained.hub import load_model, read_json
from slimcodec.models.pretrained.references import PartReference

MAX_BYTES = 200
MAX_NEW_TOKENS = 24
#: tags whose text is encoded at a time
TAGS_AT_ONCE = 64


@dataclass(frozen=True)
class CaptionModelConfig:
    """A pretrained captioner that a bundle names."""

    part: PartReference
    #: what an image-to-text model is asked, or the words that it goes on with
    prompt: str = ""
    #: below this probability a zero-shot tagger names nothing
    threshold: float = 0.2


def clean_caption(text: str) -> str | None:
    """The text on one line, without control characters, cut after a word to at most 200 bytes; None if nothing is left."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    words = normalise_caption(printable)
    if len(words.encode()) > MAX_BYTES:
        # the 201st byte shows whether a word ends at the 200th
        start = words.encode()[: MAX_BYTES + 1].decode(errors="ignore")
        words = start.rpartition(" ")[0] or words.encode()[:MAX_BYTES].decode(errors="ignore")
    return words or None


class ImageToText:
    """An image-to-text model: of its own accord (BLIP, GIT), or answering a prompt (BLIP-2, Florence-2, chat models)."""

    def __init__(self, folder: Path, device: str = "cpu", prompt: str = "") -> None:
        """Raises ``SlimError`` where transformers cannot load the model or its processor."""
        from transformers import AutoModelForImageTextToText

        self.model = load_model(AutoModelForImageTextToText, folder, device)
        self.processor, self.device, self.prompt = load_processor(folder), device, prompt

    def __call__(self, pixels: NDArray[np.uint8]) -> str | None:
        """The caption of a picture [H, W, 3] uint8, one line of at most 200 bytes, or None."""
        return self.captions([pixels])[0]

    def captions(self, pictures: Sequence[NDArray[np.uint8]]) -> list[str | None]:
        """The caption of every picture; all are looked at in one pass, but by a chat model one at a time."""
        images = [Image.fromarray(pixels) for pixels in pictures]
        if self.prompt and getattr(self.processor, "chat_template", None):
            # how many tokens a picture takes may follow its size
            return [caption for image in images for caption in self._generate([image])]
        return self._generate(images)

    @torch.no_grad()
    def _generate(self, images: list[Image.Image]) -> list[str | None]:
        if self.prompt and getattr(self.processor, "chat_template", None):
            (image,) = images
            content = [{"type": "image", "image": image}, {"type": "text", "text": self.prompt}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            words = {"text": [self.prompt] * len(images)} if self.prompt else {}
            inputs = self.processor(images=images, return_tensors="pt", **words)
        inputs = inputs.to(self.device)
        tokens = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=1)
        prompt = inputs.get("input_ids")
        if prompt is not None and not self.model.config.is_encoder_decoder:
            length = prompt.shape[1]
            # models without an encoder repeat the prompt
            if tokens.shape[1] > length and torch.equal(tokens[:, :length], prompt):
                tokens = tokens[:, length:]
        return [clean_caption(text) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


class ZeroShotTagger:
    """A model of pictures and texts (CLIP, SigLIP) that names the likeliest tag of a list."""

    def __init__(
        self, folder: Path, tags: Sequence[str], device: str = "cpu", threshold: float = 0.2
    ) -> None:
        """Raises ``SlimError`` where transformers cannot load the model or its processor."""
        from transformers import AutoModelForZeroShotImageClassification

        if not tags:
            raise SlimError(f"{folder}: a zero-shot tagger needs a list of tags: give --tags FILE")
        self.model = load_model(AutoModelForZeroShotImageClassification, folder, device)
        self.processor, self.device = load_processor(folder), device
        self.tags, self.threshold = list(tags), threshold
        self._texts = self._encode_tags()

    @torch.no_grad()
    def _encode_tags(self) -> Tensor:
        states = []
        for start in range(0, len(self.tags), TAGS_AT_ONCE):
            phrases = [tag_phrase(tag) for tag in self.tags[start : start + TAGS_AT_ONCE]]
            tokens = self.processor(text=phrases, padding=True, truncation=True, return_tensors="pt")
            states.append(_pooled(self.model.get_text_features(**tokens.to(self.device))))
        texts = torch.cat(states)
        return texts / texts.norm(dim=-1, keepdim=True)

    def __call__(self, pixels: NDArray[np.uint8]) -> str | None:
        """The caption "a photo of a {tag}" of a picture [H, W, 3] uint8, None where no tag is likely enough."""
        return self.captions([pixels])[0]

    @torch.no_grad()
    def captions(self, pictures: Sequence[NDArray[np.uint8]]) -> list[str | None]:
        """The caption of every picture, all looked at in one pass."""
        images = [Image.fromarray(pixels) for pixels in pictures]
        inputs = self.processor(images=images, return_tensors="pt").to(self.device)
        features = _pooled(self.model.get_image_features(**inputs))
        scores = (
            (features / features.norm(dim=-1, keepdim=True)) @ self._texts.T * self.model.logit_scale.exp()
        )
        return [
            tag_phrase(self.tags[int(tag)]) if float(probability) >= self.threshold else None
            for probability, tag in zip(*scores.softmax(-1).max(-1), strict=True)
        ]


def _pooled(features: Any) -> Tensor:
    """Features as a tensor, whichever way a release of transformers gives them."""
    return features if isinstance(features, Tensor) else features.pooler_output


def is_zero_shot(folder: Path) -> bool:
    """Whether a model compares pictures with texts and writes none."""
    from transformers.models.auto import modeling_auto

    kind = read_json(folder / "config.json").get("model_type")
    writes = kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return not writes and kind in modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES


def load_captioner(
    folder: Path, config: CaptionModelConfig, tags: Sequence[str], device: str
) -> ImageToText | ZeroShotTagger:
    """The captioner in a folder, of whichever kind it is."""
    if is_zero_shot(folder):
        return ZeroShotTagger(folder, tags, device, config.threshold)
    return ImageToText(folder, device, config.prompt)


def load_processor(folder: Path) -> Any:
    """A model's image processor and tokenizer; ``SlimError`` where transformers cannot load them."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers' errors have no common base
        raise SlimError(f"{folder}: its image processor or tokenizer cannot be loaded ({error})") from error
