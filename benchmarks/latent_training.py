"""A small classifier trained on latents, on decoded pictures, and on JPEG and AVIF files of the same photos.

    python benchmarks/latent_training.py --photos ../shared/data/photos-*.parquet -o results/latent-training.json

The classes with the most photos are taken, and of each class equally many photos, 256x256 pixels from the centre; a quarter of
each class is for the test. Every photo is coded once in each way: as .slim, as JPEG of Pillow's default quality, 75, and as AVIF
of ``--avif-quality``, by which its files should have about as many bytes as those of .slim. Networks see pictures at half their
side, which JPEG decodes at once, and latents as they are: 128 channels at a sixteenth of the side. Both networks take about
equally many multiplications. Epochs, order, crops and flips are equal in all ways.

``loading`` is from a file's bytes to a tensor, ``training`` from tensors in memory; both count processor time of one thread.
``error`` is the standard error over the test photos; ``behind_jpeg`` and its error compare photo by photo.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos import square
from PIL import Image
from pyarrow import parquet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slimcodec import __version__
from slimcodec.codec import default_codec
from slimcodec.images import as_file
from slimcodec.integrations.tensors import PictureReader, as_tensor

SIDE, SMALL = 256, 128
#: a crop leaves out this many of sixteen cells a side
MARGIN = 2
CELLS = 16
BATCH = 32


class Block(nn.Module):
    """Two convolutions, the second one residual."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(x + self.norms[1](self.second(x)))


def network(channels: int, classes: int) -> nn.Sequential:
    """A classifier of pictures (3 channels) or of latents, which begins where the picture's network has come to 1/8."""
    if channels == 3:
        stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        body = [*stem, Block(16, 32, 2), Block(32, 64, 2), Block(64, 128, 2)]
    else:
        body = [Block(channels, 64, 1), Block(64, 128, 2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def labelled(files: Sequence[Path], classes: int, each: int) -> dict[str, list[Image.Image]]:
    """Photos of the classes that have most, ``each`` of a class, drawn at random but always the same."""
    cells = defaultdict(list)
    for file in files:
        table = parquet.read_table(file, columns=["image", "label"])
        for image, label in zip(table["image"], table["label"].to_pylist(), strict=True):
            if label is not None:
                cells[label].append(image)
    names = sorted((name for name in cells if len(cells[name]) >= each), key=lambda n: (-len(cells[n]), n))
    if len(names) < max(classes, 2):
        raise SystemExit(f"{len(names)} classes have {each} photos; give other --classes or --each")
    draw = random.Random(0)
    chosen = {name: draw.sample(cells[name], each) for name in names[:classes]}
    return {
        name: [square(Image.open(io.BytesIO(cell.as_py()["bytes"])), SIDE) for cell in found]
        for name, found in chosen.items()
    }


def small(image: Image.Image) -> torch.Tensor:
    """A picture at half its side, uint8; a JPEG file decodes to that size at once."""
    image.draft("RGB", (SMALL, SMALL))
    image = image.convert("RGB")
    return as_tensor(np.array(image if image.width == SMALL else image.reduce(SIDE // SMALL)))


def read(file: bytes) -> torch.Tensor:
    """The small picture of a file, by Pillow."""
    return small(Image.open(io.BytesIO(file)))


def load(files: Sequence[bytes], reader: Callable[[bytes], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """What the reader makes of all files, and how many it reads in a processor second."""
    for file in files[:4]:
        reader(file)  # loads and prepares what the first files need
    start = time.process_time()
    values = [reader(file) for file in files]
    seconds = time.process_time() - start
    return torch.stack(values), len(files) / seconds


def train(
    values: torch.Tensor, targets: torch.Tensor, tested: torch.Tensor, epochs: int, seed: int
) -> tuple[torch.Tensor, float]:
    """Train a network; which test photos it then names rightly, and the processor seconds of training."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    start = time.process_time()
    mean, deviation = (
        statistic(values[~tested].float(), (0, 2, 3), keepdim=True) for statistic in (torch.mean, torch.std)
    )

    def batch(indices: Sequence[int]) -> torch.Tensor:
        return ((values[indices] - mean) / deviation).contiguous(memory_format=torch.channels_last)

    indices, cell = torch.nonzero(~tested).flatten().tolist(), values.shape[-1] // CELLS
    model = network(values.shape[1], int(targets.max()) + 1).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * -(-len(indices) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(epochs):
        draw.shuffle(indices)
        for first in range(0, len(indices), BATCH):
            chosen = indices[first : first + BATCH]
            top, left = (draw.randint(0, MARGIN) * cell for _ in range(2))
            side = (CELLS - MARGIN) * cell
            pictures = batch(chosen)[:, :, top : top + side, left : left + side]
            flipped = torch.tensor([draw.random() < 0.5 for _ in chosen])[:, None, None, None]
            pictures = torch.where(flipped, pictures.flip(3), pictures)
            loss = nn.functional.cross_entropy(model(pictures), targets[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    seconds = time.process_time() - start
    model.eval()
    with torch.no_grad():
        answers = [model(batch(part)).argmax(1) for part in torch.nonzero(tested).flatten().split(BATCH)]
    return torch.cat(answers) == targets[tested], seconds


def with_error(values: torch.Tensor) -> tuple[float, float]:
    """Mean of a number for each photo in per cent, and its standard error."""
    return round(100 * values.mean().item(), 2), round(100 * (values.std() / len(values) ** 0.5).item(), 2)


def main() -> None:
    """Writes, loads and trains in each way; prints a table, and writes it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="parquet files: image, label")
    parser.add_argument(
        "--classes", type=int, default=32, help="classes, those with most photos (default: 32)"
    )
    parser.add_argument("--each", type=int, default=60, help="photos of each class (default: 60)")
    parser.add_argument("--limit", type=int, help="photos of each class at most, for a quick check")
    parser.add_argument("--quality", type=int, default=50, help="slim's quality (default: 50)")
    parser.add_argument("--avif-quality", type=int, default=0, help="whose files are as small (default: 0)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2, help="trainings in each way (default: 2)")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    begin = time.perf_counter()
    torch.set_num_threads(1)
    each = min(given.each, given.limit or given.each)
    photos = labelled(sorted(given.photos), given.classes, each)
    images = [image for found in photos.values() for image in found]
    targets = torch.arange(len(images)) // each
    tested = torch.arange(len(images)) % each >= each - max(1, each // 4)
    codec, latent, picture = default_codec(), PictureReader("latent"), PictureReader("pil")
    slim = [codec.encode(image, given.quality) for image in images]
    avif = {"quality": given.avif_quality, "speed": 6, "max_threads": 1}
    ways: dict[str, tuple[list[bytes], Callable[[bytes], torch.Tensor]]] = {
        "jpeg": ([as_file(image, "JPEG") for image in images], read),
        "avif": ([as_file(image, "AVIF", **avif) for image in images], read),
        "pictures": (slim, lambda file: small(picture(file))),
        "latents": (slim, latent),
    }
    rows: dict[str, dict[str, Any]] = {}
    right: dict[str, torch.Tensor] = {}
    for way, (files, reader) in ways.items():
        values, rate = load(files, reader)
        runs = [train(values, targets, tested, given.epochs, seed) for seed in range(given.seeds)]
        right[way] = torch.stack([answers.float() for answers, _ in runs]).mean(0)
        with FlopCounterMode(display=False) as counter:
            network(values.shape[1], given.classes)(torch.zeros(1, *values.shape[1:]))
        (top1, error), (behind, behind_error) = map(with_error, (right[way], right["jpeg"] - right[way]))
        rows[way] = {
            "bytes_per_picture": round(sum(map(len, files)) / len(files)),
            "loading_per_second": round(rate, 1),
            "million_multiplications": round(counter.get_total_flops() / 2e6, 1),
            "seconds_per_training": round(sum(spent for _, spent in runs) / given.seeds, 1),
            "top1": top1,
            "error": error,
            "top1_of_seeds": [with_error(answers.float())[0] for answers, _ in runs],
            "behind_jpeg": behind,
            "behind_jpeg_error": behind_error,
        }
        print(way, rows[way], file=sys.stderr, flush=True)
    names = " ".join(path.name for path in sorted(given.photos))
    report = {
        "command": f"python benchmarks/latent_training.py --photos {names} --classes {given.classes} --each {each} "
        f"--quality {given.quality} --epochs {given.epochs} --seeds {given.seeds}",
        "slimcodec": __version__,
        "bundle": codec.bundle.bundle_id,
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "classes": list(photos),
        "train": (~tested).sum().item(),
        "test": tested.sum().item(),
        "epochs": given.epochs,
        "seeds": given.seeds,
        "quality": given.quality,
        "avif_quality": given.avif_quality,
        "ways": rows,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    print(json.dumps(report, indent=2))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
