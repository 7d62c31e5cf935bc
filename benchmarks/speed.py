"""Milliseconds and memory of encode and decode on one thread, as ratios to Pillow's AVIF encoder in the same run.

    python benchmarks/speed.py [--out results/speed.json]

Each operation is timed on the same 256x256 photos, in turn with AVIF (speed 6, one thread, default quality) so that a change
of the machine's clock touches both; medians are compared. Memory is the peak resident size of a fresh process that does one
operation.
"""

from __future__ import annotations

import io
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from photos import photo_options, photos
from PIL import Image
from timing import median_milliseconds, peak_megabytes, process_seconds

#: how each kind of decoding is asked for
DECODING: dict[str, dict[str, Any]] = {
    "decode_steps_0": {"steps": 0},
    "decode_steps_1": {"steps": 1},
    "decode_machine": {"preset": "machine"},
}
OPERATION = """
import json, sys
import slimcodec, torch
torch.set_num_threads(1)
image_path, data_path, operation, options = sys.argv[1:]
codec = slimcodec.load()
if operation.startswith("encode"):
    effort = {"effort": 0} if operation == "encode_effort_0" else {}
    open(data_path, "wb").write(codec.encode(image_path, **effort))
else:
    codec.decode(data_path, **json.loads(options))
"""


def peak(image: Path, data: Path, operation: str) -> int:
    """Peak resident memory, in MB, of a fresh process that loads the codec and does one operation."""
    return peak_megabytes(OPERATION, str(image), str(data), operation, json.dumps(DECODING.get(operation)))


def slim_seconds(*arguments: str) -> tuple[float, float]:
    """Wall-clock and processor time of a ``slim`` command in a fresh process."""
    return process_seconds([sys.executable, "-m", "slimcodec.cli", *arguments])


def main() -> None:
    """Measures, prints a table, and writes it as JSON where asked."""
    import torch

    import slimcodec

    parser = photo_options(__doc__, 4)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    codec = slimcodec.load()
    pictures = photos(arguments.photos, arguments.count)
    files = [codec.encode(picture) for picture in pictures]

    def avif(number: int) -> None:
        pictures[number].save(io.BytesIO(), "AVIF", speed=6, max_threads=1)

    operations: dict[str, Callable[[int], object]] = {
        "avif_encode": avif,
        "encode": lambda number: codec.encode(pictures[number]),
        "encode_effort_0": lambda number: codec.encode(pictures[number], effort=0),
    }
    for name, options in DECODING.items():
        operations[name] = lambda number, options=options: codec.decode(files[number], **options)  # type: ignore[misc]
    medians = median_milliseconds(operations, len(pictures), arguments.rounds, clock=time.perf_counter)
    large_photo = pictures[0].resize((1024, 1024), Image.Resampling.BICUBIC)
    large_file = codec.encode(large_photo)
    large_medians = median_milliseconds(
        {
            name: lambda number, options=options: codec.decode(large_file, **options)  # type: ignore[misc]
            for name, options in DECODING.items()
        },
        1,
        5,
        clock=time.perf_counter,
    )
    limits = {
        "encode": 4.0,
        "encode_effort_0": 0.5,
        "decode_steps_0": 0.6,
        "decode_steps_1": 2.0,
        "decode_machine": 4.0,
    }

    with tempfile.TemporaryDirectory() as folder:
        image, data = Path(folder) / "photo.png", Path(folder) / "photo.slim"
        pictures[0].save(image)
        peaks = {name: peak(image, data, name) for name in limits}
        encode_wall, _ = slim_seconds("encode", str(image), "-o", str(data), "--overwrite")
        info = [slim_seconds("info", str(data))[1] for _ in range(3)]
        with Image.open(io.BytesIO(_large())) as large:
            large.save(Path(folder) / "large.png")
        large_peaks = {
            name: peak(Path(folder) / "large.png", Path(folder) / "large.slim", name) for name in limits
        }

    report = {
        "command": " ".join(
            ["python benchmarks/speed.py", *(["--photos", arguments.photos.name] if arguments.photos else [])]
        ),
        "bundle": codec.bundle.bundle_id,
        "dtype": str(codec.bundle.parts.dtype),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "milliseconds": {name: round(value, 2) for name, value in medians.items()},
        "ratio_to_avif_encode": {name: round(medians[name] / medians["avif_encode"], 3) for name in limits},
        "ratio_allowed": limits,
        "ratio_machine_to_steps_0": {
            "256x256": round(medians["decode_machine"] / medians["decode_steps_0"], 2),
            "1024x1024": round(large_medians["decode_machine"] / large_medians["decode_steps_0"], 2),
        },
        "peak_megabytes_256x256": peaks,
        "peak_megabytes_4000x3000": large_peaks,
        "slim_encode_seconds_with_start_up": round(encode_wall, 2),
        "slim_info_processor_seconds": round(min(info), 3),
    }
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def _large() -> bytes:
    """A 4000x3000 picture with a photo's statistics: scikit-image's astronaut, enlarged, with grain."""
    picture = photos(None, 1, 512)[0].resize((4000, 3000), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).normal(0, 6, (3000, 4000, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)).save(
        buffer, "PNG", compress_level=1
    )
    return buffer.getvalue()


if __name__ == "__main__":
    main()
