"""Stage ``enhance``, the paper's stage 2: the UNet enhances decompressed latents, conditioned on the RoI-focused caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimcodec.models.blocks import at_level
from slimcodec.models.enhancer import Enhancer
from slimcodec.models.native import CaptionEncoder
from slimcodec.models.pretrained.autoencoder import Autoencoder
from slimcodec.models.pretrained.denoiser import Denoiser, PromptEncoder
from slimcodec.training.compression_model import CompressionModel, code, interest
from slimcodec.training.data import Batch, Crops
from slimcodec.training.draws import Draws, part_mean
from slimcodec.training.losses import Fidelity, region_errors, roi_weights, weighted_mse
from slimcodec.training.sheets import Tile
from slimcodec.training.stages.common import BaseStage, rate_trouble
from slimcodec.training.stages.compressor import RateFidelity
from slimcodec.training.stages.diffusion import by_energy, dropped

#: part of the batch at the start of the path: one step must do well
START_SHARE = 1 / 3


@dataclass
class Denoised:
    """What the UNet made of a batch: weighted squared errors [B] of its estimate and of none, and the clean latents it means."""

    squared: Tensor
    unchanged: Tensor
    clean: Tensor


class EnhanceStage(BaseStage):
    """Denoising from the decompressed latent, weighted by the RoI, and the fidelity of the picture after one step.

    With ``objective`` the compressor is tuned too, by its own loss and through what the UNet makes of its latents.
    """

    name = "enhance"

    def __init__(
        self,
        autoencoder: Autoencoder,
        codec: CompressionModel,
        enhancer: Enhancer | Denoiser,
        text: CaptionEncoder | PromptEncoder,
        crops: Crops,
        fidelity: Fidelity,
        *,
        trained: dict[str, nn.Module] | None = None,
        objective: RateFidelity | None = None,
        caption_dropout: float = 0.15,
        denoising_weight: float = 1.0,
        fidelity_weight: float = 1.0,
        rate_weight: float = 1.0,
    ) -> None:
        """``trained``: the modules that are trained and saved, by default enhancer and text encoder."""
        self.autoencoder: Any = autoencoder.requires_grad_(False)
        self.codec = codec.requires_grad_(False)
        parts: dict[str, nn.Module] = dict(trained or {"enhancer": enhancer, "text": text})
        if objective is not None:
            # the autoencoder stays: it serves the picture without enhancement as well
            codec.requires_grad_(True)
            codec.tune_autoencoder()
            parts["codec"] = codec
        self.model = nn.ModuleDict(parts)
        self.frozen = [autoencoder, codec]
        self.enhancer: Any = enhancer
        self.text: Any = text
        self.batches = crops
        self.fidelity, self.objective, self.caption_dropout = fidelity, objective, caption_dropout
        self.denoising_weight, self.fidelity_weight = denoising_weight, fidelity_weight
        self.rate_weight = rate_weight

    @torch.no_grad()
    def measure_errors(self, batches: int = 8) -> None:
        """Sets the enhancer's error scale to the standard deviation of what the compressor loses, by level and channel."""
        levels = self.enhancer.config.levels
        for row, quality in enumerate(torch.linspace(1, 100, levels)):
            squares = []
            for step in range(batches):
                batch = self.batches(step)
                latents = self.autoencoder.encode(batch.pictures)
                roi = interest(batch.masks, latents)
                decoded = code(self.codec, latents, quality.expand(len(latents)), "rounded", roi=roi).latents
                squares.append((decoded - latents).square().mean((0, 2, 3)))
            self.enhancer.error_scale[row] = torch.stack(squares).mean(0).sqrt()

    def loss(self, batch: Batch, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """E [w c |u_hat - u|^2] + E_{t=1} [F(D(z^ - sigma u_hat)) / MSE(D(z^))], and the compressor's own loss if it is tuned."""
        # low qualities lose more, and are what enhancement is for: they are drawn more often
        quality = 1 + 99 * draws.uniform() ** 1.5
        with torch.no_grad():
            latents = self.autoencoder.encode(batch.pictures)
        roi = interest(batch.masks, latents)
        if self.objective is None:
            with torch.no_grad():
                coded = code(self.codec, latents, quality, "rounded", roi=roi)
        else:
            coded = code(self.codec, latents, quality, "mixed", draws, roi)
        rough = coded.latents
        at_start = draws.every(START_SHARE)
        captions = dropped(batch.captions, self.caption_dropout, draws)
        masks = nn.functional.avg_pool2d(batch.masks, self.autoencoder.stride)
        regions = roi_weights(masks, self.fidelity.background)
        found = self.denoise(latents, rough, quality, at_start, captions, regions, draws)
        loss = self.denoising_weight * found.squared.mean()
        terms = {"denoising": found.squared.detach().mean()}
        if at_start.any():
            # the decoder is tuned to decompressed latents: nearer to the original latent is not yet nearer to the picture
            first = batch.of(at_start)
            enhanced = self.autoencoder.decode(found.clean[at_start])
            fidelity, seen = self.fidelity(
                enhanced, first.pictures, first.masks, draws.of(at_start), progress
            )
            with torch.no_grad():
                weights = roi_weights(first.masks, self.fidelity.background)
                before = weighted_mse(self.autoencoder.decode(rough[at_start]), first.pictures, weights)
            ratio = fidelity / before
            loss = loss + self.fidelity_weight * part_mean(ratio, at_start, START_SHARE, draws.batch)
            terms |= seen | region_errors(enhanced, first.pictures, first.masks)
            terms |= {
                "denoising_start": found.squared.detach()[at_start].mean(),
                "unchanged_start": found.unchanged[at_start].mean(),
                "fidelity_ratio": ratio.detach().mean(),
            }
        if self.objective is not None:
            decoded = self.autoencoder.decode(rough)
            rate, logged = self.objective(coded.bits, decoded, batch, quality, draws, progress)
            loss = loss + self.rate_weight * rate
            terms |= {
                f"rough_{name}" if name.startswith("mse") else name: value for name, value in logged.items()
            }
        return loss, terms

    def denoise(
        self,
        latents: Tensor,
        rough: Tensor,
        quality: Tensor,
        at_start: Tensor,
        captions: list[str | None],
        regions: Tensor,
        draws: Draws,
    ) -> Denoised:
        """Places on the path, the start for pictures that are ``at_start`` [B], and what the UNet makes of them.

        ``regions`` [B, 1, h, w] are the RoI weights of latent positions.
        """
        level = self.codec.compressor.level(quality)
        scale = at_level(self.enhancer.error_scale, level)[..., None, None]
        with torch.no_grad():
            begin = self.enhancer.start(rough, level, draws.normal(*rough.shape[1:]))
            time = torch.where(at_start, 1.0, 1 - draws.uniform() ** 2)
            state = torch.lerp(latents, begin, time[:, None, None, None])
            wanted = (rough - latents) / scale
            weight = by_energy(self.autoencoder.latent_scale() * scale[..., 0, 0]) * regions
        lost = self.enhancer.lost(state, rough, time, level, self.text(captions))
        squared = (weight * (lost - wanted) ** 2).mean((1, 2, 3))
        return Denoised(squared, (weight * wanted**2).mean((1, 2, 3)), rough - scale * lost)

    def trouble(self, terms: dict[str, float]) -> str | None:
        """A rate that has collapsed or burst, where the compressor is tuned."""
        return rate_trouble(terms["bpp"]) if "bpp" in terms else None

    def samples(self, batch: Batch, draws: Draws) -> list[list[Tile]]:
        """Original, and before and after one step at two qualities."""
        latents = self.autoencoder.encode(batch.pictures)
        rows = [
            [Tile.of(picture, caption or "no caption")]
            for picture, caption in zip(batch.pictures, batch.captions, strict=True)
        ]
        for quality in (10, 40):
            level = torch.full((len(latents),), quality, device=latents.device)
            rough = code(self.codec, latents, level, "rounded", roi=interest(batch.masks, latents)).latents
            text = self.text(batch.captions)
            enhanced = self.enhancer(rough, quality, 1, draws.normal(*rough.shape[1:]), text, text)
            for words, made in ((f"q {quality}", rough), (f"q {quality}, one step", enhanced)):
                for row, picture in zip(rows, self.autoencoder.decode(made), strict=True):
                    row.append(Tile.of(picture, words))
        return rows
