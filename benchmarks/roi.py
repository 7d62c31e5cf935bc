"""What training with region-of-interest masks is worth: the same compressor twice, with and without them.

Both runs start from one autoencoder and see the same crops in the same order. One weighs the background less and has a map of
quantisation steps, the other has neither. They are compared on photos with drawn masks that nothing here has seen, at equal bits per
pixel of whole files: error inside the masks, and the share of the bits that is spent there. No mask is given at encoding: a
captioner, which learned from the other photos' masks, tells where to look. With the true mask given is a third curve.

    python benchmarks/roi.py --photos 'photos-*.parquet' --autoencoder runs/slim-tiny --teacher a.pt -o results/experiments/roi.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from slimcodec.codec import Codec, fast_dtype
from slimcodec.data.classifiers import load_classifier
from slimcodec.data.photos import Photo, PhotoSet
from slimcodec.data.sources import open_sources
from slimcodec.encoder import Roi
from slimcodec.models.bundle import Bundle
from slimcodec.models.captioner import Tagger
from slimcodec.models.config import BundleConfig
from slimcodec.training.compression_model import latent_codec_parts
from slimcodec.training.loop import Stage, train
from slimcodec.training.recipe import load_recipe
from slimcodec.training.run import Run
from slimcodec.training.stages.captioner import CaptionerStage, start_from_classifier
from slimcodec.training.stages.compressor import CompressorStage

QUALITIES = (4, 12, 20, 30, 42, 56, 72, 88)
#: bits per pixel at which the curves are compared
RATES = (0.05, 0.1, 0.2, 0.35)
#: share of the frame below which an object is small
SMALL = 0.3


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


def a_run(folder: Path, photos: Chosen, *settings: str) -> Run:
    """A run of recipe tiny-cpu on some photos, without teachers."""
    run = Run(load_recipe("tiny-cpu", [f"out={folder}", *settings]))
    run.data.photo_set = photos  # type: ignore[assignment]
    return run


def trained(run: Run, stage: Stage[Any]) -> dict[str, Tensor]:
    """The weights of a stage; an interrupted one goes on."""
    options = run.recipe.optimisation(stage.name)
    reports, state = run.recipe.reports, run.checkpoint(stage.name)
    return train(stage, run.folder, options, reports, run.accelerator, state=state)


def train_captioner(arguments: argparse.Namespace, photos: Chosen, folder: Path) -> Tagger:
    """Trains a captioner that tells the region of interest, from a teacher's weights."""
    steps = (f"captioner.optimisation.steps={arguments.captioner_steps}", "captioner.optimisation.warmup=20")
    run = a_run(folder, photos, *steps, "captioner.start_from_weights=false", "captioner.smallest_area=0.5")
    stage = CaptionerStage(run)
    start_from_classifier(stage.model, load_classifier(arguments.teacher, as_teacher=True))
    # only where things are is learned here: photos without a label serve as well
    stage.batches.labelled_later = True
    stage.model.load_state_dict(trained(run, stage))
    return stage.model.eval()


def train_codec(
    arguments: argparse.Namespace, weighted: bool, photos: Chosen, tagger: Tagger, folder: Path
) -> Codec:
    """Trains a compressor, with a weight of the background and a map of steps or with neither, and returns a codec with it."""
    settings = (
        *arguments.settings,
        "reports.sample_every=500",
        f"compressor.background={arguments.background if weighted else 1.0}",
        f"compressor.network.step_octaves={arguments.octaves if weighted else 0.0}",
        *(
            f"compressor.optimisation.{name}={getattr(arguments, name)}"
            for name in ("steps", "crop", "batch")
        ),
        # squared error alone
        "compressor.features.weight=0.0",
    )
    run = a_run(folder, photos, *settings)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(arguments.autoencoder / "autoencoder.safetensors", folder)
    torch.manual_seed(run.recipe.compressor.optimisation.seed)
    stage = CompressorStage(run)
    stage.model.load_state_dict(trained(run, stage))
    parts = {
        "autoencoder": dict(stage.autoencoder.state_dict()),
        "captioner-0": dict(tagger.state_dict()),
        **latent_codec_parts(stage.model),
    }
    networks = run.recipe.autoencoder.network, run.recipe.compressor.network
    config = BundleConfig("roi", *networks, captioners=(tagger.config,))
    return Codec(Bundle(config, parts, run.data.vocabulary, None, dtype=fast_dtype()))


#: what is measured of a photo at a quality
MEASURES = ("bpp", "mse_roi", "mse_background", "bits_in_roi", "area_of_roi")


def measure(codec: Codec, photos: list[Photo], told: bool = False) -> NDArray[np.float64]:
    """``MEASURES`` of every photo at every quality [qualities, photos, 5].

    Bits per pixel of the file, squared error in and outside the mask, share of the bits and of the pixels inside.
    """
    found = np.zeros((len(QUALITIES), len(photos), len(MEASURES)))
    for row, quality in enumerate(QUALITIES):
        for number, photo in enumerate(photos):
            assert photo.mask is not None
            roi: Roi = photo.mask if told else "auto"
            data = codec.encode(photo.pixels, quality, caption=None, roi=roi)
            error = (np.asarray(codec.decode(data, steps=0), np.float64) - photo.pixels) ** 2
            bits = codec.coder.bit_map(codec.read(data)[1])
            inside = np.asarray(Image.fromarray(photo.mask).resize(bits.shape[::-1], Image.Resampling.BOX))
            mask = photo.mask >= 0.5
            share = float((bits * inside).sum() / bits.sum())
            rate = 8 * len(data) / mask.size
            found[row, number] = rate, error[mask].mean(), error[~mask].mean(), share, mask.mean()
    return found


def curve(found: NDArray[np.float64], chosen: list[int]) -> list[dict[str, float]]:
    """Means of what ``measure`` found over some photos, a line for every quality."""
    means = found[:, chosen].mean(1).round(5).tolist()
    return [
        {"quality": quality} | dict(zip(MEASURES, line, strict=True))
        for quality, line in zip(QUALITIES, means, strict=True)
    ]


def compare(plain: list[dict[str, float]], roi: list[dict[str, float]]) -> list[dict[str, float]]:
    """What the second curve changes, percent: errors at equal rate, and rate at equal error in the region.

    Curves are interpolated linearly in logarithms.
    """

    def at(curve: list[dict[str, float]], name: str, value: float, of: str) -> float:
        x, y = (np.log([row[column] for row in curve]) for column in (name, of))
        order = np.argsort(x)
        return float(np.exp(np.interp(np.log(value), x[order], y[order])))

    def percent(ratio: float) -> float:
        return round(100 * (ratio - 1), 1)

    return [
        {
            "bpp": rate,
            "roi_error_percent": percent(at(roi, "bpp", rate, "mse_roi") / at(plain, "bpp", rate, "mse_roi")),
            "background_error_percent": percent(
                at(roi, "bpp", rate, "mse_background") / at(plain, "bpp", rate, "mse_background")
            ),
            "bits_percent_at_equal_roi_error": percent(
                at(roi, "mse_roi", at(plain, "bpp", rate, "mse_roi"), "bpp") / rate
            ),
            "bits_in_roi": round(at(plain, "bpp", rate, "bits_in_roi"), 3),
            "bits_in_roi_with_roi": round(at(roi, "bpp", rate, "bits_in_roi"), 3),
        }
        for rate in RATES
    ]


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
    parser.add_argument("--captioner-steps", type=int, default=600)
    parser.add_argument("--folder", type=Path, default=Path("runs/roi"))
    parser.add_argument("--background", type=float, default=0.25)
    parser.add_argument("--octaves", type=float, default=1.0, help="compressor.network.step_octaves")
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
    plain = train_codec(arguments, False, seen, tagger, arguments.folder / "plain")
    roi = train_codec(arguments, True, seen, tagger, arguments.folder / "roi")
    result: dict[str, Any] = {
        "command": f"benchmarks/roi.py --steps {arguments.steps} --crop {arguments.crop} --batch {arguments.batch} "
        f"--background {arguments.background} --octaves {arguments.octaves} --held-out {arguments.held_out} "
        f"--captioner-steps {arguments.captioner_steps}",
        "trained_on": f"{len(seen)} photos with masks or boxes",
        "tested_on": f"{len(tests)} photos with drawn masks that were not trained on; small: the object covers under 30 %",
    }
    found = {
        "plain": measure(plain, tests),
        "roi": measure(roi, tests),
        "roi_mask_given": measure(roi, tests, told=True),
    }
    areas = found["plain"][0, :, -1]
    for name, chosen in (("all", list(range(len(tests)))), ("small", np.flatnonzero(areas < SMALL).tolist())):
        curves = {kind: curve(values, chosen) for kind, values in found.items()}
        result[name] = {
            "photos": len(chosen),
            "curves": curves,
            "roi_against_plain": compare(curves["plain"], curves["roi"]),
            "mask_given_against_plain": compare(curves["plain"], curves["roi_mask_given"]),
        }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for name in ("all", "small"):
        for kind in ("roi_against_plain", "mask_given_against_plain"):
            for line in result[name][kind]:
                print(name, kind, line)


def _is_outline(photo: Photo | None) -> bool:
    """Whether a mask was drawn around the object: boxes, and unions of them, are made of long straight edges."""
    if photo is None or photo.mask is None or not photo.mask.any():
        return False
    mask = photo.mask >= 0.5
    edges = np.abs(np.diff(mask.astype(np.int8), axis=1))
    # along a box's side the edge stays in its column from row to row
    straight = (edges[1:] & edges[:-1]).sum() / max(edges.sum(), 1)
    return bool(0.02 < mask.mean() < 0.9 and straight < 0.9)


if __name__ == "__main__":
    main()
