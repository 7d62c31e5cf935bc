"""A bundle: a folder with a configuration and the weights of every part, identified by a hash of what decoding needs.

Weights are safetensors only. Large matrices are stored as 8-bit integers with a scale per row, the exact prior as the
integers that it is. Parts are built when they are first used, so that a part's libraries are imported only where needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from slimcodec.config import from_plain, to_plain
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.entropy.caption import read_vocabulary
from slimcodec.entropy.tables import SymbolTables
from slimcodec.errors import ModelMismatchError, SlimError
from slimcodec.files import atomic_write
from slimcodec.models.autoencoder import AutoencoderConfig, PatchAutoencoder
from slimcodec.models.captioner import CaptionerConfig, LatentTagger
from slimcodec.models.compressor import Compressor, CompressorConfig
from slimcodec.models.enhancer import EnhancerConfig
from slimcodec.models.latent_coder import LatentCoder
from slimcodec.models.prior import ExactPrior

if TYPE_CHECKING:
    from slimcodec.models.enhancer import Enhancer
    from slimcodec.models.text import CaptionEncoder

FORMAT = 1
EMBEDDED = "slim-tiny"
#: parts of the networks that only the encoder runs: files do not depend on them
ENCODER_ONLY = {
    "autoencoder": ("encoder.", "analysis"),
    "compressor": ("analysis.", "enter.", "log_gain", "hyper_analysis.", "log_hyper_gain"),
}
#: settings that a user may change without changing what a file means
NOT_IN_ID = ("name", "training", "steps", "guidance")
#: matrices with fewer values stay in floating point
SMALLEST_INT8 = 2048
#: the autoencoder's linear path keeps its precision
KEPT_IN_FLOAT = ("analysis", "synthesis")
T = TypeVar("T")


@dataclass(frozen=True)
class BundleConfig:
    """Configuration of every part, and what made the bundle."""

    name: str = EMBEDDED
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    captioners: tuple[CaptionerConfig, ...] = ()
    enhancer: EnhancerConfig | None = None
    #: denoising steps and strength of caption guidance where the user says nothing
    steps: int = 1
    guidance: float = 0.0
    #: the recipe, data and revision that made the weights; not part of the id
    training: dict[str, Any] = field(default_factory=dict)


class Bundle:
    """Configuration, vocabulary and tensors of a codec; modules are built on first use, on ``device`` in ``dtype``."""

    def __init__(
        self,
        config: BundleConfig,
        tensors: dict[str, dict[str, Tensor]],
        vocabulary: tuple[str, ...],
        text: tuple[Any, dict[str, Any]] | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        described: dict[str, Any] | None = None,
    ) -> None:
        """``tensors`` maps a part's name to its state, in floating point or as stored; ``text`` is a tokenizer's JSON and a
        text model's configuration; ``described`` is ``config`` as it was read from a file, by default as it would be written.
        """
        self.config, self.vocabulary, self.text = config, vocabulary, text
        self.described = to_plain(config) if described is None else described
        self.stored = {part: _to_storage(state) for part, state in tensors.items()}
        self.device, self.dtype = torch.device(device), dtype

    # ---- parts -------------------------------------------------------------------------------------------------

    @cached_property
    def autoencoder(self) -> PatchAutoencoder:
        """The latent space; its branches are in ``dtype``, its linear path in float32."""
        module = self._fill("autoencoder", lambda: PatchAutoencoder(self.config.autoencoder))
        module.encoder.to(self.dtype)
        module.decoder.to(self.dtype)
        return module

    @cached_property
    def compressor(self) -> Compressor:
        """The latent compressor; convolutions in ``dtype``, gains in float32."""
        module = self._fill("compressor", lambda: Compressor(self.config.compressor))
        for part in (module.analysis, module.synthesis, module.hyper_analysis):
            part.to(self.dtype)
        return module

    @cached_property
    def coder(self) -> LatentCoder:
        """The exact entropy stage, always in integers (held in float64) on the CPU or the device."""
        tensors = dict(self.stored["prior"])
        arrays = {name: tensors.pop(f"tables.{name}").numpy() for name in ("frequencies", "radii")}
        prior = ExactPrior.from_tensors(self.config.compressor.prior, tensors).to(self.device)
        return LatentCoder(prior, SymbolTables.from_arrays(arrays))

    @cached_property
    def captioners(self) -> list[LatentTagger]:
        """The taggers; the first one names captions, all of them guide."""
        taggers = []
        for number, config in enumerate(self.config.captioners):
            tagger = self._fill(f"captioner-{number}", partial(LatentTagger, config))
            tagger.body.to(self.dtype)
            taggers.append(tagger)
        return taggers

    @cached_property
    def enhancer(self) -> Enhancer | None:
        """The diffusion UNet with its scheduler, or None in a bundle without one; imports diffusers."""
        from slimcodec.models.enhancer import Enhancer

        config = self.config.enhancer
        if config is None:
            return None
        return self._fill("enhancer", lambda: Enhancer.build(config), meta=False)

    @cached_property
    def caption_encoder(self) -> CaptionEncoder:
        """Tokenizer and text model; imports transformers."""
        from tokenizers import Tokenizer
        from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

        from slimcodec.models.text import CaptionEncoder

        if self.text is None:
            raise SlimError(f"the bundle {self.config.name} has no text encoder")
        tokenizer, config = self.text
        fast = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer)),
            pad_token="<pad>",
            bos_token="<start>",
            eos_token="<end>",
        )
        return self._fill(
            "text", lambda: CaptionEncoder(fast, CLIPTextModel(CLIPTextConfig.from_dict(config))), meta=False
        )

    def _fill(self, part: str, build: Callable[[], T], meta: bool = True) -> T:
        # building on the meta device skips initial values that would be overwritten
        with torch.device("meta" if meta else "cpu"):
            module: Any = build()
        try:
            module.load_state_dict(_from_storage(self.stored[part]), strict=True, assign=meta)
        except (KeyError, RuntimeError) as error:
            raise SlimError(f"the bundle's part {part} does not fit its configuration: {error}") from error
        # channels-last convolutions are faster on processors and on GPUs
        module.requires_grad_(False).eval().to(self.device, memory_format=torch.channels_last)
        filled: T = module
        return filled

    # ---- identity ----------------------------------------------------------------------------------------------

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decoding depends on: weights, tables, vocabulary and the parts' configuration."""
        digest = hashlib.sha256()
        # as written: a setting that a later release adds must not change the id of an older bundle
        described = {key: value for key, value in self.described.items() if key not in NOT_IN_ID}
        digest.update(json.dumps([FORMAT, described, self.text, self.vocabulary], sort_keys=True).encode())
        for part, state in sorted(self.stored.items()):
            for name, value in sorted(state.items()):
                if name.startswith(ENCODER_ONLY.get(part, ())):
                    continue
                digest.update(f"{part}/{name} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def bundle_id(self) -> str:
        """The first 4 bytes of the hash, as 8 hex digits: what a file carries."""
        return self.sha256[:8]

    # ---- files -------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the bundle to a folder (made if missing)."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for part, state in self.stored.items():
            atomic_write(path / f"{part}.safetensors", save(state))
        atomic_write(path / "vocabulary.txt", "".join(f"{tag}\n" for tag in self.vocabulary).encode())
        if self.text is not None:
            content = {"tokenizer": self.text[0], "model": self.text[1]}
            atomic_write(path / "text.json", json.dumps(content).encode())
        described = {
            "format": FORMAT,
            "bundle_id": self.bundle_id,
            "sha256": self.sha256,
            **self.described,
        }
        # last, so that a folder with a configuration is whole
        atomic_write(path / "config.json", (json.dumps(described, indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(
        cls, source: str | Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Bundle:
        """Loads a bundle: the embedded one (None or "slim-tiny"), a folder, or a Hugging Face hub id.

        Loading is strict: a missing, extra or altered tensor is an error (``ModelMismatchError`` where the hash differs).
        """
        folder = _locate(source)
        try:
            described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SlimError(f"{folder}: not a bundle, its config.json cannot be read ({error})") from error
        if described.pop("format", None) != FORMAT:
            raise SlimError(f"{folder}: this release reads bundles of format {FORMAT} only; update slimcodec")
        bundle_id, sha256 = described.pop("bundle_id"), described.pop("sha256")
        config = from_plain(BundleConfig, described, "config.json")
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        text = None
        if (folder / "text.json").exists():
            content = json.loads((folder / "text.json").read_text(encoding="utf-8"))
            text = (content["tokenizer"], content["model"])
        bundle = cls(
            config, tensors, read_vocabulary(folder / "vocabulary.txt"), text, device, dtype, described
        )
        if bundle.sha256 != sha256:
            raise ModelMismatchError(
                f"{folder}: the weights are not those of bundle {bundle_id} (hash {bundle.sha256[:16]}, expected "
                f"{sha256[:16]}); get the bundle again",
                bundle_id,
            )
        return bundle


def _locate(source: str | Path | None) -> Path:
    if source is None or source == EMBEDDED:
        return EMBEDDED_BUNDLE
    if Path(source).is_dir():
        return Path(source)
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise SlimError(f"{source}: no such bundle; give {EMBEDDED}, a folder, or a hub id like owner/name")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.safetensors", "*.json", "vocabulary.txt"]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:  # the hub client's errors have no common base
        raise SlimError(f"{source}: no such folder, and the hub did not give it ({error})") from error


def _rows(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0],) + (1,) * (x.dim() - 1)


def _to_storage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large float matrices as int8 with a scale per row; what already is stored so stays as it is."""
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        # scales are vectors and int8 is no float, so stored tensors pass unchanged
        matrix = value.is_floating_point() and value.dim() >= 2 and value.numel() >= SMALLEST_INT8
        if not matrix or name in KEPT_IN_FLOAT:
            stored[name] = value
            continue
        scale = value.float().flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        stored[f"{name}:int8"] = (value.float() / scale.reshape(_rows(value))).round().to(torch.int8)
        stored[f"{name}:scale"] = scale
    return stored


def _from_storage(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(":scale"):
            continue
        if name.endswith(":int8"):
            base = name.removesuffix(":int8")
            tensors[base] = value.float() * stored[f"{base}:scale"].reshape(_rows(value))
        else:
            tensors[name] = value
    return tensors
