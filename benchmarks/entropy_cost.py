"""What exactness costs in bits: the range coder above the ideal bits, and integers in place of floating point in the prior.

    python benchmarks/entropy_cost.py --photos PHOTOS [--count 100] [--out results/entropy_cost.json]

Every photo (256x256) is encoded at five qualities. ``coder_excess`` compares payloads with the ideal bits of their symbols, and
``integer_cost`` the bits under the Gaussian tables that the prior was trained for with those of its float twin (continuous
means and scales); ``fitted_tables`` says what the bundle's own tables, fitted to real symbols, save.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from photos import photo_options, photos

import slimcodec
from slimcodec.training.compression_model import code, gaussian_tables, restore_latent_codec

QUALITIES = (5, 25, 50, 75, 95)


def main() -> None:
    """Measures every photo and quality, prints the report, and writes it where asked."""
    given = photo_options(__doc__, 100).parse_args()

    codec = slimcodec.load(dtype="float32")
    coder, twin, gaussian = codec.coder, restore_latent_codec(codec.bundle), gaussian_tables()
    pictures = photos(given.photos, given.count)
    # per photo and quality: bytes of the payload; ideal bits; bits under Gaussian tables; bits of the float twin
    found = np.zeros((len(pictures), len(QUALITIES), 4))
    for number, picture in enumerate(pictures):
        with torch.no_grad():
            latents = codec.latents(picture)[None]
            for column, quality in enumerate(QUALITIES):
                coded = codec.quantise(picture, quality)
                found[number, column] = (
                    len(coder.write(coded)),
                    coder.bit_map(coded).astype(np.float64).sum(),
                    sum(gaussian.bits(part.symbols, part.indices).sum() for part in coded.passes[-3:]),
                    float(code(twin, latents, torch.tensor([quality])).bits),
                )
    _, ideal, integer, floating = found.sum(0).T
    excess = found[..., 0] - found[..., 1] / 8
    source = given.photos.name if given.photos else "scikit-image"
    report = {
        "command": f"python benchmarks/entropy_cost.py --photos {source} --count {given.count}",
        "data": source,
        "bundle": codec.bundle.bundle_id,
        "photos": len(pictures),
        "qualities": QUALITIES,
        "files": found[..., 0].size,
        "coder_excess_bytes": {"mean": round(float(excess.mean()), 2), "max": round(float(excess.max()), 2)},
        "files_above_1_percent_plus_8_bytes": int((excess > 0.01 * found[..., 1] / 8 + 8).sum()),
        "fitted_tables_percent": round(100 * (ideal.sum() / integer.sum() - 1), 3),
        "integer_cost_percent_by_quality": {
            str(quality): round(100 * (value - 1), 3)
            for quality, value in zip(QUALITIES, integer / floating, strict=True)
        },
        "integer_cost_percent": round(100 * (integer.sum() / floating.sum() - 1), 3),
    }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
