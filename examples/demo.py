"""Encode four photos at several qualities, print what they cost, and draw them side by side.

    python examples/demo.py [--out demo]

The photos come with scikit-image, the networks with slimcodec: nothing is downloaded.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

import slimcodec

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
QUALITIES = (10, 30, 50, 75, 95)
SHOWN_QUALITY = 30
SHORT_SIDE = 256
LABEL_HEIGHT, GAP = 18, 4
ROW = "{:<10} {:>8} {:>8} {:>8} {:>7} {:>9} {:>9} {:>9}"


def load_photo(name: str) -> Image.Image:
    """Return a photo of scikit-image with its short side resized to 256 pixels."""
    photo = Image.fromarray(np.asarray(getattr(data, name)()))
    scale = SHORT_SIDE / min(photo.size)
    size = (round(photo.width * scale), round(photo.height * scale))
    return photo.resize(size, Image.Resampling.LANCZOS)


def side_by_side(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Return labelled pictures in rows, each row as high as its pictures, as wide as the widest."""
    widths = [sum(picture.width + GAP for _, picture in row) - GAP for row in rows]
    heights = [row[0][1].height + LABEL_HEIGHT for row in rows]
    sheet = Image.new("RGB", (max(widths), sum(heights) + GAP * (len(rows) - 1)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    y = 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for label, picture in row:
            draw.text((x + 2, y + 3), label, fill="black", font=font)
            sheet.paste(picture, (x, y + LABEL_HEIGHT))
            x += picture.width + GAP
        y += height + GAP
    return sheet


def main() -> None:
    """Run the demo; writes ``side_by_side.png`` into the folder given by ``--out``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder of the picture (default: demo)"
    )
    out: Path = parser.parse_args().out

    codec = slimcodec.load()
    # The first use of a network is slower than all others.
    warm_up = codec.encode(Image.new("RGB", (SHORT_SIDE, SHORT_SIDE)))
    codec.decode(warm_up)
    print(ROW.format("photo", "size", "quality", "bytes", "bpp", "encode s", "steps 0 s", "decode s"))
    rows = []
    for name in PHOTOS:
        photo = load_photo(name)
        for quality in QUALITIES:
            start = time.perf_counter()
            coded = codec.encode(photo, quality=quality)
            encoded = time.perf_counter()
            fast = codec.decode(coded, steps=0)
            decoded_fast = time.perf_counter()
            full = codec.decode(coded)
            decoded = time.perf_counter()
            info = slimcodec.inspect(coded)
            seconds = (encoded - start, decoded_fast - encoded, decoded - decoded_fast)
            print(
                ROW.format(
                    name,
                    f"{info.width}x{info.height}",
                    quality,
                    info.file_bytes,
                    f"{info.bpp:.3f}",
                    *(f"{second:.2f}" for second in seconds),
                )
            )
            if quality == SHOWN_QUALITY:
                raw = photo.width * photo.height * 3
                size = f"{info.file_bytes:,} bytes"
                labels = (f"{name}, {raw:,} bytes raw", f"steps 0, {size}", f"default steps, {size}")
                rows.append(list(zip(labels, (photo, fast, full), strict=True)))
    out.mkdir(parents=True, exist_ok=True)
    side_by_side(rows).save(out / "side_by_side.png")
    print(f"wrote {out / 'side_by_side.png'} (quality {SHOWN_QUALITY})")


if __name__ == "__main__":
    main()
