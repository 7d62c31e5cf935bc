"""Pretrained models of transformers, by folder or hub id: found, loaded whole, and fed as they were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from slimcodec.errors import SlimError
from slimcodec.files import file_sha256, is_hub_id, load_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIDE = 224


@dataclass(frozen=True)
class Preprocessing:
    """What a vision model wants to see: pictures of ``side`` pixels, each channel normalised by ``mean`` and ``std``.

    ``side`` is that of a square, or the shorter one of a picture whose shape is kept (``keep_shape``); ``bgr`` models were
    trained on blue, green and red in this order.
    """

    side: int = DEFAULT_SIDE
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    keep_shape: bool = False
    bgr: bool = False

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W], RGB in [0, 1], as the model's input of the same shape."""
        mean, std = (pictures.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((pictures.flip(1) if self.bgr else pictures) - mean) / std


def pretrained_folder(source: str | Path) -> Path:
    """The folder of a model that ``save_pretrained`` wrote: ``source`` itself, or a snapshot of that Hugging Face hub id.

    Weights are safetensors only. Raises ``SlimError`` where there is no such folder or it has no config.json.
    """
    folder = Path(source)
    if not folder.is_dir():
        if not is_hub_id(source):
            raise SlimError(
                f"{source}: no such model; give a folder that save_pretrained wrote, or a hub id like owner/name"
            )
        folder = hub_folder(str(source), "", ["*.safetensors", "*.json", "*.txt", "*.model"], ["*/*"])
    if not (folder / "config.json").is_file():
        raise SlimError(f"{source}: has no config.json; give a folder that save_pretrained wrote")
    return folder


def hub_folder(source: str, revision: str, patterns: Sequence[str], without: Sequence[str] = ()) -> Path:
    """A snapshot of a Hugging Face hub id with the files that match ``patterns``, at a commit ("" = the newest).

    Raises ``SlimError`` where the hub does not give it and the cache does not have it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                source,
                revision=revision or None,
                allow_patterns=list(patterns),
                ignore_patterns=list(without),
            )
        )
    except Exception as error:  # the hub client's errors have no common base
        at = f" at revision {revision}" if revision else ""
        reason = " ".join(str(error).split())
        raise SlimError(f"{source}{at}: no such folder, and the hub did not give it ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ``SlimError`` if it cannot be read."""
    try:
        content = load_json(path)
    except (OSError, ValueError, SlimError) as error:
        raise SlimError(f"{path}: cannot be read ({error}); get the model again") from error
    if not isinstance(content, dict):
        raise SlimError(f"{path}: holds no JSON object; get the model again")
    return content


def read_preprocessing(folder: Path) -> Preprocessing:
    """Input size and normalisation by a folder's preprocessor_config.json, or the part of its processor_config.json.

    Without either: ImageNet's mean and deviation, and the side that the model's configuration names, or 224. Raises
    ``SlimError`` where a value is not what transformers' image processors write.
    """
    settings = image_processor_settings(folder)
    try:
        size = settings.get("size") or read_json(folder / "config.json").get("image_size") or DEFAULT_SIDE
        keep_shape = isinstance(size, dict) and "shortest_edge" in size
        if settings.get("do_center_crop") and settings.get("crop_size"):
            size = settings["crop_size"]
        normalised = bool(settings.get("do_normalize", True))
        mean = settings.get("image_mean") or IMAGENET_MEAN
        std = settings.get("image_std") or IMAGENET_STD
        return Preprocessing(
            _side(size),
            tuple(map(float, mean)) if normalised else (0.0, 0.0, 0.0),
            tuple(map(float, std)) if normalised else (1.0, 1.0, 1.0),
            keep_shape,
            bool(settings.get("do_flip_channel_order")),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise SlimError(
            f"{_processor_file(folder)}: not the settings of an image processor ({error!r})"
        ) from error


def image_processor_settings(folder: Path) -> dict[str, Any]:
    """What a folder's preprocessor_config.json, or the part of its processor_config.json, says; {} without either."""
    path = _processor_file(folder)
    settings = read_json(path) if path.is_file() else {}
    return settings if path.name.startswith("pre") else settings.get("image_processor") or {}


def _processor_file(folder: Path) -> Path:
    path = folder / "preprocessor_config.json"
    return path if path.is_file() else folder / "processor_config.json"


def _side(size: Any) -> int:
    if isinstance(size, dict):
        size = size["shortest_edge"] if "shortest_edge" in size else size["height"]
    elif isinstance(size, list):
        size = size[0]
    if int(size) < 1:
        raise ValueError(f"a side of {size} pixels")
    return int(size)


def load_model(auto_class: Any, folder: Path, device: str = "cpu") -> Any:
    """A folder's model by one of transformers' ``AutoModelFor...`` classes: float32, frozen, for inference.

    Raises ``SlimError`` where transformers cannot load it, or where weights are missing: transformers would fill them with
    random numbers.
    """
    try:
        model, report = auto_class.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # transformers' errors have no common base
        raise SlimError(
            f"{folder}: {auto_class.__name__} of transformers cannot load it ({error})"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise SlimError(
            f"{folder}: no weights for {missing}, so it is not a trained {auto_class.__name__}; "
            "choose a model of that kind"
        )
    return model.float().eval().requires_grad_(False).to(device)


def class_names(model: Any) -> tuple[str, ...]:
    """A model's class names in the order of its outputs, () where it has numbered labels only."""
    names = [str(model.config.id2label[number]) for number in sorted(model.config.id2label)]
    numbered = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return () if numbered else tuple(names)


def weights_sha256(path: Path) -> str:
    """SHA-256, in hex, of a file, or of a folder's .safetensors files in the order of their names."""
    return file_sha256(*(sorted(path.glob("*.safetensors")) if path.is_dir() else [path]))
