"""A bundle: a folder with a configuration and the weights of every part, identified by a hash of what decoding needs.

Weights are safetensors only. Large matrices are stored as 8-bit integers with a scale per row, the exact prior as the
integers that it is. Parts are built when they are first used, so that a part's libraries are imported only where needed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from slimcodec.config import check_sizes, from_plain, to_plain
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.entropy.caption import read_vocabulary
from slimcodec.entropy.tables import SymbolTables
from slimcodec.errors import ModelMismatchError, SlimError
from slimcodec.files import atomic_write, inside, load_json
from slimcodec.models.autoencoder import AutoencoderConfig, PatchAutoencoder
from slimcodec.models.captioner import CaptionerConfig, Tagger
from slimcodec.models.compressor import Compressor, CompressorConfig
from slimcodec.models.enhancer import EnhancerConfig
from slimcodec.models.fused import fuse
from slimcodec.models.latent_codec import LatentCodec
from slimcodec.models.pretrained.autoencoder import LatentSpace
from slimcodec.models.pretrained.captioner import CaptionModelConfig
from slimcodec.models.pretrained.hub import hub_folder, is_hub_id
from slimcodec.models.pretrained.pipeline import LdmConfig
from slimcodec.models.pretrained.references import FoundPart, PartReference, find_part
from slimcodec.models.prior import SCALES, ExactPrior, float_prior
from slimcodec.models.storage import from_storage, read_tensors, stored_shapes, to_storage

if TYPE_CHECKING:
    from slimcodec.models.enhancer import Enhancer
    from slimcodec.models.pretrained.captioner import ImageToText, ZeroShotTagger
    from slimcodec.models.pretrained.denoiser import Denoiser
    from slimcodec.models.pretrained.offload import Offload
    from slimcodec.models.pretrained.prompt import PromptEncoder
    from slimcodec.models.text import CaptionEncoder

FORMAT = 1
EMBEDDED = "slim-tiny"
#: most bytes of a bundle's config.json
CONFIG_BYTES = 1 << 22
#: parts of the networks that only the encoder runs: files do not depend on them
ENCODER_ONLY = {
    "autoencoder": ("encoder.", "analysis"),
    "compressor": ("analysis", "enter.", "log_gain", "hyper_analysis.", "log_hyper_gain"),
    "captioner-0": ("roi_",),
}
#: settings that do not change what a file means: those of the encoder, and defaults that a user may override
NOT_IN_ID = (
    "name",
    "training",
    "steps",
    "guidance",
    "machine_guidance",
    "text_scale",
    "autoencoder.encoder_width",
    "autoencoder.encoder_blocks",
    "compressor.analysis_blocks",
    "compressor.hyper_width",
    "captioners.threshold",
    "captioners.roi",
    "captioners.dropout",
    # where a pretrained part comes from: what it is, its hash says
    "caption_model",
    *(f"ldm.parts.{entry.name}" for entry in fields(PartReference) if entry.name not in ("name", "sha256")),
)
#: settings that are written only where they are set: bundles of older releases are without them
OPTIONAL = ("ldm", "caption_model")
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
    #: strength of caption guidance in the preset "machine"
    machine_guidance: float = 0.0
    #: strength of classifier-free guidance by the caption, 1 = off
    text_scale: float = 1.0
    #: the recipe, data and revision that made the weights; not part of the id
    training: dict[str, Any] = field(default_factory=dict)
    #: the pretrained model whose latent space, UNet and text encoder stand in for ours
    ldm: LdmConfig | None = None
    #: a pretrained model that names captions, in place of the captioners
    caption_model: CaptionModelConfig | None = None

    def described(self) -> dict[str, Any]:
        """The configuration as it is written to a file."""
        plain = to_plain(self)
        for name in OPTIONAL:
            if plain[name] is None:
                del plain[name]
        if self.ldm is not None:
            del plain["autoencoder"]
        return plain


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
        *,
        folder: Path | None = None,
        base: str | Path | None = None,
    ) -> None:
        """``tensors`` maps a part's name to its state, in floating point or as stored; ``text`` is a tokenizer's JSON and a
        text model's configuration; ``described`` is ``config`` as it was read from a file, by default as it would be written.
        ``folder``, in which the bundle lies, and ``base`` are where pretrained parts are looked for first (see ``find_part``).
        """
        self.config, self.vocabulary, self.text = config, vocabulary, text
        self.described = config.described() if described is None else described
        self.folder, self.base = folder, base
        self.stored = {part: to_storage(state) for part, state in tensors.items()}
        self.device, self.dtype = torch.device(device), dtype
        #: guards the building of parts, and the tokenizer, which serves one thread at a time
        self.lock = threading.RLock()
        self._built: dict[str, Any] = {}
        self.offload: Offload | None = None
        for number, captioner in enumerate(config.captioners):
            if captioner.tags != len(vocabulary):
                raise SlimError(
                    f"captioner {number} knows {captioner.tags} tags, the vocabulary {len(vocabulary)}"
                )

    # ---- parts -------------------------------------------------------------------------------------------------

    def offload_parts(self) -> None:
        """From now on pretrained parts lie in the computer's memory, and one at a time comes to the device when it runs.

        Slower, for a device that does not hold them all. Raises ``SlimError`` for a bundle without pretrained parts, or
        without Accelerate.
        """
        if self.config.ldm is None:
            raise SlimError(f"offload moves pretrained parts, and {self.config.name} has none; leave it out")
        try:
            from slimcodec.models.pretrained.offload import Offload
        except ImportError as error:
            raise SlimError(f"offload needs {error.name}: install it with pip install accelerate") from error
        self.offload = Offload(self.device)

    def _place(self, module: Any) -> None:
        """Puts a pretrained module where it runs: on the device, or offloaded; convolutions in channels-last."""
        module.to(memory_format=torch.channels_last)
        if self.offload is None:
            module.to(self.device)
        else:
            self.offload.add(module)

    @property
    def autoencoder(self) -> LatentSpace:
        """The latent space: ours, its branches in ``dtype`` and its linear path in float32, or the pretrained model's."""

        def build() -> LatentSpace:
            if self.config.ldm is not None:
                from slimcodec.models.pretrained.pipeline import load_autoencoder

                space = load_autoencoder(self.found("vae"), self.dtype)
                if self.offload is not None:
                    # memory is what is short: of a batch, one picture at a time
                    space.vae.enable_slicing()
                self._place(space.vae)
                return space
            module = self._fill("autoencoder", lambda: PatchAutoencoder(self.config.autoencoder))
            module.encoder.to(self.dtype)
            module.decoder.to(self.dtype)
            fuse(module)
            return module

        return self._part("autoencoder", build)

    @property
    def compressor(self) -> Compressor:
        """The latent compressor; convolutions in ``dtype``, gains in float32."""

        def build() -> Compressor:
            module = self._fill("compressor", lambda: Compressor(self.config.compressor))
            for name, part in module.named_children():
                # transforms of patches are linear paths, which stay in float32
                if name not in ("enter", "leave"):
                    part.to(self.dtype)
            fuse(module)
            return module

        return self._part("compressor", build)

    @property
    def coder(self) -> LatentCodec:
        """The exact entropy stage, always in integers (held in float64)."""

        def build() -> LatentCodec:
            tensors = dict(self.stored["prior"])
            arrays = {name: tensors.pop(f"tables.{name}").numpy() for name in ("frequencies", "radii")}
            tables = SymbolTables.from_arrays(arrays)
            if len(tables) != SCALES:
                raise ValueError(f"{len(tables)} symbol tables in place of {SCALES}")
            self._check_prior(tensors)
            prior = ExactPrior.from_tensors(self.config.compressor.prior, tensors).to(self.device)
            steps = bool(self.config.compressor.step_octaves)
            return LatentCodec(prior, tables, steps=steps)

        return self._part("prior", build)

    @property
    def captioners(self) -> list[Tagger]:
        """The taggers; the first one names captions, all of them guide."""

        def build() -> list[Tagger]:
            taggers = []
            for number, config in enumerate(self.config.captioners):
                tagger = self._fill(f"captioner-{number}", partial(Tagger, config))
                tagger.body.to(self.dtype)
                fuse(tagger)
                taggers.append(tagger)
            return taggers

        return self._part("captioners", build)

    @property
    def stride(self) -> int:
        """Pixels a side of a latent position; no weights are loaded for it."""
        return PatchAutoencoder.stride if self.config.ldm is None else self.config.ldm.stride

    def references(self) -> tuple[PartReference, ...]:
        """The pretrained parts that the bundle names."""
        parts = () if self.config.ldm is None else self.config.ldm.parts
        return parts if self.config.caption_model is None else (*parts, self.config.caption_model.part)

    def found(self, name: str) -> FoundPart:
        """A pretrained part on this machine; ``ModelMismatchError`` where it is not there as it must be."""
        for reference in self.references():
            if reference.name == name:
                return find_part(reference, self.folder, self.base)
        raise SlimError(f"the bundle {self.config.name} has no pretrained part {name}")

    @property
    def caption_model(self) -> ImageToText | ZeroShotTagger | None:
        """The pretrained model that names captions, None in a bundle without one; imports transformers."""
        config = self.config.caption_model
        if config is None:
            return None

        def build() -> ImageToText | ZeroShotTagger:
            from slimcodec.models.pretrained.captioner import load_captioner

            if self.offload is not None:
                self.offload.bring(None)
            return load_captioner(
                self.found(config.part.name).folder, config, self.vocabulary, str(self.device)
            )

        captioner = self._part("caption_model", build)
        if self.offload is not None:
            # models that write call their own parts, past the hook of the whole
            self.offload.bring(captioner.model)
        return captioner

    @property
    def enhancer(self) -> Enhancer | Denoiser | None:
        """The diffusion UNet with its scheduler, or None in a bundle without one; imports diffusers."""
        config = self.config.enhancer
        if config is None:
            return None

        def build() -> Enhancer | Denoiser:
            from slimcodec.models.enhancer import Enhancer

            if self.config.ldm is not None:
                return self._denoiser(config)

            return self._fill("enhancer", lambda: Enhancer.build(config), meta=False)

        return self._part("enhancer", build)

    def _denoiser(self, config: EnhancerConfig) -> Denoiser:
        from slimcodec.models.pretrained import pipeline as ldm
        from slimcodec.models.pretrained.denoiser import Denoiser
        from slimcodec.models.pretrained.low_rank import merge

        unet = ldm.load_unet(self.found("unet"), self.dtype)
        if "lora" in self.stored:
            merge(unet, from_storage(self.stored["lora"]))
        self._place(unet)
        return Denoiser(config, unet, ldm.load_scheduler(self.found("scheduler")), self.stride)

    def encode_captions(self, captions: Sequence[str | None]) -> Any:
        """Captions, None among them for no caption, as the enhancer takes them: a tensor, or a ``Prompt``."""
        with self.lock, torch.no_grad():
            return self.caption_encoder(captions)

    @property
    def caption_encoder(self) -> CaptionEncoder | PromptEncoder:
        """Tokenizer and text model; imports transformers."""

        def build_prompts() -> PromptEncoder:
            from slimcodec.models.pretrained import pipeline as ldm
            from slimcodec.models.pretrained.prompt import PromptEncoder

            config = self.config.ldm
            assert config is not None
            numbers = [number for number in ("", "_2") if config.part(f"text_encoder{number}")]
            tokenizers = [ldm.load_tokenizer(self.found(f"tokenizer{number}")) for number in numbers]
            models = [
                ldm.load_text_model(self.found(f"text_encoder{number}"), self.dtype, projected=number == "_2")
                for number in numbers
            ]
            for model in models:
                self._place(model)
            return PromptEncoder(tokenizers, models, config.zero_empty_caption)

        if self.config.ldm is not None:
            return self._part("text", build_prompts)

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

    def _check_prior(self, tensors: dict[str, Tensor]) -> None:
        with torch.device("meta"):
            layers = float_prior(self.config.compressor.prior).layers
        wanted = {
            f"{name}.{key}": tuple(value.shape)
            for name, layer in layers.items()
            for key, value in layer.named_parameters()
        }
        shapes = stored_shapes(tensors)
        _check_shapes(wanted, {name: shape for name, shape in shapes.items() if name in wanted})

    def _fill(self, part: str, build: Callable[[], T], meta: bool = True) -> T:
        # building on the meta device skips initial values that would be overwritten, and costs no memory: a configuration
        # gets as much of it as the weights that came with it
        with torch.device("meta"):
            module: Any = build()
        wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        _check_shapes(wanted, stored_shapes(self.stored[part]))
        if not meta:
            module = build()
        module.load_state_dict(from_storage(self.stored[part]), strict=True, assign=meta)
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

    def push_to_hub(
        self, repository: str, *, private: bool = False, curve: Sequence[dict[str, Any]] = ()
    ) -> str:
        """Uploads the bundle with a model card to a Hugging Face hub id and returns its address.

        ``curve``: rows of measured figures for the card, all with the same keys. Pretrained parts stay where they are; only what
        the bundle holds is uploaded. Raises ``SlimError`` where the hub refuses.
        """
        from huggingface_hub import HfApi

        from slimcodec.models.model_card import model_card

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            (Path(folder) / "README.md").write_text(model_card(self, repository, curve), encoding="utf-8")
            try:
                hub = HfApi()
                address = hub.create_repo(repository, private=private, exist_ok=True)
                hub.upload_folder(repo_id=repository, folder_path=folder)
            except Exception as error:  # the hub client's errors have no common base
                raise SlimError(f"{repository}: the hub did not take the bundle ({error})") from error
        return str(address)

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        base: str | Path | None = None,
    ) -> Bundle:
        """Loads a bundle: the embedded one (None or "slim-tiny"), a folder, or a Hugging Face hub id.

        ``base`` is a folder in which the pretrained parts that the bundle names are looked for first.

        Loading is strict: a missing, extra or altered tensor is an error (``ModelMismatchError`` where the hash differs).
        """
        folder = _locate(source)
        # what is installed with the code may be links, as some installers make them
        place = folder.joinpath if folder == EMBEDDED_BUNDLE else partial(inside, folder)
        try:
            described = load_json(place("config.json"), CONFIG_BYTES)
        except (OSError, ValueError) as error:
            raise SlimError(f"{folder}: not a bundle, its config.json cannot be read ({error})") from error
        if not isinstance(described, dict) or described.pop("format", None) != FORMAT:
            raise SlimError(f"{folder}: this release reads bundles of format {FORMAT} only; update slimcodec")
        try:
            hashes = {name: str(described.pop(name)) for name in ("bundle_id", "sha256", "weights_sha256")}
            weights = [place(path.name) for path in sorted(folder.glob("*.safetensors"))]
            tensors = {path.stem: read_tensors(path) for path in weights}
            vocabulary = read_vocabulary(place("vocabulary.txt"))
            text = None
            if (folder / "text.json").exists():
                content = load_json(place("text.json"))
                check_sizes(content["model"], f"{folder / 'text.json'}: model")
                text = (content["tokenizer"], content["model"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise SlimError(f"{folder}: the bundle is damaged ({error!r}); get it again") from error
        settings = {name: value for name, value in described.items() if name != "training"}
        check_sizes(settings, f"{folder / 'config.json'}")
        config = from_plain(BundleConfig, described, f"{folder / 'config.json'}")
        bundle = cls(config, tensors, vocabulary, text, device, dtype, described, folder=folder, base=base)
        for name in ("sha256", "weights_sha256"):
            if getattr(bundle, name) != hashes[name]:
                raise ModelMismatchError(
                    f"{folder}: this is not bundle {hashes['bundle_id']} as it was saved: its {name} is "
                    f"{getattr(bundle, name)[:16]}, expected {hashes[name][:16]}; get the bundle again",
                    hashes["bundle_id"],
                )
        return bundle


def _check_shapes(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """``ValueError`` where tensors are not those that a configuration asks for."""
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"tensor {name} is {found.get(name, 'missing')} and should be {wanted.get(name, 'absent')}"
            )


def _children(value: Any) -> list[dict[str, Any]]:
    """The sections that a setting's name stands for: one, or one for each entry of a list."""
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]


def _locate(source: str | Path | None) -> Path:
    if source is None or source == EMBEDDED:
        return EMBEDDED_BUNDLE
    if Path(source).is_dir():
        return Path(source)
    if not is_hub_id(source):
        raise SlimError(f"{source}: no such bundle; give {EMBEDDED}, a folder, or a hub id like owner/name")
    return hub_folder(str(source), "", ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"])
