"""Pretrained models of transformers, by folder or hub id: loaded whole, fed as they were trained, and asked for captions.

Captioners run at the encoder alone: the caption travels in the file, so no decoder needs them and no file depends on them.
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
from slimcodec.images import Pixels
from slimcodec.models.config import CaptionModelConfig
from slimcodec.models.pretrained.part_files import read_json
from slimcodec.models.pretrained.references import hub_folder, local_folder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIDE = 224
#: strides of segmentation models, which keep a picture's shape, divide this number of pixels
STRIDE = 32
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
#: longest caption that a model may give
MAX_BYTES, MAX_NEW_TOKENS = 200, 24
#: tags whose text is encoded at a time
TAGS_AT_ONCE = 64


def pretrained_folder(source: str | Path) -> Path:
    """The folder of a model that ``save_pretrained`` wrote: ``source`` itself, or a snapshot of that Hugging Face hub id.

    Weights are safetensors only. Raises ``SlimError`` where there is no such folder or it has no config.json.
    """
    folder = local_folder(source, "model; give a folder that save_pretrained wrote")
    folder = folder or hub_folder(source, "", ["*.safetensors", "*.json", "*.txt", "*.model"], ["*/*"])
    if not (folder / "config.json").is_file():
        raise SlimError(f"{source}: has no config.json; give a folder that save_pretrained wrote")
    return folder


def load_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """A folder's model by a class of transformers or diffusers: frozen, for inference.

    Raises ``SlimError`` where the library cannot load it, or where weights are missing: it would fill them with random numbers.
    """
    try:
        model, report = kind.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, **options
        )
    except Exception as error:  # the libraries' errors have no common base
        reason = " ".join(str(error).split())
        raise SlimError(f"{folder}: {kind.__name__} cannot load it ({reason})") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise SlimError(
            f"{folder}: no weights for {missing}, so it is not a trained {kind.__name__}; choose a model of that kind"
        )
    return model.eval().requires_grad_(False)


def load_model(auto_class: Any, folder: Path, device: str = "cpu") -> Any:
    """A folder's model by one of transformers' ``AutoModelFor...`` classes, in float32; see ``load_pretrained``."""
    return load_pretrained(auto_class, folder, trust_remote_code=False).float().to(device)


def class_names(model: Any) -> tuple[str, ...]:
    """A model's class names in the order of its outputs, () where it has numbered labels only."""
    names = [str(model.config.id2label[number]) for number in sorted(model.config.id2label)]
    numbered = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return () if numbered else tuple(names)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input: resized antialiased bilinear, RGB, (x / 255 - mean) / std.

    ``side``: input side in pixels, or None for a network that takes the picture as it is. ``crop``: centre square after the
    short side is resized to ``side / crop_share`` (protocol ``full``); without it the whole picture is resized to the square.
    ``bgr``: the channels are blue, green and red. ``keep_shape``: ``side`` is the shorter one of a picture that keeps its shape.
    """

    side: int | None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop: bool = False
    crop_share: float = 1.0
    bgr: bool = False
    keep_shape: bool = False

    @property
    def normalises(self) -> bool:
        """Whether the network sees other values than RGB in [0, 1]."""
        return self.bgr or any(self.mean) or set(self.std) != {1.0}

    def network_input(self, pixels: Pixels) -> Tensor:
        """[H, W, 3] uint8 as [1, 3, h, w] float32: the centre square of ``crop``, or the whole at ``input_size``."""
        picture = Image.fromarray(pixels)
        if self.side is not None and self.crop:
            # the short side first, then the crop: what was cut off stays the same for every size
            picture = centre_square(picture, round(self.side / self.crop_share))
            margin = (picture.width - self.side) // 2
            picture = picture.crop((margin, margin, margin + self.side, margin + self.side))
        elif picture.size != (size := self.input_size(picture.size)):
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        unit = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        return self.normalise(unit).contiguous()

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (width, height) at which the network sees a whole picture of a size."""
        if self.side is None:
            return size
        if not self.keep_shape:
            return self.side, self.side
        scale = self.side / min(size)
        width, height = (max(STRIDE, round(length * scale / STRIDE) * STRIDE) for length in size)
        return width, height

    def normalise(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] as the network's input of the same size; differentiable."""
        if not self.normalises:
            return pictures
        pictures = pictures.flip(1) if self.bgr else pictures
        mean, std = (pictures.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pictures - mean) / std


def centre_square(picture: Image.Image, side: int) -> Image.Image:
    """The centre square of ``side`` pixels after the short side is resized to it, antialiased bilinear.

    Lengths and offsets are rounded as ``torchvision``'s Resize and CenterCrop do, on which the published numbers rest.
    """
    width, height = picture.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2.0), round((size[1] - side) / 2.0)
    return picture.crop((left, top, left + side, top + side))


def read_preprocessing(folder: Path) -> Preprocessing:
    """Input size and normalisation by a folder's preprocessor_config.json, or the part of its processor_config.json.

    Without either: ImageNet's mean and deviation, and the side that the model's configuration names, or 224. Raises
    ``SlimError`` where a value is not what transformers' image processors write.
    """
    settings = image_processor_settings(folder)
    try:
        size = settings.get("size") or read_json(folder / "config.json").get("image_size") or DEFAULT_SIDE
        keep_shape = isinstance(size, dict) and "shortest_edge" in size
        if settings.get("do_center_crop"):
            size = settings.get("crop_size") or size
        mean, std = settings.get("image_mean") or IMAGENET_MEAN, settings.get("image_std") or IMAGENET_STD
        if not settings.get("do_normalize", True):
            mean, std = (0, 0, 0), (1, 1, 1)
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
        bgr = bool(settings.get("do_flip_channel_order"))
        return Preprocessing(_side(size), mean, std, bgr=bgr, keep_shape=keep_shape)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        files = " or ".join(PROCESSOR_FILES)
        raise SlimError(f"{folder}: {files}: not the settings of an image processor ({error!r})") from error


def image_processor_settings(folder: Path) -> dict[str, Any]:
    """What a folder's preprocessor_config.json, or the part of its processor_config.json, says; {} without either."""
    alone, together = (folder / name for name in PROCESSOR_FILES)
    if alone.is_file():
        return read_json(alone)
    settings = read_json(together) if together.is_file() else {}
    return settings.get("image_processor") or {}


def _side(size: Any) -> int:
    if isinstance(size, dict):
        size = size["shortest_edge"] if "shortest_edge" in size else size["height"]
    elif isinstance(size, list):
        size = size[0]
    if int(size) < 1:
        raise ValueError(f"a side of {size} pixels")
    return int(size)


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
        from transformers import AutoModelForImageTextToText

        self.model = load_model(AutoModelForImageTextToText, folder, device)
        self.processor, self.device, self.prompt = load_processor(folder), device, prompt
        self.chats = bool(prompt and getattr(self.processor, "chat_template", None))

    @torch.no_grad()
    def captions(self, pictures: Sequence[NDArray[np.uint8]]) -> list[str | None]:
        """The caption of every picture [H, W, 3] uint8, one line of at most 200 bytes, or None.

        All are looked at in one pass, but by a chat model one at a time: how many tokens a picture takes may follow its size.
        """
        images = [Image.fromarray(pixels) for pixels in pictures]
        if self.chats:
            return [caption for image in images for caption in self._generate(self._chat(image))]
        words = {"text": [self.prompt] * len(images)} if self.prompt else {}
        return self._generate(self.processor(images=images, return_tensors="pt", **words))

    def _chat(self, image: Image.Image) -> Any:
        content = [{"type": "image", "image": image}, {"type": "text", "text": self.prompt}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def _generate(self, inputs: Any) -> list[str | None]:
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

    @torch.no_grad()
    def __init__(self, folder: Path, tags: Sequence[str], device: str, threshold: float) -> None:
        from transformers import AutoModelForZeroShotImageClassification

        if not tags:
            raise SlimError(f"{folder}: a zero-shot tagger needs a list of tags: give --tags FILE")
        self.model = load_model(AutoModelForZeroShotImageClassification, folder, device)
        self.processor, self.device = load_processor(folder), device
        self.phrases, self.threshold = [tag_phrase(tag) for tag in tags], threshold
        states = []
        for start in range(0, len(tags), TAGS_AT_ONCE):
            phrases = self.phrases[start : start + TAGS_AT_ONCE]
            tokens = self.processor(text=phrases, padding=True, truncation=True, return_tensors="pt")
            states.append(_unit(self.model.get_text_features(**tokens.to(device))))
        self.texts = torch.cat(states)

    @torch.no_grad()
    def captions(self, pictures: Sequence[NDArray[np.uint8]]) -> list[str | None]:
        """The caption "a photo of a {tag}" of every picture [H, W, 3] uint8, None where no tag is likely enough."""
        images = [Image.fromarray(pixels) for pixels in pictures]
        inputs = self.processor(images=images, return_tensors="pt").to(self.device)
        scores = _unit(self.model.get_image_features(**inputs)) @ self.texts.T * self.model.logit_scale.exp()
        return [
            self.phrases[int(tag)] if float(probability) >= self.threshold else None
            for probability, tag in zip(*scores.softmax(-1).max(-1), strict=True)
        ]


def _unit(features: Any) -> Tensor:
    """Features of length 1, whichever way a release of transformers gives them."""
    states: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return states / states.norm(dim=-1, keepdim=True)


def load_captioner(
    folder: Path, config: CaptionModelConfig, tags: Sequence[str], device: str
) -> ImageToText | ZeroShotTagger:
    """The captioner in a folder: a tagger where the model compares pictures with texts and writes none."""
    from transformers.models.auto import modeling_auto

    kind = read_json(folder / "config.json").get("model_type")
    writes = kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if not writes and kind in modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return ZeroShotTagger(folder, tags, device, config.threshold)
    return ImageToText(folder, device, config.prompt)


def load_processor(folder: Path, kind: Any = None) -> Any:
    """A model's image processor and tokenizer, or what a class ``kind`` of transformers loads; ``SlimError`` where it fails."""
    from transformers import AutoProcessor

    try:
        loader = kind or AutoProcessor
        return loader.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers' errors have no common base
        raise SlimError(f"{folder}: its image processor or tokenizer cannot be loaded ({error})") from error
