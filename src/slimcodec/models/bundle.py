"""A bundle: a folder with a configuration and the weights of every part, identified by a hash of what decoding needs.

Weights are safetensors only. Large matrices are stored as 8-bit integers with a scale per row, the exact prior as the
integers that it is. Parts are built when they are first used, so that a part's libraries are imported only where needed.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from slimcodec.config import from_plain, to_plain
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.entropy.caption import read_vocabulary
from slimcodec.entropy.tables import SymbolTables
from slimcodec.errors import ModelMismatchError, SlimError
from slimcodec.files import atomic_write
from slimcodec.models.autoencoder import AutoencoderConfig, PatchAutoencoder
from slimcodec.models.captioner import CaptionerConfig, Tagger
from slimcodec.models.compressor import Compressor, CompressorConfig
from slimcodec.models.enhancer import EnhancerConfig
from slimcodec.models.latent_coder import LatentCoder
from slimcodec.models.prior import SCALES, ExactPrior

if TYPE_CHECKING:
    from slimcodec.models.enhancer import Enhancer
    from slimcodec.models.text import CaptionEncoder

FORMAT = 1
EMBEDDED = "slim-tiny"
#: parts of the networks that only the encoder runs: files do not depend on them
ENCODER_ONLY = {
    "autoencoder": ("encoder.", "analysis"),
    "compressor": ("analysis.", "enter.", "roi.", "log_gain", "hyper_analysis.", "log_hyper_gain"),
    "captioner-0": ("roi_",),
}
#: settings that do not change what a file means: those of the encoder, and defaults that a user may override
NOT_IN_ID = (
    "name",
    "training",
    "steps",
    "guidance",
    "text_scale",
    "autoencoder.encoder_width",
    "autoencoder.encoder_blocks",
    "compressor.analysis_blocks",
    "compressor.hyper_width",
    "compressor.roi",
    "captioners.threshold",
    "captioners.roi",
    "captioners.dropout",
)
#: matrices with fewer values stay in floating point
SMALLEST_INT8 = 2048
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
    #: strength of classifier-free guidance by the caption, 1 = off
    text_scale: float = 1.0
    #: the recipe, data and revision that made the weights; not part of the id
    training: dict[str, Any] = field(default_factory=dict)


class Bundle:
    """Configuration, vocabulary and tensors of a codec; modules are built on first use, once, whatever the thread.

    The convolutions of autoencoder, compressor and captioners run in ``dtype``; the prior is exact in any case, the enhancer
    and the text model stay in float32.
    """

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
        #: guards the building of parts, and the tokenizer, which serves one thread at a time
        self.lock = threading.RLock()
        self._built: dict[str, Any] = {}
        for number, captioner in enumerate(config.captioners):
            if captioner.tags != len(vocabulary):
                raise SlimError(
                    f"captioner {number} knows {captioner.tags} tags, the vocabulary {len(vocabulary)}"
                )

    # ---- parts -------------------------------------------------------------------------------------------------

    @property
    def autoencoder(self) -> PatchAutoencoder:
        """The latent space; its branches are in ``dtype``, its linear path in float32."""

        def build() -> PatchAutoencoder:
            module = self._fill("autoencoder", lambda: PatchAutoencoder(self.config.autoencoder))
            module.encoder.to(self.dtype)
            module.decoder.to(self.dtype)
            return module

        return self._part("autoencoder", build)

    @property
    def compressor(self) -> Compressor:
        """The latent compressor; convolutions in ``dtype``, gains in float32."""

        def build() -> Compressor:
            module = self._fill("compressor", lambda: Compressor(self.config.compressor))
            for part in (module.analysis, module.synthesis, module.hyper_analysis):
                part.to(self.dtype)
            if module.roi is not None:
                module.roi.beside.to(self.dtype)
            return module

        return self._part("compressor", build)

    @property
    def coder(self) -> LatentCoder:
        """The exact entropy stage, always in integers (held in float64)."""

        def build() -> LatentCoder:
            tensors = dict(self.stored["prior"])
            arrays = {name: tensors.pop(f"tables.{name}").numpy() for name in ("frequencies", "radii")}
            tables = SymbolTables.from_arrays(arrays)
            if len(tables) != SCALES:
                raise ValueError(f"{len(tables)} symbol tables in place of {SCALES}")
            prior = ExactPrior.from_tensors(self.config.compressor.prior, tensors).to(self.device)
            return LatentCoder(prior, tables)

        return self._part("prior", build)

    @property
    def captioners(self) -> list[Tagger]:
        """The taggers; the first one names captions, all of them guide."""

        def build() -> list[Tagger]:
            taggers = []
            for number, config in enumerate(self.config.captioners):
                tagger = self._fill(f"captioner-{number}", partial(Tagger, config))
                tagger.body.to(self.dtype)
                taggers.append(tagger)
            return taggers

        return self._part("captioners", build)

    @property
    def enhancer(self) -> Enhancer | None:
        """The diffusion UNet with its scheduler, or None in a bundle without one; imports diffusers."""
        config = self.config.enhancer
        if config is None:
            return None

        def build() -> Enhancer:
            from slimcodec.models.enhancer import Enhancer

            return self._fill("enhancer", lambda: Enhancer.build(config), meta=False)

        return self._part("enhancer", build)

    @property
    def caption_encoder(self) -> CaptionEncoder:
        """Tokenizer and text model; imports transformers."""

        def build() -> CaptionEncoder:
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

            def module() -> CaptionEncoder:
                return CaptionEncoder(fast, CLIPTextModel(CLIPTextConfig.from_dict(config)))

            return self._fill("text", module, meta=False)

        return self._part("text", build)

    def _part(self, name: str, build: Callable[[], T]) -> T:
        with self.lock:
            if name not in self._built:
                try:
                    # weights must serve guidance's gradients also where the caller runs in inference mode
                    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                        self._built[name] = build()
                except (KeyError, ValueError, TypeError, RuntimeError) as error:
                    message = f"the bundle's part {name} does not fit its configuration: {error}"
                    raise SlimError(message) from error
            part: T = self._built[name]
            return part

    def _fill(self, part: str, build: Callable[[], T], meta: bool = True) -> T:
        # building on the meta device skips initial values that would be overwritten
        with torch.device("meta" if meta else "cpu"):
            module: Any = build()
        module.load_state_dict(_from_storage(self.stored[part]), strict=True, assign=meta)
        # channels-last convolutions are faster on processors and on GPUs
        module.requires_grad_(False).eval().to(self.device, memory_format=torch.channels_last)
        filled: T = module
        return filled

    # ---- identity ----------------------------------------------------------------------------------------------

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decoding depends on: weights, tables, vocabulary and the parts' configuration."""
        # as written: a setting that a later release adds must not change the id of an older bundle
        settings = json.loads(json.dumps(self.described))
        for path in NOT_IN_ID:
            places = [settings]
            *parents, last = path.split(".")
            for name in parents:
                places = [entry for place in places for entry in _children(place.get(name))]
            for place in places:
                place.pop(last, None)
        digest = hashlib.sha256(
            json.dumps([FORMAT, settings, self.text, self.vocabulary], sort_keys=True).encode()
        )
        return self._with_weights(digest, ENCODER_ONLY)

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of all weights, those of the encoder included: what loading checks."""
        return self._with_weights(hashlib.sha256(), {})

    def _with_weights(self, digest: Any, left_out: dict[str, tuple[str, ...]]) -> str:
        for part, state in sorted(self.stored.items()):
            for name, value in sorted(state.items()):
                if name.startswith(left_out.get(part, ())):
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
            "weights_sha256": self.weights_sha256,
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
        if not isinstance(described, dict) or described.pop("format", None) != FORMAT:
            raise SlimError(f"{folder}: this release reads bundles of format {FORMAT} only; update slimcodec")
        try:
            hashes = {name: str(described.pop(name)) for name in ("bundle_id", "sha256", "weights_sha256")}
            tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
            vocabulary = read_vocabulary(folder / "vocabulary.txt")
            text = None
            if (folder / "text.json").exists():
                content = json.loads((folder / "text.json").read_text(encoding="utf-8"))
                text = (content["tokenizer"], content["model"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise SlimError(f"{folder}: the bundle is damaged ({error!r}); get it again") from error
        config = from_plain(BundleConfig, described, f"{folder / 'config.json'}")
        bundle = cls(config, tensors, vocabulary, text, device, dtype, described)
        for name in ("sha256", "weights_sha256"):
            if getattr(bundle, name) != hashes[name]:
                raise ModelMismatchError(
                    f"{folder}: this is not bundle {hashes['bundle_id']} as it was saved: its {name} is "
                    f"{getattr(bundle, name)[:16]}, expected {hashes[name][:16]}; get the bundle again",
                    hashes["bundle_id"],
                )
        return bundle


def _children(value: Any) -> list[dict[str, Any]]:
    """The sections that a setting's name stands for: one, or one for each entry of a list."""
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]


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
    """Large weights as int8 with a scale per row; what already is stored so stays as it is.

    The autoencoder's linear path, gains and other tables are no ``.weight`` and keep their precision.
    """
    stored: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        # scales are vectors and int8 is no float, so stored tensors pass unchanged
        weight = name.endswith(".weight") and value.is_floating_point() and value.dim() >= 2
        if not weight or value.numel() < SMALLEST_INT8:
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
