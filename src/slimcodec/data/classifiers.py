"""Classifiers that judge decoded pictures: ONNX files, TorchScript files, transformers folders and hub ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimcodec.errors import SlimError
from slimcodec.evaluation.protocol import square
from slimcodec.images import Pixels

#: outputs of the ImageNet classifiers that have a background class in front
WITH_BACKGROUND = 1001
#: keys of the JSON file beside a classifier
SIDECAR = ("side", "mean", "std")
#: side where a network takes any size and nothing else is said
DEFAULT_SIDE = 224


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input: resized antialiased bilinear, RGB, (x / 255 - mean) / std.

    ``side``: input side in pixels, or None for a network that takes the picture as it is. ``crop``: centre square after the
    short side is resized to ``side / crop_share`` (protocol ``full``); without it the whole picture is resized to the square.
    """

    side: int | None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop: bool = False
    crop_share: float = 1.0


@dataclass(frozen=True)
class Classifier:
    """A network that scores classes; ``scores`` maps an input [1, 3, H, W] float32 to logits [classes].

    ``sha256``: of the file, or of the tensors of a transformers model.
    """

    name: str
    sha256: str
    preprocessing: Preprocessing
    scores: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    classes: int

    def describe(self) -> dict[str, Any]:
        """What a result says of this classifier."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "classes": self.classes,
            "preprocessing": asdict(self.preprocessing),
        }


def judge(classifier: Classifier, pixels: Pixels, label: int) -> tuple[int, int]:
    """The class that is named first, and the rank of ``label``, 0 being first; among equals the lower class is first."""
    scores = classifier.scores(network_input(pixels, classifier.preprocessing))
    if not np.isfinite(scores).all():
        raise SlimError(f"{classifier.name}: its scores are not finite; the file may be damaged")
    rank = int((scores > scores[label]).sum() + (scores[:label] == scores[label]).sum())
    return int(scores.argmax()), rank


def network_input(pixels: Pixels, how: Preprocessing) -> NDArray[np.float32]:
    """[H, W, 3] uint8 to [1, 3, S, S] float32 as ``how`` says."""
    picture = Image.fromarray(pixels)
    if how.side is not None and how.crop:
        # the short side first, then the crop: what was cut off stays the same for every size
        picture = square(picture, round(how.side / how.crop_share))
        margin = (picture.width - how.side) // 2
        picture = picture.crop((margin, margin, margin + how.side, margin + how.side))
    elif how.side is not None and picture.size != (how.side, how.side):
        picture = picture.resize((how.side, how.side), Image.Resampling.BILINEAR)
    scaled = np.asarray(picture, np.float32) / 255
    normal = (scaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], dtype=np.float32)


def load_classifier(source: str, protocol: str = "icm-256") -> Classifier:
    """A classifier from an ONNX file, a TorchScript file (.pt, .pth, .ts), a transformers folder, or a hub id.

    ``source@SIDE`` sets the input side. Beside a file, ``FILE.json`` may hold "side", "mean" and "std" (of RGB in 0..1);
    without it pictures are given as RGB in [0, 1], at the side that the ONNX file states, else 224. Under protocol
    ``icm-256`` the whole square is the input (a transformers model gets it in its coded size, no 224 crop), under ``full``
    the centre square. Of 1001 scores the first, background, is left out.

    Raises ``SlimError`` for what is missing, unreadable or no classifier.
    """
    name, side = _side_of(source)
    path = Path(name)
    full = protocol == "full"
    if path.suffix == ".onnx":
        raw, how = _onnx(path, side, full)
    elif path.suffix in {".pt", ".pth", ".ts"}:
        raw, how = _torchscript(path, side, full)
    else:
        raw, how, digest = _transformers(name, side, full)
        return _probed(Path(name).name if path.is_dir() else name, digest, how, raw)
    return _probed(path.name, file_sha256(path), how, raw)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def onnx_session(path: str | Path) -> Any:
    """An onnxruntime session on the processor with one thread; ``SlimError`` for a file that is missing or no model."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise SlimError("ONNX files need onnxruntime: pip install 'slimcodec[eval]'") from error
    if not Path(path).is_file():
        raise SlimError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise SlimError(f"{path}: onnxruntime cannot load it: {reason}") from error


Raw = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _side_of(source: str) -> tuple[str, int | None]:
    name, at, side = source.rpartition("@")
    if at and side.isdecimal() and int(side):
        return name, int(side)
    return source, None


def _sidecar(path: Path) -> dict[str, Any]:
    beside = Path(f"{path}.json")
    if not beside.is_file():
        return {}
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or set(found) - set(SIDECAR):
            raise ValueError
        return {
            key: int(value) if key == "side" else tuple(map(float, value)) for key, value in found.items()
        }
    except (ValueError, TypeError) as error:
        raise SlimError(
            f"{beside}: write a JSON object with some of {', '.join(SIDECAR)}, such as "
            '{"side": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
        ) from error


def _onnx(path: Path, side: int | None, full: bool) -> tuple[Raw, Preprocessing]:
    session = onnx_session(path)
    entry = session.get_inputs()[0]
    shape = entry.shape
    if len(shape) != 4 or entry.type != "tensor(float)" or (shape[3] == 3 and shape[1] != 3):
        raise SlimError(
            f"{path}: its input is {entry.type} {shape}; a classifier takes float32 pictures [B, 3, H, W]"
        )
    beside = _sidecar(path)
    stated = shape[3] if isinstance(shape[3], int) else None
    if stated and side and stated != side:
        raise SlimError(f"{path}: it takes {stated}x{stated} pictures, not {side}x{side}")
    beside["side"] = side or stated or beside.get("side", DEFAULT_SIDE)

    def raw(x: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, {entry.name: x})[0]
        return found

    return raw, Preprocessing(**beside, crop=full)


def _torchscript(path: Path, side: int | None, full: bool) -> tuple[Raw, Preprocessing]:
    import torch

    if not path.is_file():
        raise SlimError(f"{path}: no such file")
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise SlimError(f"{path}: no TorchScript module; export it with torch.jit.save") from error
    beside = _sidecar(path)
    beside["side"] = side or beside.get("side", DEFAULT_SIDE)

    def raw(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = module(torch.from_numpy(x))
        scores = found[0] if isinstance(found, (tuple, list)) else found
        result: NDArray[np.float32] = scores.float().numpy()
        return result

    return raw, Preprocessing(**beside, crop=full)


def _transformers(name: str, side: int | None, full: bool) -> tuple[Raw, Preprocessing, str]:
    import torch
    import transformers
    from transformers.utils.hub import cached_file

    path = Path(name)
    # asking a hub for what must be a file takes long, and its answer says nothing about the file
    if not path.is_dir() and (
        path.is_absolute() or name.startswith(".") or (path.suffix and len(path.parts) == 1)
    ):
        raise SlimError(f"{name}: no such folder; give an ONNX or TorchScript file, a folder, or a hub id")
    try:
        settings = json.loads(Path(str(cached_file(name, "preprocessor_config.json"))).read_text("utf-8"))
        model = transformers.AutoModelForImageClassification.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SlimError(
            f"{name}: no ONNX or TorchScript file, and not a transformers classifier that can be loaded: {reason}"
        ) from error
    model = model.eval().float()

    def raw(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = model(torch.from_numpy(x)).logits.numpy()
        return result

    stated, crop, share = stated_size(settings)
    normalise = settings.get("do_normalize", True)
    how = Preprocessing(
        side=side or (stated if full else None),
        mean=tuple(settings.get("image_mean", (0.0,) * 3)) if normalise else (0.0,) * 3,
        std=tuple(settings.get("image_std", (1.0,) * 3)) if normalise else (1.0,) * 3,
        crop=full and crop,
        crop_share=share if full else 1.0,
    )
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return raw, how, digest.hexdigest()


def stated_size(settings: dict[str, Any]) -> tuple[int, bool, float]:
    """Input side, whether it is a centre crop, and its share of the resized short side, of a preprocessor_config.json."""
    size, crop = settings.get("size") or DEFAULT_SIDE, settings.get("crop_size")
    if isinstance(size, dict) and "shortest_edge" not in size:
        # the whole picture is squeezed to a square, as vision transformers take it
        return int(size.get("height", DEFAULT_SIDE)), False, 1.0
    shortest = int(size["shortest_edge"] if isinstance(size, dict) else size)
    if crop and settings.get("do_center_crop", True):
        side = int(crop["height"] if isinstance(crop, dict) else crop)
        return side, True, side / shortest
    return shortest, True, float(settings.get("crop_pct") or 1.0)


def _probed(name: str, sha256: str, how: Preprocessing, raw: Raw) -> Classifier:
    side = how.side or 256
    try:
        found = np.asarray(raw(np.full((1, 3, side, side), 0.5, np.float32)))
    except SlimError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        raise SlimError(f"{name}: it cannot judge a picture of {side}x{side} pixels: {reason}") from error
    if found.ndim != 2 or found.shape[0] != 1 or found.shape[1] < 2:
        raise SlimError(
            f"{name}: gives {list(found.shape)} for a picture; a classifier gives scores [1, classes]"
        )
    skip = 1 if found.shape[1] == WITH_BACKGROUND else 0

    def scores(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(raw(x))[0, skip:]

    return Classifier(name, sha256, how, scores, found.shape[1] - skip)
