"""``slim map``: a picture of where the bits went."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.messages import FAILED, complain, failing, say, stop


def map_(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Picture.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="PNG", help="Picture to write.")],
    quality: Annotated[
        int, typer.Option("--quality", "-q", min=1, max=100, metavar="Q", help="Quality, 1 to 100.")
    ] = 50,
    roi: options.Roi = "auto",
    model: options.Model = None,
    device: options.Device = "cpu",
    max_pixels: options.MaxPixels = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Draw where the bits of a picture go: heat colours over its grey version, with a scale of bits.

    Print the share of bits that the region of interest gets.
    Exit status: 0 fine, 1 failed, 2 usage.

    Examples:
      slim map photo.jpg -o bits.png
      slim map photo.jpg -o bits.png --quality 20
      slim map photo.jpg -o bits.png --roi mask.png
    """
    target = Path(out)
    if os.path.isfile(target) and not overwrite:
        stop(f"{out}: exists; --overwrite replaces it", FAILED)
    import io
    import warnings

    import slimcodec
    from slimcodec.bit_map import draw_bits
    from slimcodec.files import atomic_write
    from slimcodec.images import ImageWarning, load_image

    with failing():
        codec = slimcodec.load(model, device=device)
    with failing(image):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ImageWarning)
            pixels = load_image(image, max_pixels=max_pixels)
        for warning in caught:
            complain(f"warning: {warning.message}", image)
        coder = codec.bundle.coder
        coded = codec.quantise(pixels, quality, roi=options.region_of(roi))
        bits, region, cell = coder.bit_map(coded), coder.region(coded), codec.cell
    with failing(out):
        picture = io.BytesIO()
        draw_bits(pixels, bits, cell).save(picture, "PNG")
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, picture.getvalue())
    total, most = float(bits.sum()), float(bits.max())
    say(f"{out}: {total / 8:,.0f} bytes in the latent, at most {most:.1f} bits in {cell}x{cell} pixels")
    if region is not None:
        share = float(bits[region].sum()) / max(total, 1e-9)
        say(f"{share:.0%} of the bits in the region of interest, {region.mean():.0%} of the picture")
