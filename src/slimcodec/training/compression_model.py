"""The latent compressor with the float twin of its exact prior: its start, its rate in training, its way into a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimcodec.entropy.tables import SymbolTables
from slimcodec.errors import SlimError
from slimcodec.models.autoencoder import PatchAutoencoder, klt, patch_rows
from slimcodec.models.blocks import at_level
from slimcodec.models.bundle import Bundle
from slimcodec.models.compressor import Compressor
from slimcodec.models.config import OPEN, SCALES
from slimcodec.models.latent_codec import anchor_mask
from slimcodec.models.pretrained.networks import Autoencoder, PretrainedAutoencoder
from slimcodec.models.prior import (
    FloatLayer,
    PriorNetwork,
    index_of_scale,
    quantise_prior,
    scale_of_index,
)
from slimcodec.training.batches import Draws
from slimcodec.training.losses import symbol_bits


class CompressionModel(nn.Module):
    """What the compressor stage trains: compressor, float prior, hyper scales, and our own autoencoder but no pretrained one."""

    def __init__(self, compressor: Compressor, autoencoder: Autoencoder) -> None:
        super().__init__()
        config = compressor.config.prior
        self.compressor = compressor
        layers = {name: FloatLayer(layer) for name, layer in config.layers().items()}
        self.prior = PriorNetwork(config.channels, layers)
        self.hyper_scale = nn.Parameter(torch.zeros(config.levels, config.hyper_channels))
        self.autoencoder = autoencoder if isinstance(autoencoder, PatchAutoencoder) else None

    def tune_autoencoder(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Which halves of our own autoencoder are trained too."""
        if self.autoencoder is not None:
            for part in (self.autoencoder.encoder, self.autoencoder.analysis):
                part.requires_grad_(encoder)
            for part in (self.autoencoder.decoder, self.autoencoder.synthesis):
                part.requires_grad_(decoder)
            self.autoencoder.mean.requires_grad_(False)

    @property
    def hyper_index(self) -> Tensor:
        """Table index of the hyper-latents' scale [levels, Ch]; the factor makes steps of the optimiser felt."""
        return 12 + 32 * self.hyper_scale

    @torch.no_grad()
    def init_gains(self, latent_scale: Tensor, lambdas: Tensor, predicted: float = 0.3) -> None:
        """Sets gains by the step size that fits each lambda, and scales by the latents' energy.

        ``latent_scale`` [C]: picture energy of a unit latent in units of 0..255; ``lambdas`` [levels]; ``predicted``: share of a
        coefficient's deviation that prediction leaves.
        """
        step = 5.1 / lambdas.sqrt()
        gain = (latent_scale[None] / step[:, None]).log()
        self.compressor.log_gain.copy_(gain)
        self.compressor.log_inverse_gain.copy_(-gain)
        if self.compressor.config.step_octaves:
            # the map of steps has ones and zeros, and no gain
            gain[:, -1] = 0
        middle = gain.mean(0).exp().clamp(min=1.0)
        layers: Any = self.prior.layers
        layers["context"].in_scale.copy_((1 / middle).repeat(len(layers["context"].in_scale) // len(middle)))
        for head in ("anchor", "rest"):
            layers[f"{head}_mean"].out_scale.copy_(middle)
            layers[f"{head}_scale"].out_scale.fill_(8.0)
            layers[f"{head}_scale"].bias.copy_(index_of_scale(gain.exp() * predicted + 0.1) / 8.0)


@torch.no_grad()
def start_as_transform(
    model: CompressionModel,
    autoencoder: PretrainedAutoencoder,
    pictures: Tensor,
    lambdas: Tensor,
    predicted: float = 0.3,
) -> Tensor:
    """Makes an untrained compressor the KLT of patches of the latents of ``pictures`` [B, 3, H, W] in [-1, 1], with gains.

    Latents are weighted by what they cost in the picture, so that the first coefficients matter most there; coefficients have
    unit variance. Returns that weight of each channel (``latent_scale``).
    """
    device = next(autoencoder.parameters()).device
    latents = torch.cat([autoencoder.encode(picture[None].to(device)) for picture in pictures])
    config = model.compressor.config
    scale = autoencoder.latent_scale(latents[:2])
    weight = scale.double().repeat_interleave(config.patch**2)
    channels = config.prior.channels
    enter: Any = model.compressor.enter
    leave: Any = model.compressor.leave
    if channels > len(weight) or isinstance(enter, nn.Identity):
        raise SlimError(
            f"compressor.network: patches of {config.patch}x{config.patch} latents have {len(weight)} values, and "
            f"prior.channels is {channels}; give at most as many, and a patch above 1"
        )
    rows = patch_rows(latents, config.patch).double() * weight
    mean, basis, spread = klt(rows, channels)
    analysis = basis * weight / spread[:, None]
    enter.weight.copy_(analysis[..., None, None])
    enter.bias.copy_(-analysis @ (mean / weight))
    # the synthesis makes up for what the gate takes away
    synthesis = (basis.T * spread) / weight[:, None] / OPEN
    leave.weight.copy_(synthesis[..., None, None])
    leave.bias.copy_(mean / weight)
    model.init_gains(spread.float().to(lambdas.device) * 127.5, lambdas, predicted)
    return scale


@dataclass
class Coded:
    """A pass through the compressor in training: what comes back, and bits per picture [B]."""

    latents: Tensor
    bits: Tensor
    hyper_bits: Tensor


def straight_round(x: Tensor) -> Tensor:
    """Rounding whose gradient is one (straight-through)."""
    return x + (x.round() - x).detach()


def interest(masks: Tensor, latents: Tensor) -> Tensor:
    """Masks [B, 1, H, W] as coarse a map [B, 1, h, w] of interest in the latents' positions as a captioner can tell."""
    coarse = nn.functional.avg_pool2d(masks, masks.shape[2] // latents.shape[2])
    return nn.functional.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)


def rate_bits(residual: Tensor, index: Tensor, noise: Tensor | None, mixed: bool) -> Tensor:
    """Bits of residuals before rounding, elementwise.

    Without ``noise``: the bits of the file, which have no gradient for what rounds to zero. With ``noise``, uniform in
    [-1/2, 1/2), in the place of rounding (Balle et al. 2017): smooth, but low rates are overstated. ``mixed``: the bits of the
    file, whose gradient trains the scales, while values and means follow the gradient of noise.
    """
    if noise is not None and not mixed:
        return symbol_bits(residual + noise, index)
    true = symbol_bits(residual.detach().round(), index)
    if noise is None:
        return true
    smooth = symbol_bits(residual + noise, index.detach())
    return true + smooth - smooth.detach()


def code(
    model: CompressionModel,
    latents: Tensor,
    quality: Tensor,
    masks: Tensor | None = None,
    draws: Draws | None = None,
    mixed: bool = True,
) -> Coded:
    """Latents through analysis, quantisation, prior and synthesis, which sees rounded symbols (straight-through).

    ``masks``: region of interest [B, 1, H, W], of the pictures or as coarse as the latents; ``draws``: gives the noise of the rate, see ``rate_bits``.
    """

    def noise(x: Tensor) -> Tensor | None:
        return None if draws is None else draws.uniform(*x.shape[1:]) - 0.5

    compressor, network = model.compressor, model.prior
    level = compressor.level(quality)
    values = compressor.analyse(latents, level, None if masks is None else interest(masks, latents))
    hyper = compressor.hyper_analyse(values, level)
    with torch.autocast(latents.device.type, enabled=False):
        values, hyper = values.float(), hyper.float()
        hyper_index = at_level(model.hyper_index, level).clamp(0, SCALES - 1)[..., None, None]
        hyper_bits = rate_bits(hyper, hyper_index, noise(hyper), mixed).sum((1, 2, 3))

        # channels last from here on
        y = values.permute(0, 2, 3, 1)
        height, width = y.shape[1:3]
        features = network.hyper_features(straight_round(hyper).permute(0, 2, 3, 1), level)
        features = features[:, :height, :width]
        anchors = torch.from_numpy(anchor_mask(height, width)).to(y.device)

        def quantise(y: Tensor, mean: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            residual = y - mean
            bits = rate_bits(residual, index.clamp(0, SCALES - 1), noise(residual), mixed)
            decoded = straight_round(residual) + mean
            if compressor.config.step_octaves:
                # the map of steps is coded for itself: a few bytes, which depend on no weight
                decoded, bits = torch.cat([decoded[..., :-1], y[..., -1:]], dim=-1), bits[..., :-1]
            return decoded, bits.sum((1, 2))

        first, first_bits = quantise(y[:, anchors], *network.anchor_parameters(features[:, anchors], level))
        grid = torch.zeros_like(y)
        grid[:, anchors] = first
        context = network.context(grid, (~anchors).flatten().nonzero().flatten())
        rest, rest_bits = quantise(
            y[:, ~anchors], *network.rest_parameters(features[:, ~anchors], context, level)
        )
        grid = grid.clone()
        grid[:, ~anchors] = rest
    decoded = compressor.synthesise(grid.permute(0, 3, 1, 2), level)
    return Coded(decoded, first_bits + rest_bits + hyper_bits, hyper_bits)


# ---- bundle parts ----------------------------------------------------------------------------------------------

#: the deviation that each of the prior's scale indices means
TABLE_SCALES = scale_of_index(torch.arange(SCALES).double()).numpy()


def gaussian_tables() -> SymbolTables:
    """The symbol tables that the prior's scale indices mean in training."""
    return SymbolTables.gaussian(TABLE_SCALES)


def latent_codec_parts(model: CompressionModel) -> dict[str, dict[str, Any]]:
    """The bundle parts ``compressor`` and ``prior`` of a trained model: the prior as integers, with ``gaussian_tables``."""
    prior = quantise_prior(model.prior, model.hyper_index)
    return {"compressor": dict(model.compressor.state_dict()), "prior": prior | gaussian_tables().tensors()}


def restore_latent_codec(bundle: Bundle) -> CompressionModel:
    """The trainable model of a bundle (loaded in float32): the float twin of its integer prior, weights as stored."""
    model = CompressionModel(bundle.compressor, bundle.latent_model.autoencoder)
    tensors = {name: torch.from_numpy(value) for name, value in bundle.stored["prior"].items()}
    with torch.no_grad():
        for name, layer in model.prior.layers.items():
            assert isinstance(layer, FloatLayer)
            # the layer's grids say how many fractional bits the stored weights have
            bits = int(tensors[f"{name}.meta"][0]) - layer.in_bits + layer.out_bits
            layer.weight.copy_(tensors[f"{name}.weight"].double() / 2.0**bits)
            layer.bias.copy_(tensors[f"{name}.bias"].double() / 2.0 ** (layer.in_bits + bits))
        model.hyper_scale.copy_((tensors["hyper_index"] / 16 - 12) / 32)
    return model
