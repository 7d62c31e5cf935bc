"""The RoI latent compressor: latents to symbols at any quality, and symbols to the decompressed latent.

One model covers qualities 1..100 by gain vectors interpolated between trained levels (Cui et al. 2021, "Asymmetric gained
deep image compression"). The step of quantisation grows outside the region of interest; where, a map tells that is coded with the
latent, in the place of its weakest coefficient. At inference no mask is needed: the captioner, which looks at the picture anyway,
tells where the region is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcodec.models.blocks import ResBlock, at_level, dtype_of, quality_to_level, small_conv
from slimcodec.models.config import GATE, HYPER_STRIDE, OPEN, CompressorConfig

#: interest below which a position belongs to the background
BACKGROUND_BELOW = 0.25


class LevelBranch(nn.Module):
    """Residual blocks modulated by the quality level (FiLM), ending near zero."""

    def __init__(self, channels: int, width: int, outputs: int, blocks: int, levels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 1)
        self.film = nn.Parameter(torch.zeros(levels, 2 * width))
        self.blocks = nn.Sequential(*(ResBlock(width) for _ in range(blocks)), nn.SiLU())
        self.leave = small_conv(width, outputs)

    def forward(self, x: Tensor, level: Tensor, beside: Tensor | None = None) -> Tensor:
        """``beside`` [B, width, h, w] is added to what enters the blocks."""
        hidden = self.enter(x.to(dtype_of(self.enter)))
        if beside is not None:
            hidden = hidden + beside
        scale, shift = at_level(self.film, level).to(hidden.dtype)[..., None, None].chunk(2, dim=1)
        return self.leave(self.blocks(hidden * (1 + scale) + shift))


class Compressor(nn.Module):
    """Analysis, synthesis and hyper-analysis, all in floating point: nothing here has to be exact."""

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.prior.channels
        inner = config.latent_channels * config.patch**2
        levels, width = config.prior.levels, config.width
        # patches have a transform of their own, latents that are coded one by one had theirs already
        same = inner == channels and config.patch == 1
        self.enter: nn.Module = nn.Identity() if same else nn.Conv2d(inner, channels, 1)
        self.leave: nn.Module = nn.Identity() if same else nn.Conv2d(channels, inner, 1)
        self.analysis = LevelBranch(channels, width, 2 * channels, config.analysis_blocks, levels)
        self.synthesis = LevelBranch(channels, width, channels, config.synthesis_blocks, levels)
        # the map of steps, 1 outside the region, beside what enters analysis and synthesis
        self.analysis_steps = nn.Conv2d(1, width, 1, bias=False) if config.step_octaves else None
        self.synthesis_steps = nn.Conv2d(1, width, 1, bias=False) if config.step_octaves else None
        self.log_gain = nn.Parameter(torch.zeros(levels, channels))
        self.log_inverse_gain = nn.Parameter(torch.zeros(levels, channels))
        hidden = config.hyper_width
        self.hyper_analysis = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, config.prior.hyper_channels, 4, stride=2, padding=1),
        )
        self.log_hyper_gain = nn.Parameter(torch.zeros(levels, config.prior.hyper_channels))

    def level(self, quality: Tensor) -> Tensor:
        """Quality [B] in 1..100 as a position between trained levels."""
        return quality_to_level(quality, self.config.prior.levels)

    def analyse(self, latents: Tensor, level: Tensor, roi: Tensor | None = None) -> Tensor:
        """Latents [B, C, h, w] to values y [B, channels, h/patch, w/patch], float32, that are rounded to symbols.

        ``roi`` [B, 1, h, w] in [0, 1] is the interest in every position, None for everywhere. With ``step_octaves`` the last
        channel is the map of steps: 1 in the background, 0 elsewhere.
        """
        x, steps = self._entered(latents, roi)
        residual, gate = self.analysis(x, level, _beside(self.analysis_steps, steps)).float().chunk(2, dim=1)
        return self._scaled((x + residual) * torch.sigmoid(gate + GATE), steps, level)

    def analyse_linearly(self, latents: Tensor, level: Tensor, roi: Tensor | None = None) -> Tensor:
        """``analyse`` without its branch: values that stay in proportion to any latent."""
        x, steps = self._entered(latents, roi)
        return self._scaled(x * OPEN, steps, level)

    def _entered(self, latents: Tensor, roi: Tensor | None) -> tuple[Tensor, Tensor]:
        """What values are made of [B, channels, h/patch, w/patch], and the map of steps [B, 1, h/patch, w/patch]."""
        interest = torch.ones_like(latents[:, :1]) if roi is None else roi
        steps = (F.avg_pool2d(interest, self.config.patch) < BACKGROUND_BELOW).float()
        return self.enter(F.pixel_unshuffle(latents, self.config.patch)).float(), steps

    def _scaled(self, x: Tensor, steps: Tensor, level: Tensor) -> Tensor:
        """``x`` in steps of quantisation, with the map of steps in the place of the last channel."""
        values = x * at_level(self.log_gain, level).exp()[..., None, None]
        if not self.config.step_octaves:
            return values
        return torch.cat([values[:, :-1] * 2.0 ** (-self.config.step_octaves * steps), steps], dim=1)

    def synthesise(self, values: Tensor, level: Tensor) -> Tensor:
        """Decoded values [B, channels, h, w] to decompressed latents [B, C, patch * h, patch * w], float32."""
        steps = values[:, -1:]
        if self.config.step_octaves:
            scaled = values[:, :-1] * 2.0 ** (self.config.step_octaves * steps)
            values = torch.cat([scaled, torch.zeros_like(steps)], dim=1)
        x = values * at_level(self.log_inverse_gain, level).exp()[..., None, None]
        x = self.leave(x + self.synthesis(x, level, _beside(self.synthesis_steps, steps)).float())
        return F.pixel_shuffle(x, self.config.patch)

    def hyper_analyse(self, values: Tensor, level: Tensor) -> Tensor:
        """Values y [B, channels, h, w] to hyper-latents [B, Ch, ceil(h/4), ceil(w/4)], float32, before rounding."""
        pad_rows, pad_columns = -values.shape[2] % HYPER_STRIDE, -values.shape[3] % HYPER_STRIDE
        # asinh tames the DC coefficient, whose range is a hundred times that of the others; torch's own takes ten times as
        # long as its logarithm
        tamed = values.sign() * torch.log(values.abs() + (values.square() + 1).sqrt())
        x = F.pad(tamed, (0, pad_columns, 0, pad_rows), mode="replicate")
        hyper = self.hyper_analysis(x.to(dtype_of(self.hyper_analysis))).float()
        return hyper * at_level(self.log_hyper_gain, level).exp()[..., None, None]


def _beside(convolution: nn.Module | None, steps: Tensor) -> Tensor | None:
    return None if convolution is None else convolution(steps.to(dtype_of(convolution)))
