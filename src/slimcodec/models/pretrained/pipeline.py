"""Pretrained latent diffusion models of diffusers as a ``LatentModel``: which parts they have, and how each is loaded.

Every family that predicts noise, velocity or the clean latent on a schedule of cumulative alphas is served by its own
configurations: Stable Diffusion 1.x and 2.x, Turbo, LCM, SDXL. Nothing here is particular to one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slimcodec.errors import SlimError
from slimcodec.files import is_hub_id
from slimcodec.models.enhancer import EnhancerConfig
from slimcodec.models.latent_model import CaptionEmbedding
from slimcodec.models.pretrained.autoencoder import KNOWN, PretrainedAutoencoder, stride_of
from slimcodec.models.pretrained.denoiser import Denoiser, PromptEncoder
from slimcodec.models.pretrained.hub import hub_folder, read_json
from slimcodec.models.pretrained.references import FoundPart, PartReference, part_from_hub, refer, revision_of
from slimcodec.models.storage import Parts, from_storage

if TYPE_CHECKING:
    from slimcodec.models.pretrained.offload import Offload

#: parts of a pipeline that decoding needs; the second text encoder is SDXL's
REQUIRED = ("vae", "unet", "scheduler", "tokenizer", "text_encoder")
OPTIONAL = ("tokenizer_2", "text_encoder_2")


@dataclass(frozen=True)
class LdmConfig:
    """The pretrained latent diffusion model that a bundle stands on."""

    parts: tuple[PartReference, ...]
    #: pixels a side of a latent position
    stride: int = 8
    #: whether no caption is a state of zeros (SDXL) or the encoded empty text
    zero_empty_caption: bool = False

    def part(self, name: str) -> PartReference | None:
        """The reference to a part, None where the model has none of that name."""
        return next((part for part in self.parts if part.name == name), None)


@dataclass(frozen=True)
class LdmFacts:
    """What a bundle has to know of a model before its weights are loaded."""

    config: LdmConfig
    latent_channels: int


def refer_ldm(
    source: str, autoencoder: str = "", text_encoder: str = "", alternatives: Sequence[str] = ()
) -> LdmFacts:
    """References to the parts of a pipeline's folder or hub id, each hashed as it is now.

    ``autoencoder`` takes the place of the pipeline's VAE (an AutoencoderTiny, for speed), ``text_encoder`` that of its first
    text encoder; both are folders or hub ids. ``alternatives``: other homes of the whole pipeline. Raises ``SlimError``
    for what is not a pipeline, or not one that this release can run.
    """
    root = _local(source) or hub_folder(source, "", ["model_index.json", "README.md"])
    index = read_json(root / "model_index.json")
    parts, folders = [], {}
    replaced = {"vae": autoencoder, "text_encoder": text_encoder}
    for name in (*REQUIRED, *OPTIONAL):
        home, subfolder, others = source, name, tuple(alternatives)
        if replaced.get(name):
            home, subfolder, others = replaced[name], "", ()
        elif not (index.get(name) or [None])[0]:
            if name in REQUIRED:
                raise SlimError(
                    f"{source}: its model_index.json names no {name}; give a Stable Diffusion pipeline (1.x, 2.x, Turbo, LCM, SDXL)"
                )
            continue
        local = _local(home)
        top = local or part_from_hub(home, "", subfolder)
        folders[name] = folder = top / subfolder
        # a path is written down so that it means the same from any working folder
        origin = home if local is None else str(local.resolve())
        parts.append(refer(name, folder, origin, subfolder, revision_of(top), others))
    vae = read_json(folders["vae"] / "config.json")
    unet = read_json(folders["unet"] / "config.json")
    _check(source, vae, unet)
    zeros = bool(index.get("force_zeros_for_empty_prompt", "text_encoder_2" in folders))
    return LdmFacts(LdmConfig(tuple(parts), stride_of(vae), zeros), int(vae["latent_channels"]))


def _local(source: str) -> Path | None:
    """The folder that a source is, None for a hub id."""
    local = Path(source).expanduser()
    if local.is_dir():
        return local
    if not is_hub_id(source):
        raise SlimError(f"{source}: no such model; give a pipeline's folder or a hub id like owner/name")
    return None


def _check(source: str, vae: dict[str, Any], unet: dict[str, Any]) -> None:
    if vae.get("_class_name") not in KNOWN:
        raise SlimError(
            f"{source}: its autoencoder is {vae.get('_class_name')}; known are {', '.join(KNOWN)}"
        )
    if unet.get("_class_name") != "UNet2DConditionModel":
        raise SlimError(f"{source}: its network is {unet.get('_class_name')}; known is UNet2DConditionModel")
    # what diffusers takes where a configuration says nothing
    channels = vae.setdefault("latent_channels", 4)
    if unet.get("in_channels", 4) != channels:
        raise SlimError(
            f"{source}: its UNet takes {unet.get('in_channels')} channels and its latents have {channels}: a model for inpainting "
            "or upscaling; give one that makes pictures from text"
        )
    if unet.get("addition_embed_type") not in (None, "text_time") or unet.get("class_embed_type"):
        raise SlimError(f"{source}: its UNet wants conditions that this release does not give")


# ---- loading ---------------------------------------------------------------------------------------------------


def load_autoencoder(part: FoundPart, dtype: torch.dtype) -> PretrainedAutoencoder:
    """The latent space, frozen; in ``dtype``, or in float32 where half precision would overflow."""
    import diffusers

    settings = read_json(part.folder / "config.json")
    if settings.get("force_upcast") and dtype == torch.float16:
        # some decoders overflow in half precision, and say so
        dtype = torch.float32
    vae = _load(getattr(diffusers, str(settings.get("_class_name"))), part, dtype)
    return PretrainedAutoencoder(vae).requires_grad_(False).eval()


def load_unet(part: FoundPart, dtype: torch.dtype) -> Any:
    """The UNet, frozen, in ``dtype``."""
    from diffusers import UNet2DConditionModel

    return _load(UNet2DConditionModel, part, dtype).requires_grad_(False).eval()


def load_scheduler(part: FoundPart) -> Any:
    """The scheduler, made fit for a few steps from any point of its schedule.

    Steps are spaced so that the first one lies at the start that is asked for and the last one ends at the clean latent
    ("trailing", Lin et al. 2023). PNDM needs warm-up steps that are not there; DDIM (Song et al. 2021) follows the same
    equation. Raises ``SlimError`` for one that has no cumulative alphas.
    """
    import diffusers

    settings = read_json(part.folder / "scheduler_config.json")
    name = str(settings.get("_class_name"))
    settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    kind = getattr(diffusers, name, None)
    if name == "PNDMScheduler":
        # PNDM has no such setting and clips nothing; DDIM's default is for pictures
        kind, settings = diffusers.DDIMScheduler, settings | {"clip_sample": False}
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise SlimError(f"{part.folder}: {name!r} is not a scheduler of diffusers")
    scheduler = kind.from_config(settings)
    if "timestep_spacing" in scheduler.config:
        scheduler = kind.from_config(scheduler.config, timestep_spacing="trailing")
    if not hasattr(scheduler, "alphas_cumprod"):
        raise SlimError(
            f"{part.folder}: {name} has no cumulative alphas; give a model of the Stable Diffusion kind"
        )
    return scheduler


def load_text_model(part: FoundPart, dtype: torch.dtype, *, projected: bool) -> Any:
    """A CLIP text encoder, frozen; ``projected``: with the projection of its pooled state, as SDXL's second one."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return _load(kind, part, dtype).requires_grad_(False).eval()


def load_tokenizer(part: FoundPart) -> Any:
    """A CLIP tokenizer."""
    from transformers import CLIPTokenizer

    made: Any = CLIPTokenizer
    try:
        return made.from_pretrained(part.folder, local_files_only=True)
    except Exception as error:  # transformers' errors have no common base
        raise SlimError(f"{part.folder}: its tokenizer cannot be loaded ({error})") from error


def _load(kind: Any, part: FoundPart, dtype: torch.dtype) -> Any:
    name = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    try:
        model, report = kind.from_pretrained(
            part.folder,
            variant=part.variant or None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{name: dtype},
        )
    except Exception as error:  # the libraries' errors have no common base
        raise SlimError(
            f"{part.folder}: {kind.__name__} cannot be loaded ({' '.join(str(error).split())})"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise SlimError(f"{part.folder}: no weights for {missing}, so it is not a whole {kind.__name__}")
    return model


@torch.no_grad()
def merge_lora(network: Any, matrices: dict[str, Tensor]) -> None:
    """Adds the product of ``<layer>.up.weight`` and ``<layer>.down.weight`` (LoRA, Hu et al. 2022) to every layer's weight.

    Decoding needs no peft for it. Raises ``KeyError`` or ``ValueError`` where a layer is missing or has another shape.
    """
    for name, down in matrices.items():
        if not name.endswith(".down.weight"):
            continue
        layer = name.removesuffix(".down.weight")
        try:
            weight = network.get_parameter(f"{layer}.weight")
        except AttributeError as error:
            raise KeyError(f"lora: the UNet has no layer {layer}") from error
        up = matrices[f"{layer}.up.weight"]
        change = (up.flatten(1).float() @ down.flatten(1).float()).reshape(weight.shape)
        weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


class PretrainedModel:
    """A pipeline of diffusers as a ``LatentModel``: each part is found, checked by its hash and loaded when first used."""

    encoder_radius = decoder_radius = None
    guidance_unavailable = "a pretrained model follows the caption by classifier-free guidance"

    def __init__(
        self,
        config: LdmConfig,
        parts: Parts,
        find: Callable[[str], FoundPart],
        enhancer: EnhancerConfig | None,
    ) -> None:
        """``find`` gives a part on this machine by its name; ``parts`` may hold low-rank matrices for the UNet ("lora")."""
        self.config, self.parts, self.find, self.enhancer_config = config, parts, find, enhancer
        self.stride, self.references = config.stride, config.parts
        self.offloaded: Offload | None = None

    @property
    def autoencoder(self) -> PretrainedAutoencoder:
        """The VAE; imports diffusers."""

        def build() -> PretrainedAutoencoder:
            autoencoder = load_autoencoder(self.find("vae"), self.parts.dtype)
            if self.offloaded is not None:
                # memory is what is short: of a batch, one picture at a time
                autoencoder.vae.enable_slicing()
            self._place(autoencoder.vae)
            return autoencoder

        return self.parts.get("autoencoder", build)

    @property
    def enhancer(self) -> Denoiser:
        """The UNet with its scheduler, low-rank matrices merged; imports diffusers."""

        def build() -> Denoiser:
            if self.enhancer_config is None:
                raise SlimError("the bundle has no enhancer")
            unet = load_unet(self.find("unet"), self.parts.dtype)
            if "lora" in self.parts.stored:
                merge_lora(unet, from_storage(self.parts.stored["lora"]))
            self._place(unet)
            return Denoiser(self.enhancer_config, unet, load_scheduler(self.find("scheduler")), self.stride)

        return self.parts.get("enhancer", build)

    @property
    def text_encoder(self) -> PromptEncoder:
        """Tokenizers and text encoders; imports diffusers and transformers."""

        def build() -> PromptEncoder:
            numbers = [number for number in ("", "_2") if self.config.part(f"text_encoder{number}")]
            tokenizers = [load_tokenizer(self.find(f"tokenizer{number}")) for number in numbers]
            models = [
                load_text_model(
                    self.find(f"text_encoder{number}"), self.parts.dtype, projected=number == "_2"
                )
                for number in numbers
            ]
            for model in models:
                self._place(model)
            return PromptEncoder(tokenizers, models, self.config.zero_empty_caption, self.parts.device)

        return self.parts.get("text", build)

    @property
    def enhancer_tile(self) -> int:
        return self.enhancer.tile

    def encode(self, pictures: Tensor) -> Tensor:
        return self.autoencoder.encode(pictures)

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents)

    def embed_captions(self, captions: Sequence[str | None]) -> CaptionEmbedding:
        with self.parts.lock:
            embedding: CaptionEmbedding = self.text_encoder(captions)
        return embedding

    def enhance(
        self,
        latents: Tensor,
        quality: int,
        steps: int,
        noise: Tensor,
        captions: CaptionEmbedding,
        no_captions: CaptionEmbedding,
        text_scale: float = 1.0,
    ) -> Tensor:
        result: Tensor = self.enhancer(latents, quality, steps, noise, captions, no_captions, text_scale)
        return result

    def error_scale(self, quality: int) -> Tensor:
        raise SlimError(self.guidance_unavailable)

    def offload(self) -> None:
        """Raises ``SlimError`` without Accelerate."""
        try:
            from slimcodec.models.pretrained.offload import Offload
        except ImportError as error:
            raise SlimError(f"offload needs {error.name}: install it with pip install accelerate") from error
        self.offloaded = Offload(self.parts.device)

    def make_room(self, module: Any = None) -> None:
        """With offload: sends the network that is on the device back to memory, and brings ``module`` there."""
        if self.offloaded is not None:
            self.offloaded.bring(module)

    def _place(self, module: Any) -> None:
        module.to(memory_format=torch.channels_last)
        if self.offloaded is None:
            module.to(self.parts.device)
        else:
            self.offloaded.add(module)
