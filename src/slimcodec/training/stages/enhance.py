"""Stage ``enhance``, the paper's stage 2: the UNet enhances decompressed latents, conditioned on the RoI-focused caption."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from slimcodec.data.contact_sheet import Tile, picture_tiles
from slimcodec.errors import SlimError
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.blocks import at_level
from slimcodec.models.enhancer import CaptionEncoder, Enhancer
from slimcodec.models.pretrained.networks import (
    Autoencoder,
    Denoiser,
    PretrainedAutoencoder,
    PromptEncoder,
    clean_latent,
    fitting_strength,
    prediction_target,
)
from slimcodec.training.batches import Batch, Draws
from slimcodec.training.compression_model import code
from slimcodec.training.loop import Stage
from slimcodec.training.losses import region_errors, roi_weights, weighted_mse
from slimcodec.training.recipe import EnhanceRecipe
from slimcodec.training.run import Run
from slimcodec.training.stages.compressor import latent_autoencoder, load_compression_model
from slimcodec.training.stages.latent_diffusion import build_unet, drop_captions, energy_weights

#: part of the batch at the start of the path: one step must do well
START_SHARE = 1 / 3
#: batches that set the error scale of our own enhancer, and the strength and energies of a pretrained one
OWN_BATCHES, PRETRAINED_BATCHES = 8, 2
#: the name of low-rank matrices in peft, and of the two matrices of a layer there and in a bundle
ADAPTER = "slim"
MATRICES = {f".lora_A.{ADAPTER}.weight": ".down.weight", f".lora_B.{ADAPTER}.weight": ".up.weight"}


@dataclass
class Asked:
    """What the UNet is asked about: latents and what the compressor leaves of them, ``rough``, by quality [B].

    ``at_start`` [B]: pictures at the start of the path; ``regions`` [B, 1, h, w]: RoI weights of latent positions.
    """

    latents: Tensor
    rough: Tensor
    quality: Tensor
    at_start: Tensor
    captions: list[str | None]
    regions: Tensor


class EnhanceStage(Stage[Batch]):
    """Denoising from the decompressed latent, weighted by the RoI, and the fidelity of the picture after one step.

    With ``enhance.rate`` the compressor is tuned too, by its own loss and through what the UNet makes of its latents.
    """

    name = "enhance"
    autoencoder: Autoencoder
    enhancer: Enhancer | Denoiser
    text: CaptionEncoder | PromptEncoder

    def __init__(self, run: Run) -> None:
        recipe = self.recipe = run.recipe.enhance
        self.autoencoder = latent_autoencoder(run).requires_grad_(False)
        self.codec = load_compression_model(run, self.autoencoder)
        self.objective = run.rate_distortion(warm=True) if recipe.rate else None
        self.batches = run.data.crops(self.name, "mask", "caption")
        self.fidelity = run.fidelity(recipe.background, recipe.features)

    def trained_with(self, parts: dict[str, nn.Module]) -> nn.ModuleDict:
        """The modules that are trained: ``parts``, and the compressor where the recipe says so."""
        if self.objective is None:
            return nn.ModuleDict(parts)
        # the autoencoder stays: it serves the picture without enhancement as well
        self.codec.requires_grad_(True)
        self.codec.tune_autoencoder()
        return nn.ModuleDict(parts | {"codec": self.codec})

    @torch.no_grad()
    def compression_error(self, quality: float, batches: int, dims: tuple[int, ...]) -> Tensor:
        """Mean squared error of decompressed latents [B, C, h, w] at a quality over ``dims``, of the first batches."""
        errors, device = [], next(self.codec.parameters()).device
        for step in range(batches):
            batch = send_to_device(self.batches(step), device)
            latents = self.autoencoder.encode(batch.pictures)
            level = latents.new_full((len(latents),), quality)
            rough = code(self.codec, latents, level, batch.masks).latents
            errors.append((rough - latents).square().mean(dims))
        return torch.stack(errors).mean(0)

    def loss(self, batch: Batch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """E [w c |u_hat - u|^2] + E_{t=1} [F(D(z^ - sigma u_hat)) / MSE(D(z^))], and the compressor's own loss if it is tuned."""
        recipe, background = self.recipe, self.fidelity.background
        # low qualities lose more, and are what enhancement is for: they are drawn more often
        quality = 1 + 99 * draws.uniform() ** 1.5
        with torch.no_grad():
            latents = self.autoencoder.encode(batch.pictures)
        tuned = self.objective is not None
        with torch.set_grad_enabled(tuned):
            coded = code(self.codec, latents, quality, batch.masks, draws if tuned else None)
        rough = coded.latents
        at_start = draws.every(START_SHARE)
        captions = drop_captions(batch.captions, recipe.caption_dropout, draws)
        regions = roi_weights(nn.functional.avg_pool2d(batch.masks, self.autoencoder.stride), background)
        asked = Asked(latents, rough, quality, at_start, captions, regions)
        squared, unchanged, clean = self.denoise(asked, draws)
        loss = recipe.denoising * squared.mean()
        terms = {"denoising": squared.detach().mean()}
        if at_start.any():
            # the decoder is tuned to decompressed latents: nearer to the original latent is not yet nearer to the picture
            first = batch.of(at_start)
            enhanced = self.autoencoder.decode(clean[at_start])
            fidelity, logged = self.fidelity(
                enhanced, first.pictures, first.masks, draws.of(at_start), progress
            )
            with torch.no_grad():
                weights = roi_weights(first.masks, background)
                before = weighted_mse(self.autoencoder.decode(rough[at_start]), first.pictures, weights)
            ratio = fidelity / before
            loss = loss + recipe.fidelity * draws.part_mean(ratio, START_SHARE)
            terms |= logged | region_errors(enhanced, first.pictures, first.masks)
            terms |= {
                "denoising_start": squared.detach()[at_start].mean(),
                "unchanged_start": unchanged[at_start].mean(),
                "fidelity_ratio": ratio.detach().mean(),
            }
        if self.objective is not None:
            decoded = self.autoencoder.decode(rough)
            rate, logged = self.objective(coded.bits, decoded, batch, quality, draws, progress)
            loss = loss + recipe.rate * rate
            terms |= {
                f"rough_{name}" if name.startswith("mse") else name: value for name, value in logged.items()
            }
        return loss, terms

    def denoise(self, asked: Asked, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Asks the UNet at random places on the path.

        Weighted squared errors [B] of its estimate and of none, and the clean latents that its estimate means.
        """
        raise NotImplementedError

    def samples(self, batch: Batch, draws: Draws) -> list[list[Tile]]:
        """Original, and before and after one step at two qualities."""
        latents, text = self.autoencoder.encode(batch.pictures), self.text(batch.captions)
        columns = [picture_tiles(batch.pictures, [caption or "no caption" for caption in batch.captions])]
        for quality in (10, 40):
            level = torch.full((len(latents),), quality, device=latents.device)
            rough = code(self.codec, latents, level, batch.masks).latents
            enhanced = self.enhancer(rough, quality, 1, draws.normal(*rough.shape[1:]), text, text)
            for line, decoded in ((f"q {quality}", rough), (f"q {quality}, one step", enhanced)):
                columns.append(picture_tiles(self.autoencoder.decode(decoded), line))
        return columns


class OwnEnhanceStage(EnhanceStage):
    """On our own networks: all of the UNet and its text encoder is trained, or low-rank matrices in it."""

    autoencoder: PatchAutoencoder
    enhancer: Enhancer

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.enhancer, self.text = build_unet(run)
        if run.has_weights("diffusion"):
            run.restore(self.enhancer, "diffusion", "enhancer")
            run.restore(self.text, "diffusion", "text")
        if self.recipe.lora_rank:
            add_lora(self.enhancer, self.recipe)
            self.text.requires_grad_(False)
        self.model = self.trained_with({"enhancer": self.enhancer, "text": self.text})
        # the unit of what is predicted: the deviation of what the compressor loses, by level and channel
        for row, quality in enumerate(torch.linspace(1, 100, self.enhancer.config.levels).tolist()):
            self.enhancer.error_scale[row] = self.compression_error(quality, OWN_BATCHES, (0, 2, 3)).sqrt()

    def denoise(self, asked: Asked, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """A straight path from the decompressed latent; the UNet predicts the loss of the compressor in units of its scale."""
        latents, rough, level = asked.latents, asked.rough, self.codec.compressor.level(asked.quality)
        scale = at_level(self.enhancer.error_scale, level)[..., None, None]
        with torch.no_grad():
            start = self.enhancer.start(rough, level, draws.normal(*rough.shape[1:]))
            time = torch.where(asked.at_start, 1.0, 1 - draws.uniform() ** 2)
            state = torch.lerp(latents, start, time[:, None, None, None])
            target = (rough - latents) / scale
            weight = energy_weights(self.autoencoder.latent_scale() * scale[..., 0, 0]) * asked.regions
        lost = self.enhancer.predict(state, rough, time, level, self.text(asked.captions))
        squared = (weight * (lost - target) ** 2).mean((1, 2, 3))
        return squared, (weight * target**2).mean((1, 2, 3)), rough - scale * lost


class PretrainedEnhanceStage(EnhanceStage):
    """On a pretrained model: its own objective, with the error of compression in the place of noise.

    Low-rank matrices in its UNet are trained. See ``slimcodec.models.pretrained.networks``.
    """

    autoencoder: PretrainedAutoencoder
    enhancer: Denoiser

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        assert run.pretrained is not None
        model: Any = run.pretrained.latent_model
        self.enhancer, self.text = model.enhancer, model.text_encoder
        add_lora(self.enhancer, self.recipe)
        self.codec.to(run.accelerator.device)
        with torch.no_grad():
            pictures = self.batches(PRETRAINED_BATCHES - 1).pictures.to(run.accelerator.device)
            self.energy = self.autoencoder.latent_scale(self.autoencoder.encode(pictures)[:2])
        if max(self.enhancer.config.strength) <= 0:
            low, high = (
                float(self.compression_error(quality, PRETRAINED_BATCHES, (0, 1, 2, 3)).sqrt())
                for quality in (1.0, 100.0)
            )
            strength = fitting_strength((low, high), self.enhancer.scheduler)
            self.enhancer.config = replace(self.enhancer.config, strength=strength)
        self.model = self.trained_with({"lora": low_rank_matrices(self.enhancer)})

    def denoise(self, asked: Asked, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """States a z + s e at steps up to T, with e = a_T (z^ - z) / s_T + nu n, and the UNet's prediction there."""
        denoiser, latents, rough = self.enhancer, asked.latents, asked.rough
        kind = denoiser.scheduler.config.prediction_type
        start = denoiser.start(asked.quality)
        a, s = denoiser.factors(start)
        error = a / s * (rough - latents) + denoiser.noise_share * draws.normal(*rough.shape[1:])
        times = torch.where(asked.at_start, start, (draws.uniform() * (start + 1)).long())
        a, s = denoiser.factors(times)
        state = a * latents + s * error
        prediction = denoiser.predict(state, times, self.text(asked.captions))
        # the compressor is tuned by what comes of its latents, not by being an easy target
        target = prediction_target(kind, latents, error.detach(), a, s)
        weight = energy_weights(self.energy.to(rough.device)[None]) * asked.regions
        squared = (weight * (prediction - target) ** 2).mean((1, 2, 3))
        unchanged = (weight * error.detach() ** 2).mean((1, 2, 3))
        return squared, unchanged, clean_latent(kind, prediction, state, a, s)


def enhance_stage(run: Run) -> EnhanceStage:
    """The stage of a run, on our own networks or on a pretrained model."""
    return OwnEnhanceStage(run) if run.pretrained is None else PretrainedEnhanceStage(run)


def load_enhancer(run: Run) -> tuple[Enhancer, CaptionEncoder]:
    """Our own UNet and text encoder as stage ``enhance`` left them, low-rank matrices added to the weights."""
    recipe = run.recipe.enhance
    enhancer, text = build_unet(run)
    if recipe.lora_rank:
        add_lora(enhancer, recipe)
    run.restore(enhancer, "enhance", "enhancer")
    run.restore(text, "enhance", "text")
    if recipe.lora_rank:
        enhancer.unet.fuse_lora(adapter_names=[ADAPTER])
        enhancer.unet.unload_lora()
    return enhancer, text


# ---- low-rank adaptation (Hu et al. 2022), through peft --------------------------------------------------------


def low_rank_matrices(denoiser: Denoiser) -> nn.ParameterDict:
    """The low-rank matrices of a pretrained UNet, the very parameters, apart from it: what is trained, averaged and saved.

    The strength travels with them: the bundle starts denoising where training did.
    """
    low_rank = nn.ParameterDict()
    for name, parameter in denoiser.unet.named_parameters():
        for theirs, ours in MATRICES.items():
            if name.endswith(theirs):
                # names of parameters hold no dots
                low_rank[(name.removesuffix(theirs) + ours).replace(".", "/")] = parameter
    low_rank["strength"] = nn.Parameter(torch.tensor(denoiser.config.strength), requires_grad=False)
    return low_rank


def add_lora(enhancer: Enhancer | Denoiser, recipe: EnhanceRecipe) -> None:
    """Freezes the UNet and adds trainable low-rank matrices beside the layers whose names end in one of ``lora_targets``."""
    from peft import LoraConfig

    rank, targets = recipe.lora_rank, list(recipe.lora_targets)
    enhancer.unet.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian")
    try:
        enhancer.unet.add_adapter(config, adapter_name=ADAPTER)
    except ValueError as error:
        raise SlimError(
            f"enhance.lora_targets: no layer of the UNet is meant by {', '.join(targets)}"
        ) from error
