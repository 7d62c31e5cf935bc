"""Draw one picture's way through the codec: the figures of docs/how-it-works.md.

python examples/how_it_works.py [--out FOLDER] [--quality Q]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

import slimcodec
from slimcodec.codec import Codec
from slimcodec.data.contact_sheet import Tile, contact_sheet, draw_bits, overlay
from slimcodec.files import atomic_write
from slimcodec.images import Pixels, as_file

SIZE = (384, 256)
#: width of a tile in pixels, and channels of the latent that are shown
SHOWN, CHANNELS = 250, 4


def shown(pixels: Pixels, *lines: str, smooth: bool = True) -> Tile:
    """A tile of the common width."""
    picture = Image.fromarray(pixels).convert("RGB")
    height = round(picture.height * SHOWN / picture.width)
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return Tile(np.asarray(picture.resize((SHOWN, height), how)), lines)


def mosaic(values: NDArray[np.float32], channels: list[int]) -> Pixels:
    """Channels of an array [C, h, w] side by side in two rows, grey, each from its least to its greatest value."""
    greys = []
    for channel in channels:
        plane = values[channel] - values[channel].min()
        grey = np.uint8(255 * plane / max(float(plane.max()), 1e-9))
        greys.append(np.pad(grey, 1, constant_values=255))
    half = len(greys) // 2
    return np.vstack([np.hstack(greys[:half]), np.hstack(greys[half:])])


def figures(codec: Codec, quality: int) -> dict[str, Image.Image]:
    """The figures by name."""
    picture = Image.fromarray(data.coffee()).resize(SIZE, Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    file = codec.encode(picture, quality)
    info = slimcodec.inspect(file)
    interest = codec.encoder.interest(pixels)
    if interest is None:
        raise SystemExit("the bundle finds no region of interest")
    seen = overlay(pixels, interest.weights[0, 0])
    latent, decompressed = (
        np.asarray(x, np.float32) for x in (codec.latents(picture), codec.decode_latent(file))
    )
    channels = [int(n) for n in np.argsort(-decompressed.var((1, 2)))[:CHANNELS]]
    coded = codec.quantise(picture, quality)
    symbols = coded.symbols()
    bits = codec.bit_map(picture, quality)
    places = f"{latent.shape[2]}x{latent.shape[1]} positions of {latent.shape[0]} numbers"
    fast, machine = (np.asarray(codec.decode(file, **how)) for how in ({"steps": 0}, {"preset": "machine"}))

    def error(decoded: Pixels) -> str:
        mean = float(((decoded.astype(float) - pixels) ** 2).mean())
        return f"PSNR {10 * np.log10(255**2 / mean):.1f} dB"

    rows = {
        "region": [
            shown(pixels, f"the photo, {SIZE[0]}x{SIZE[1]}", f"{pixels.nbytes:,} bytes raw"),
            shown(seen, "the region of interest", f"caption: {info.caption}"),
        ],
        "latent": [
            shown(mosaic(latent, channels), f"latent: {places}", f"the {CHANNELS} channels that keep most", smooth=False),
            shown(mosaic(decompressed, channels), "the same channels, decompressed", f"quality {quality}", smooth=False),
        ],
        "bits": [
            shown(mosaic(coded.values[0], list(range(CHANNELS))), f"{len(symbols):,} symbols", f"{100 * np.mean(symbols == 0):.1f} % are zero; the first {CHANNELS} channels", smooth=False),
            shown(np.asarray(draw_bits(pixels, bits, codec.cell)), f"bits at each position, {bits.sum() / 8:,.0f} bytes", f"file: {info.file_bytes:,} = {info.header_bytes} header + {info.caption_bytes} caption + {info.payload_bytes}"),
        ],
        "pictures": [
            shown(fast, "without steps", f"{info.file_bytes:,} bytes, {error(fast)}"),
            shown(machine, "preset machine: guided by the caption", f"the same file, {error(machine)}"),
        ],
    }  # fmt: skip
    return {name: contact_sheet([row]) for name, row in rows.items()}


def main() -> None:
    """Draw the figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("how-it-works"), help="folder of the figures")
    parser.add_argument("--quality", type=int, default=40, help="quality, 1 to 100 (default: 40)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(slimcodec.load(), arguments.quality).items():
        atomic_write(arguments.out / f"{name}.webp", as_file(figure, "WEBP", quality=90))


if __name__ == "__main__":
    main()
