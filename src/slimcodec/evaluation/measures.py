"""How near a decoded picture is to the original: PSNR, MS-SSIM, and LPIPS where its network is given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from slimcodec.errors import SlimError
from slimcodec.images import Pixels

#: exponents of the five scales (Wang, Simoncelli & Bovik 2003, section 3.2)
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
#: shortest side for five scales of the window
MS_SSIM_SIDE = WINDOW << (len(MS_SSIM_WEIGHTS) - 1)
#: PSNR of equal pictures is infinite; this stands for it where means are taken
MAX_PSNR = 100.0


def psnr(a: Pixels, b: Pixels, where: NDArray[np.bool_] | None = None) -> float | None:
    """Peak signal-to-noise ratio in dB over RGB of [H, W, 3] uint8 pictures, at most 100; of pixels ``where`` [H, W] only.

    None where the mask chooses no pixel.
    """
    error = (a.astype(np.float64) - b) ** 2
    if where is not None:
        error = error[where]
    if not error.size:
        return None
    mean = float(error.mean())
    return MAX_PSNR if mean == 0 else min(MAX_PSNR, float(10 * np.log10(255**2 / mean)))


def ssim_and_contrast(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure term of [C, H, W] pictures in 0..255, Gaussian window of 11, valid positions."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    half = WINDOW // 2

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = correlate1d(x, kernel, axis=1)[:, half:-half]
        result: NDArray[np.float64] = correlate1d(rows, kernel, axis=2)[:, :, half:-half]
        return result

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    ssim = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast
    return float(ssim.mean()), float(contrast.mean())


def ms_ssim(a: Pixels, b: Pixels) -> float | None:
    """Multi-scale structural similarity over RGB (Wang et al. 2003), 0..1; None for a side below 176 pixels.

    Negative contrast terms count as 0, as in the usual implementations.
    """
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    x, y = (picture.transpose(2, 0, 1).astype(np.float64) for picture in (a, b))
    product = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        ssim, contrast = ssim_and_contrast(x, y)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        product *= max(ssim if last else contrast, 0.0) ** weight
        x, y = _halve(x), _halve(y)
    return product


def _halve(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of 2x2 pixels; an odd last row or column is left out."""
    channels, height, width = x.shape[0], x.shape[1] // 2, x.shape[2] // 2
    result: NDArray[np.float64] = (
        x[:, : 2 * height, : 2 * width].reshape(channels, height, 2, width, 2).mean((2, 4))
    )
    return result


def load_lpips(path: str) -> Callable[[Pixels, Pixels], float]:
    """The distance that a TorchScript module gives for two pictures [1, 3, H, W] in [-1, 1], such as a traced LPIPS network.

    Raises ``SlimError`` where the file is no TorchScript module that maps two pictures to one number.
    """
    import torch

    try:
        module = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise SlimError(f"{path}: no TorchScript module; export LPIPS with torch.jit.trace") from error

    def distance(a: Pixels, b: Pixels) -> float:
        x, y = (torch.tensor(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (a, b))
        with torch.inference_mode():
            found = module(x, y)
        if found.numel() != 1:
            raise SlimError(
                f"{path}: gives {found.numel()} numbers for two pictures; LPIPS gives one distance"
            )
        return float(found)

    grey = np.full((64, 64, 3), 128, np.uint8)
    distance(grey, grey)
    return distance
