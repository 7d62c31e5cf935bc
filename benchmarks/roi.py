"""What training with region-of-interest masks is worth: the same compressor twice, with and without them.

Both runs start from one autoencoder, see the same crops in the same order, and differ in ``compressor.background`` alone; both
are told where to look by one captioner, which learned from the same masks. They are compared on photos with annotated masks that
none of them has seen, and no mask is given: error inside the masks at equal bits per pixel, and the share of the bits that is
spent there. Bits are those of whole files.

    python benchmarks/roi.py --photos 'photos-*.parquet' --autoencoder runs/slim-tiny --teacher a.pt -o results/roi.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from slimcodec.codec import Codec, fast_dtype
from slimcodec.container import EMBEDDED_BUNDLE
from slimcodec.entropy.caption import read_vocabulary
from slimcodec.models.autoencoder import PatchAutoencoder
from slimcodec.models.bundle import Bundle, BundleConfig
from slimcodec.models.captioner import Tagger
from slimcodec.models.compressor import Compressor
from slimcodec.training.data import Crops, LabelledViews
from slimcodec.training.export import latent_codec_parts
from slimcodec.training.loop import Reports, train
from slimcodec.training.losses import Fidelity
from slimcodec.training.photos import Photo, PhotoSet
from slimcodec.training.recipe import load_recipe
from slimcodec.training.sources import open_sources
from slimcodec.training.stages.captioner import CaptionerStage
from slimcodec.training.stages.compressor import CompressorStage, RateFidelity
from slimcodec.training.teachers import load_teacher, start_from_classifier

QUALITIES = (1, *range(4, 89, 4))


class Chosen:
    """The rows of a set that a run may see."""

    def __init__(self, photos: PhotoSet, rows: list[int]) -> None:
        self.photos, self.rows = photos, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Photo | None:
        return self.photos[self.rows[number]]

    def pool(self, step: int) -> Chosen:
        """All of them, at every step."""
        return self


def train_captioner(arguments: argparse.Namespace, photos: Chosen, folder: Path) -> Tagger:
    """Trains a captioner that tells the region of interest, from a teacher's weights."""
    recipe = load_recipe("tiny-cpu").captioner
    vocabulary = read_vocabulary(EMBEDDED_BUNDLE / "vocabulary.txt")
    options = replace(recipe.optimisation, steps=arguments.captioner_steps, warmup=20)
    tagger = Tagger(replace(recipe.network, tags=len(vocabulary), roi=True))
    teacher = load_teacher(arguments.teacher)
    start_from_classifier(tagger, teacher)
    views = LabelledViews(
        photos, vocabulary, size=teacher.side, batch=options.batch, seed=options.seed, watched=True
    )
    stage = CaptionerStage(tagger, views, vocabulary, [teacher])
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    tagger.load_state_dict(train(stage, folder, options, Reports(), accelerator, resume=True))
    return tagger.eval()


def run(
    arguments: argparse.Namespace, background: float, photos: Chosen, tagger: Tagger, folder: Path
) -> Codec:
    """Trains a compressor with a background weight and returns a codec with it."""
    recipe = load_recipe("tiny-cpu", arguments.settings).compressor
    options = replace(recipe.optimisation, steps=arguments.steps, crop=arguments.crop, batch=arguments.batch)
    autoencoder = PatchAutoencoder(load_recipe("tiny-cpu").autoencoder.network)
    autoencoder.load_state_dict(load_file(arguments.autoencoder / "autoencoder.safetensors"))
    torch.manual_seed(options.seed)
    objective = RateFidelity(recipe.lambdas, Fidelity(background), recipe.mixed_start)
    crops = Crops(photos, options.crop, options.batch, options.seed)
    stage = CompressorStage(autoencoder, Compressor(recipe.network), crops, objective)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    weights = train(stage, folder, options, Reports(sample_every=500), accelerator, resume=True)
    stage.model.load_state_dict(weights)
    parts = {
        "autoencoder": dict(autoencoder.state_dict()),
        "captioner-0": dict(tagger.state_dict()),
        **latent_codec_parts(stage.model),
    }
    config = BundleConfig(
        "roi", load_recipe("tiny-cpu").autoencoder.network, recipe.network, captioners=(tagger.config,)
    )
    vocabulary = read_vocabulary(EMBEDDED_BUNDLE / "vocabulary.txt")
    return Codec(Bundle(config, parts, vocabulary, None, dtype=fast_dtype()))


def measure(codec: Codec, photos: list[Photo]) -> list[dict[str, float]]:
    """Means over the photos at every quality: file bits per pixel, squared error in and outside the mask, share of bits inside."""
    rows = []
    for quality in QUALITIES:
        found = []
        for photo in photos:
            assert photo.mask is not None
            data = codec.encode(photo.pixels, quality, caption=None)
            error = (np.asarray(codec.decode(data, steps=0), np.float64) - photo.pixels) ** 2
            bits = codec.bit_map(photo.pixels, quality)
            inside = Image.fromarray(photo.mask).resize(bits.shape[::-1], Image.Resampling.BOX)
            mask = photo.mask >= 0.5
            found.append(
                (
                    8 * len(data) / mask.size,
                    error[mask].mean(),
                    error[~mask].mean(),
                    float((bits * np.asarray(inside)).sum() / bits.sum()),
                    mask.mean(),
                )
            )
        names = ("bpp", "mse_roi", "mse_background", "bits_in_roi", "area_of_roi")
        rows.append({"quality": quality} | dict(zip(names, np.mean(found, 0).round(5).tolist(), strict=True)))
    return rows


def compare(plain: list[dict[str, float]], roi: list[dict[str, float]]) -> list[dict[str, Any]]:
    """For every point of the plain curve the point of the other at the nearest rate, where rates agree within 3 %."""
    pairs = []
    for point in plain:
        other = min(roi, key=lambda row: abs(np.log(row["bpp"] / point["bpp"])))
        if abs(other["bpp"] / point["bpp"] - 1) <= 0.03:
            pairs.append(
                {
                    "bpp": point["bpp"],
                    "bpp_with_roi": other["bpp"],
                    "roi_error_percent": round(100 * (other["mse_roi"] / point["mse_roi"] - 1), 1),
                    "background_error_percent": round(
                        100 * (other["mse_background"] / point["mse_background"] - 1), 1
                    ),
                    "bits_in_roi": point["bits_in_roi"],
                    "bits_in_roi_with_roi": other["bits_in_roi"],
                }
            )
    return pairs


def main() -> None:
    """Trains both, compares them and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", nargs="+", required=True)
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="run folder with autoencoder.safetensors"
    )
    parser.add_argument("--teacher", required=True, help="a MobileNet-v2 as a TorchScript file")
    parser.add_argument("--captioner-steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("runs/roi"))
    parser.add_argument("--background", type=float, default=0.15)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="as in slim train")
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    photos = PhotoSet(open_sources(arguments.photos, "--photos"))
    annotated = [row for row in range(len(photos)) if (photo := photos[row]) is not None and photo.annotated]
    drawn = [row for row in annotated if _is_outline(photos[row])]
    held_out = np.random.default_rng(0).permutation(drawn)[: arguments.held_out].tolist()
    seen = Chosen(photos, sorted(set(annotated) - set(held_out)))
    tests = [photo for photo in map(photos.__getitem__, held_out) if photo is not None]
    tagger = train_captioner(arguments, seen, arguments.folder / "captioner")
    curves = {}
    for name, background in (("plain", 1.0), ("roi", arguments.background)):
        codec = run(arguments, background, seen, tagger, arguments.folder / name)
        curves[name] = measure(codec, tests)
    result = {
        "command": f"benchmarks/roi.py --steps {arguments.steps} --crop {arguments.crop} --batch {arguments.batch} "
        f"--background {arguments.background} --held-out {arguments.held_out}",
        "trained_on": f"{len(seen)} photos with masks or boxes",
        "tested_on": f"{len(tests)} photos with outlines that were not trained on",
        "curves": curves,
        "at_equal_rate": compare(curves["plain"], curves["roi"]),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for pair in result["at_equal_rate"]:
        print(pair)


def _is_outline(photo: Photo | None) -> bool:
    """Whether a mask is finer than a union of boxes: its area is not that of its rows and columns."""
    if photo is None or photo.mask is None or not photo.mask.any():
        return False
    box = photo.mask[photo.mask.any(1)][:, photo.mask.any(0)]
    return bool(0.05 < photo.mask.mean() and box.mean() < 0.95)


if __name__ == "__main__":
    main()
