"""A picture of where the bits went: heat colours over the grey photo, with a scale of bits."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from slimcodec.images import Pixels

_MIN_SIDE = 256  # smaller pictures are enlarged, so that there is something to see
_STRENGTH = 0.6  # of the colours, the rest is the grey picture
# Dark to light, so that the order of the colours can be read in grey as well.
_HEAT = ((0, 0, 30), (90, 20, 110), (190, 55, 85), (245, 125, 20), (252, 255, 165))


def draw_bits(pixels: Pixels, bits: npt.NDArray[np.float32], cell: int) -> Image.Image:
    """Return an RGB picture of ``bits`` over ``pixels``, with a scale below it.

    ``pixels`` is ``H x W x 3`` uint8; ``bits``, at least 0, has one value for ``cell x cell`` pixels, its last
    row and column perhaps reaching beyond the picture. Small pictures are enlarged by a whole factor.
    """

    def heat(share: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        stops = np.linspace(0, 1, len(_HEAT))
        return np.stack([np.interp(share, stops, channel) for channel in zip(*_HEAT, strict=True)], axis=-1)

    height, width = pixels.shape[:2]
    most = float(bits.max())
    shares = (bits / most if most > 0 else bits).astype(np.float32)
    cells = np.repeat(np.repeat(heat(shares).astype(np.float32), cell, axis=0), cell, axis=1)[:height, :width]
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)[:, :, None]
    blended = Image.fromarray(np.rint(grey * (1 - _STRENGTH) + cells * _STRENGTH).astype(np.uint8))
    factor = max(1, _MIN_SIDE // max(width, height))
    blended = blended.resize((width * factor, height * factor), Image.Resampling.NEAREST)

    margin, bar = 8, 10
    font = ImageFont.load_default()
    canvas = Image.new("RGB", (max(blended.width, _MIN_SIDE), blended.height + 44), "white")
    canvas.paste(blended, (0, 0))
    ramp = heat(np.linspace(0, 1, canvas.width - 2 * margin, dtype=np.float32))[None]
    canvas.paste(
        Image.fromarray(np.rint(np.repeat(ramp, bar, axis=0)).astype(np.uint8)),
        (margin, blended.height + margin),
    )
    draw = ImageDraw.Draw(canvas)
    y = blended.height + margin + bar + 4
    draw.text((margin, y), "0", fill="black", font=font)
    draw.text(
        (canvas.width - margin, y),
        f"{most:.1f} bits in {cell}x{cell} px",
        fill="black",
        font=font,
        anchor="ra",
    )
    return canvas
