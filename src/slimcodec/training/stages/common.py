"""What several stages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from slimcodec.training.draws import Draws
from slimcodec.training.sheets import Tile


class BaseStage:
    """A stage that trains all its parameters at one rate, meets no trouble, and shows nothing."""

    name = ""
    model: nn.Module
    frozen: Sequence[nn.Module] = ()
    #: these learn at a fraction of the rate: a linear path that already is a good transform
    slow: Sequence[nn.Parameter] = ()
    slowness = 0.02

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Two groups: the slow parameters, and the rest of what is trained."""
        slow = [parameter for parameter in self.slow if parameter.requires_grad]
        ids = {id(parameter) for parameter in slow}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in ids]
        return [{"params": rest, "lr": learning_rate}, {"params": slow, "lr": learning_rate * self.slowness}]

    def trouble(self, terms: dict[str, float]) -> str | None:
        """Why the run should stop, or None."""
        return None

    def samples(self, batch: Any, draws: Draws) -> list[list[Tile]]:
        """Rows of pictures that show what the model does."""
        return []


def psnr(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, dB, of a mean squared error in units of 0..255 squared."""
    return 10 * (255.0**2 / error.clamp(min=1e-6)).log10()


def rate_trouble(bpp: float) -> str | None:
    """Why a mean rate, bits per pixel, says that training has failed."""
    if bpp < 1e-3:
        return (
            f"the rate has collapsed to {bpp:.5f} bits per pixel, the compressor sends nothing; raise compressor.lambdas or "
            "lower compressor.optimisation.learning_rate"
        )
    if bpp > 24:
        return f"the rate has grown to {bpp:.0f} bits per pixel; lower compressor.optimisation.learning_rate"
    return None
