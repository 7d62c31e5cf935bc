"""Pretrained latent diffusion models of diffusers as a ``LatentModel``: which parts they have, and how each is loaded.

Every family that predicts noise, velocity or the clean latent on a schedule of cumulative alphas is served by its own
configurations: Stable Diffusion 1.x and 2.x, Turbo, LCM, SDXL. Nothing here is particular to one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.models.config import EnhancerConfig, LdmConfig
from slimcodec.models.enhancer import scheduler_class
from slimcodec.models.parts import LatentModel, Parts, tensors_of
from slimcodec.models.pretrained.hub import load_pretrained, load_processor
from slimcodec.models.pretrained.networks import (
    AUTOENCODERS,
    Denoiser,
    PretrainedAutoencoder,
    PromptEncoder,
    stride_of,
)
from slimcodec.models.pretrained.part_files import has_part, is_taef2, model_settings, read_json
from slimcodec.models.pretrained.references import (
    FoundPart,
    hub_folder,
    local_folder,
    part_from_hub,
    refer,
)

#: parts of a pipeline that decoding needs; the second text encoder is SDXL's
REQUIRED = ("vae", "unet", "scheduler", "tokenizer", "text_encoder")
OPTIONAL = ("tokenizer_2", "text_encoder_2")
PIPELINE = "model; give a pipeline's folder"


def refer_ldm(
    source: str, autoencoder: str = "", text_encoder: str = "", alternatives: Sequence[str] = ()
) -> tuple[LdmConfig, int]:
    """The parts of a pipeline's folder or hub id, each hashed as it is now, or of an autoencoder alone; and its latent channels.

    ``autoencoder`` takes the place of the pipeline's VAE (an AutoencoderTiny, for speed), ``text_encoder`` that of its first
    text encoder; both are folders or hub ids. ``alternatives``: other homes of the whole pipeline. Raises ``SlimError``
    for what is not a pipeline, or not one that this release can run.
    """
    root = local_folder(source, PIPELINE) or hub_folder(source, "", ["model_index.json", "README.md"])
    if not (root / "model_index.json").is_file():
        return _refer_autoencoder(source, alternatives)
    index = read_json(root / "model_index.json")
    parts, folders = [], {}
    replaced = {"vae": autoencoder, "text_encoder": text_encoder}
    for name in (*REQUIRED, *OPTIONAL):
        home, subfolder, others = source, name, alternatives
        if replaced.get(name):
            home, subfolder, others = replaced[name], "", ()
        elif not (index.get(name) or [None])[0]:
            if name in REQUIRED:
                raise SlimError(
                    f"{source}: its model_index.json names no {name}; give a Stable Diffusion pipeline (1.x, 2.x, Turbo, LCM, SDXL)"
                )
            continue
        top = local_folder(home, PIPELINE) or part_from_hub(home, "", subfolder)
        folders[name] = top / subfolder
        parts.append(refer(name, top, home, subfolder, others))
    vae, unet = (model_settings(folders[name]) for name in ("vae", "unet"))
    _check(source, vae, unet)
    zeros = bool(index.get("force_zeros_for_empty_prompt", "text_encoder_2" in folders))
    return LdmConfig(tuple(parts), stride_of(vae), zeros), int(vae["latent_channels"])


def _refer_autoencoder(source: str, alternatives: Sequence[str]) -> tuple[LdmConfig, int]:
    """As ``refer_ldm``, of an autoencoder without a denoiser, a folder or hub id of its own."""
    folder = local_folder(source, PIPELINE) or part_from_hub(source, "", "")
    if not has_part(folder):
        raise SlimError(
            f"{source}: no pipeline of diffusers and no autoencoder (its model_index.json or config.json is missing)"
        )
    settings = model_settings(folder)
    _check_autoencoder(source, settings)
    part = refer("vae", folder, source, "", alternatives)
    return LdmConfig((part,), stride_of(settings)), int(settings["latent_channels"])


def _check_autoencoder(source: str, settings: dict[str, Any]) -> None:
    if (name := settings.get("_class_name")) not in AUTOENCODERS:
        raise SlimError(f"{source}: its autoencoder is {name}; known are {', '.join(AUTOENCODERS)}")


def _check(source: str, vae: dict[str, Any], unet: dict[str, Any]) -> None:
    unet_name = unet.get("_class_name")
    _check_autoencoder(source, vae)
    if unet_name != "UNet2DConditionModel":
        raise SlimError(f"{source}: its network is {unet_name}; known is UNet2DConditionModel")
    # what diffusers takes where a configuration says nothing
    channels = vae.setdefault("latent_channels", 4)
    if unet.get("in_channels", 4) != channels:
        raise SlimError(
            f"{source}: its UNet takes {unet.get('in_channels')} channels and its latents have {channels}: a model for inpainting "
            "or upscaling; give one that makes pictures from text"
        )
    if unet.get("addition_embed_type") not in (None, "text_time") or unet.get("class_embed_type"):
        raise SlimError(f"{source}: its UNet wants conditions that this release does not give")


def load_part(kind: Any, part: FoundPart, dtype: torch.dtype) -> Any:
    """A network of a pipeline, by its class of diffusers or transformers, frozen, in ``dtype``."""
    name = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    options = {"variant": part.variant or None, "local_files_only": True, name: dtype}
    return load_pretrained(kind, part.folder, **options)


def load_autoencoder(part: FoundPart, dtype: torch.dtype) -> PretrainedAutoencoder:
    """The latent space, frozen; in ``dtype``, or in float32 where half precision would overflow."""
    import diffusers

    if is_taef2(part.folder):
        from slimcodec.models.pretrained.taef2 import Taef2

        return PretrainedAutoencoder(Taef2.load(part.folder, dtype))
    settings = read_json(part.folder / "config.json")
    if settings.get("force_upcast") and dtype == torch.float16:
        # some decoders overflow in half precision, and say so
        dtype = torch.float32
    vae = load_part(getattr(diffusers, str(settings.get("_class_name"))), part, dtype)
    return PretrainedAutoencoder(vae).eval()


def load_scheduler(part: FoundPart) -> Any:
    """The scheduler, made fit for a few steps from any point of its schedule.

    Steps are spaced so that the first one lies at the start that is asked for and the last one ends at the clean latent
    ("trailing", Lin et al. 2023). PNDM needs warm-up steps that are not there; DDIM (Song et al. 2021) follows the same
    equation. Raises ``SlimError`` for one that has no cumulative alphas.
    """
    settings = read_json(part.folder / "scheduler_config.json")
    name = str(settings.get("_class_name"))
    settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    kind = scheduler_class(name, str(part.folder))
    if name == "PNDMScheduler":
        # PNDM has no such setting and clips nothing; DDIM's default is for pictures
        kind, settings = scheduler_class("DDIMScheduler", name), settings | {"clip_sample": False}
    scheduler = kind.from_config(settings)
    if "timestep_spacing" in scheduler.config:
        scheduler = kind.from_config(scheduler.config, timestep_spacing="trailing")
    if not hasattr(scheduler, "alphas_cumprod"):
        raise SlimError(
            f"{part.folder}: {name} has no cumulative alphas; give a model of the Stable Diffusion kind"
        )
    return scheduler


@torch.no_grad()
def merge_lora(network: nn.Module, matrices: dict[str, Tensor]) -> None:
    """Adds the product of ``<layer>.up.weight`` and ``<layer>.down.weight`` (LoRA, Hu et al. 2022) to every layer's weight.

    Decoding needs no peft for it. Raises ``KeyError`` or ``RuntimeError`` where a layer is missing or has another shape.
    """
    weights = network.state_dict()
    for name, down in matrices.items():
        layer, part, _ = name.rpartition(".down.weight")
        if part:
            weight, up = weights[f"{layer}.weight"], matrices[f"{layer}.up.weight"]
            change = (up.flatten(1).float() @ down.flatten(1).float()).reshape(weight.shape)
            weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


class PretrainedModel(LatentModel):
    """A pipeline of diffusers: each part is found, checked by its hash and loaded when first used."""

    def __init__(
        self,
        config: LdmConfig,
        parts: Parts,
        find: Callable[[str], FoundPart],
        enhancer: EnhancerConfig | None,
    ) -> None:
        """``find`` gives a part on this machine by its name; ``parts`` may hold low-rank matrices for the UNet ("lora")."""
        self.config, self.parts, self.find, self.enhancer_config = config, parts, find, enhancer
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
            from diffusers import UNet2DConditionModel

            if self.enhancer_config is None:
                raise SlimError(
                    "the bundle's latent model is an autoencoder without a denoiser: give steps 0, or a bundle on a whole pipeline"
                )
            unet = load_part(UNet2DConditionModel, self.find("unet"), self.parts.dtype)
            if "lora" in self.parts.stored:
                merge_lora(unet, tensors_of(self.parts.stored["lora"]))
            self._place(unet)
            return Denoiser(
                self.enhancer_config, unet, load_scheduler(self.find("scheduler")), self.config.stride
            )

        return self.parts.get("enhancer", build)

    @property
    def text_encoder(self) -> PromptEncoder:
        """Tokenizers and CLIP text encoders; imports diffusers and transformers."""

        def build() -> PromptEncoder:
            from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

            # SDXL's second one projects its pooled state
            kinds = {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
            numbers = [number for number in kinds if self.config.part(f"text_encoder{number}")]
            tokenizers = [
                load_processor(self.find(f"tokenizer{number}").folder, CLIPTokenizer) for number in numbers
            ]
            models = [
                load_part(kinds[number], self.find(f"text_encoder{number}"), self.parts.dtype)
                for number in numbers
            ]
            for model in models:
                self._place(model)
            return PromptEncoder(tokenizers, models, self.config.zero_empty_caption, self.parts.device)

        return self.parts.get("text", build)

    def offload(self) -> None:
        """Raises ``SlimError`` without Accelerate."""
        self.offloaded = Offload(self.parts.device)

    def make_room(self, module: Any = None) -> None:
        if self.offloaded is not None:
            self.offloaded.bring(module)

    def _place(self, module: Any) -> None:
        module.to(memory_format=torch.channels_last)
        if self.offloaded is None:
            module.to(self.parts.device)
        else:
            self.offloaded.add(module)


class Offload:
    """Keeps at most one of its modules on a device, by hooks of Accelerate; serves one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        try:
            import accelerate
        except ImportError as error:
            raise SlimError(f"offload needs {error.name}: install it with pip install accelerate") from error
        self.accelerate: Any = accelerate
        self.device = device
        self._there: nn.Module | None = None

    def add(self, module: nn.Module) -> None:
        """From now on the module comes to the device when it is called, and leaves when another one comes."""
        hook = self.accelerate.hooks.ModelHook()
        # called before the module's forward, and by diffusers before an autoencoder's methods
        hook.pre_forward, hook.execution_device = self._come, self.device
        self.accelerate.hooks.add_hook_to_module(module, hook)

    def _come(self, module: nn.Module, *arguments: Any, **named: Any) -> Any:
        self.bring(module)
        return self.accelerate.utils.send_to_device((arguments, named), self.device)

    def bring(self, module: nn.Module | None) -> None:
        """Sends away what is on the device, and brings a module there (None: nothing), for one that is not called as a whole."""
        if self._there is module:
            return
        if self._there is not None:
            self._there.to("cpu")
        # noted last: a module that did not fit is not there
        self._there = None
        if module is not None:
            module.to(self.device)
        self._there = module
