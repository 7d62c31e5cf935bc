"""Tiny pretrained models with random weights, saved as diffusers and transformers save the real ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderTiny,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
)

from slimcodec.data.sources import generated_rows
from slimcodec.models.pretrained.part_files import TAEF2_FILES
from slimcodec.models.pretrained.taef2 import Taef2

#: the shapes of Stable Diffusion 1.x, 2.x, Turbo, LCM, SDXL
FAMILIES = ("sd1", "sd2", "turbo", "lcm", "sdxl")
TEXT_WIDTH = 16
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of single letters and a few words."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = [("c", "a"), ("ca", "t</w>"), ("p", "h"), ("o", "f</w>")]
    vocabulary += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
    )
    made: Any = CLIPTokenizer
    return made.from_pretrained(folder, model_max_length=20)


def text_model(size: int, kind: Any = CLIPTextModel, width: int = TEXT_WIDTH) -> Any:
    """A CLIP text model of two layers for a vocabulary of ``size``."""
    return kind(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=20,
            projection_dim=12,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )


def autoencoder(scale: float = 0.18215) -> Any:
    """An AutoencoderKL at 1/8 of the resolution with four channels."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=scale,
    )


def fit(vae: Any, steps: int = 60) -> None:
    """Trains an autoencoder on drawn pictures until its latents mean something, and gives them unit variance."""
    rows = [row["image"]["bytes"] for row in generated_rows(16)]
    pictures = torch.stack([torch.tensor(np.asarray(Image.open(io.BytesIO(data)))) for data in rows])
    pictures = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(0, len(pictures), (4,), generator=draws)
        x, y = torch.randint(0, 96, (2,), generator=draws).tolist()
        batch = pictures[chosen, :, y : y + 64, x : x + 64]
        latents = vae.encode(batch).latent_dist.mode()
        loss = (vae.decode(latents).sample - batch).square().mean() + 1e-3 * latents.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vae.register_to_config(scaling_factor=1 / float(latents.std()))


def tiny_autoencoder() -> Any:
    """An AutoencoderTiny at 1/8 of the resolution with four channels."""
    channels = (8, 8, 8, 8)
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


def flux2_autoencoder() -> Any:
    """An AutoencoderKLFlux2 at 1/8 of the resolution with four channels and statistics of its own."""
    torch.manual_seed(7)
    vae: Any = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return vae.eval()


def save_taef2(folder: Path) -> Path:
    """Saves a TAEF2 with random weights as its two files, in half precision."""
    torch.manual_seed(8)
    folder.mkdir(parents=True)
    model = Taef2()
    for part, name in TAEF2_FILES.items():
        tensors = {key: value.half().contiguous() for key, value in getattr(model, part).state_dict().items()}
        save_file(tensors, folder / name)
    return folder


def unet(text_width: int, **settings: Any) -> Any:
    """A UNet2DConditionModel shaped like Stable Diffusion's, two resolutions deep."""
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": text_width,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
        }
        | settings
    )


def pipeline(family: str, folder: Path) -> Any:
    """A pipeline of a family, its tokenizer's files below ``folder``."""
    torch.manual_seed(FAMILIES.index(family))
    words = tokenizer(folder / "words")
    if family == "sdxl":
        return StableDiffusionXLPipeline(
            vae=autoencoder(0.13025),
            text_encoder=text_model(len(words)),
            text_encoder_2=text_model(len(words), CLIPTextModelWithProjection),
            tokenizer=words,
            tokenizer_2=words,
            unet=unet(
                2 * TEXT_WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=12 + 6 * 8,
                use_linear_projection=True,
            ),
            scheduler=EulerAncestralDiscreteScheduler(**NOISE, timestep_spacing="trailing"),
        )
    schedulers: dict[str, Any] = {
        "sd1": PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1),
        "sd2": DDIMScheduler(**NOISE, prediction_type="v_prediction", steps_offset=1, clip_sample=False),
        "turbo": EulerDiscreteScheduler(**NOISE, timestep_spacing="trailing"),
        "lcm": LCMScheduler(**NOISE),
    }
    settings: dict[str, Any] = {"sd2": {"use_linear_projection": True}, "lcm": {"time_cond_proj_dim": 8}}
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_model(len(words)),
        tokenizer=words,
        unet=unet(TEXT_WIDTH, **settings.get(family, {})),
        scheduler=schedulers[family],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(family: str, folder: Path, *, fitted: bool = False) -> Path:
    """Saves a pipeline of a family to ``folder / family`` and returns that folder; ``fitted``: its autoencoder has learnt."""
    made = pipeline(family, folder / f"{family}-words")
    if fitted:
        fit(made.vae)
    made.save_pretrained(folder / family)
    return folder / family


def save_blip(folder: Path) -> list[str]:
    """Saves a BLIP captioner to a folder; returns the words that it knows."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        *["a", "photo", "of", "cat", "dog", "cup"],
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    vocabulary: Any = str(folder / "vocab.txt")
    BertTokenizer(vocabulary, additional_special_tokens=["[DEC]"]).save_pretrained(folder)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 40}
    special = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(3)
    config = BlipConfig(
        text_config=layers | text | special,
        vision_config=layers | {"image_size": 32, "patch_size": 16, "initializer_range": 0.5},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    model = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.text_decoder.parameters():
            parameter.mul_(5)
        model.text_decoder.cls.predictions.bias[:6] = -100
    model.save_pretrained(folder)
    settings = {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(settings | {"processor_class": "BlipProcessor"})
    )
    return words[6:]


LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
#: token numbers of ``word_tokenizer``, as models want them named
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WORDS = ("a", "photo", "of", "cat", "dog", "cup", "what", "does", "the", "image", "describe", "?")


def word_tokenizer(**settings: Any) -> Any:
    """A tokenizer of whole words, after the special tokens of ``SPECIAL``, one for what is unknown, and one for a picture."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    numbers = {word: number for number, word in enumerate([*special, *WORDS])}
    words = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = Lowercase(), Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names, **settings)


def save_blip2(folder: Path) -> None:
    """Saves a BLIP-2 captioner, a vision model, a Q-Former and OPT, with its processor to a folder; it knows ``WORDS``."""
    size = 5 + len(WORDS)
    torch.manual_seed(3)
    config = Blip2Config(
        vision_config=LAYERS | {"image_size": 32, "patch_size": 16, "initializer_range": 0.5},
        qformer_config=LAYERS
        | {"vocab_size": size, "encoder_hidden_size": 16, "cross_attention_frequency": 1}
        | {"initializer_range": 0.5},
        text_config={"model_type": "opt", "vocab_size": size, "hidden_size": 16, "word_embed_proj_dim": 16}
        | {"ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 80}
        | {"init_std": 0.5, **SPECIAL},
        num_query_tokens=4,
        image_token_index=4,
        initializer_range=0.5,
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(images, word_tokenizer(), num_query_tokens=4).save_pretrained(folder)


def save_florence2(folder: Path) -> None:
    """Saves a Florence-2 captioner, DaViT and BART, with its processor to a folder; it knows ``WORDS``."""
    from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

    torch.manual_seed(3)
    config = Florence2Config(
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
        }
        | {"patch_prenorm": [False, True], "embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2]}
        | {"window_size": 2, "projection_dim": 16, "max_temporal_embeddings": 4}
        | {"max_position_embeddings": 8, "initializer_range": 0.5},
        text_config={"model_type": "bart", "vocab_size": 5 + len(WORDS), "d_model": 16, "init_std": 0.5}
        | {f"{part}_layers": 1 for part in ("encoder", "decoder")}
        | {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
        | {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
        | {"max_position_embeddings": 80, "decoder_start_token_id": 2, "forced_eos_token_id": 2, **SPECIAL},
        image_token_id=4,
    )
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    images: Any = CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    # 4x4 places after two strides, and their mean
    images.image_seq_length = 17
    words = word_tokenizer(extra_special_tokens={"image_token": "<image>"})
    Florence2Processor(images, words).save_pretrained(folder)


def save_clip(folder: Path) -> None:
    """Saves a CLIP model of pictures and texts to a folder."""
    torch.manual_seed(5)
    words = tokenizer(folder)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 20, "eos_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config=layers | text | {"initializer_range": 0.5},
        vision_config=layers | {"image_size": 32, "patch_size": 16, "initializer_range": 0.5},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}}
    settings |= {"crop_size": {"height": 32, "width": 32}, "processor_class": "CLIPProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
