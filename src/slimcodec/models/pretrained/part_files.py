"""The files of a pretrained part's folder: configuration, weights by variant, and their hashes. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimcodec.errors import SlimError
from slimcodec.files import JSON_BYTES, load_json, read_bounded
from slimcodec.models.runtime import read_header

CONFIGS = ("config.json", "scheduler_config.json")
#: what a tokenizer or an image processor is made of
OTHER_FILES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
#: tensors that only the encoder of an autoencoder runs
ENCODER_TENSORS = ("encoder.", "quant_conv.")
#: notes in a configuration that change nothing
NOTES = ("transformers_version", "torch_dtype", "dtype", "architectures")
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
BLOCK = 1 << 22
#: TAEF2 is published as two files without a configuration, which is this
TAEF2_FILES = {"encoder": "taef2_encoder.safetensors", "decoder": "taef2_decoder.safetensors"}
TAEF2_CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderTaef2",
    "latent_channels": 32,
    "block_out_channels": [64, 64, 64, 64],
}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ``SlimError`` if it cannot be read."""
    try:
        content = load_json(path)
        if not isinstance(content, dict):
            raise TypeError("it holds no JSON object")
        return content
    except (OSError, ValueError, TypeError, SlimError) as error:
        raise SlimError(f"{path}: cannot be read ({error}); get the model again") from error


def is_taef2(folder: Path) -> bool:
    """Whether a folder holds the files of TAEF2."""
    return all((folder / name).is_file() for name in TAEF2_FILES.values())


def model_settings(folder: Path, name: str = CONFIGS[0]) -> dict[str, Any]:
    """The configuration of a model or of a scheduler: a file, or what is known of a model that is published without."""
    return TAEF2_CONFIG if is_taef2(folder) else read_json(folder / name)


def weight_files(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder's weights by variant, the plain one first: {"": [...], "fp16": [...]}; {} without weights."""
    files: dict[str, list[Path]] = {}
    if is_taef2(folder):
        return {"": [folder / name for name in TAEF2_FILES.values()]}
    for path in sorted(folder.glob("*.safetensors")):
        if match := WEIGHTS.fullmatch(path.name):
            files.setdefault(match["variant"] or "", []).append(path)
    files.pop("non_ema", None)
    return dict(sorted(files.items()))


def fingerprint(folder: Path, variant: str = "") -> tuple[str, str, int]:
    """A part's ``sha256`` and ``encoder_sha256`` (see ``PartReference``), and the size of its files in bytes.

    Hashed are its configuration, the tensors of a variant of its weights, and the files of a tokenizer.
    Memory stays at a few megabytes. Raises ``SlimError`` where a file is damaged, or weights are there in pickled form only.
    """
    names = CONFIGS[:1] if is_taef2(folder) else [name for name in CONFIGS if (folder / name).exists()]
    settings = {name: _clean(model_settings(folder, name)) for name in names}
    kind = str(settings.get("config.json", {}).get("_class_name", ""))
    encoder_only = ENCODER_TENSORS if kind.startswith("Autoencoder") else ()
    decoding, encoder = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()), hashlib.sha256()
    size, split = 0, False
    for name in OTHER_FILES:
        if (path := folder / name).exists():
            digest = hashlib.sha256(read_bounded(path, JSON_BYTES)).hexdigest()
            decoding.update(f"{name} {digest}\n".encode())
            size += path.stat().st_size
    files = weight_files(folder)
    if not files and any(folder.glob("*.bin")):
        raise SlimError(
            f"{folder}: its weights are pickled (.bin), which can run code; convert them to safetensors"
        )
    tensors = sorted(entry for path in files.get(variant, []) for entry in _tensors(path))
    for name, described, path, start, length in tensors:
        chosen = encoder if name.startswith(encoder_only) else decoding
        split |= chosen is encoder
        chosen.update(f"{name} {described}\n".encode())
        with open(path, "rb") as file:
            file.seek(start)
            for offset in range(0, length, BLOCK):
                chosen.update(file.read(min(BLOCK, length - offset)))
        size += length
    return decoding.hexdigest(), encoder.hexdigest() if split else "", size


def _clean(config: Any) -> Any:
    """A configuration without notes: what begins with an underscore, but for the name of the class, and some more."""
    if not isinstance(config, dict):
        return config
    return {
        key: _clean(value)
        for key, value in config.items()
        if key == "_class_name" or not (key.startswith("_") or key in NOTES)
    }


def _tensors(path: Path) -> Iterator[tuple[str, str, Path, int, int]]:
    """Name, type and shape, file, first byte and length of every tensor of a safetensors file."""
    header, data = read_header(path)
    parts = {file: f"{part}." for part, file in TAEF2_FILES.items()}
    prefix = parts.get(path.name, "")
    try:
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if not 0 <= start <= end or data + end > path.stat().st_size:
                raise ValueError("it is cut short")
            yield prefix + name, f"{entry['dtype']} {entry['shape']}", path, data + start, end - start
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SlimError(f"{path}: not a whole safetensors file ({error}); get it again") from error


def has_part(folder: Path) -> bool:
    """Whether a folder holds a pretrained part."""
    return is_taef2(folder) or any((folder / name).is_file() for name in (*CONFIGS, "tokenizer_config.json"))


def licence_of(folder: Path) -> str:
    """The licence that a model card (README.md) in a folder names, "" where none does."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    licence = re.search(r"^license:\s*([\w.-]+)\s*$", text, re.MULTILINE)
    return licence[1] if licence else ""
