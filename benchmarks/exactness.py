"""Symbols written in one configuration and read in others: mismatches, and what coder and integers cost.

    python benchmarks/exactness.py --data PHOTOS [--count 100] [--out results/exactness.json]

Every photo (256x256) is written at five qualities by two writers (the fastest type with channels-last weights, and float32
with plain weights). Fresh processes read every file with one and two threads, in float32 and bfloat16; the prior's networks
run once more on batches of eight; and the numpy reference of the tests reads the payloads without torch. A mismatch is a file
whose symbols differ from the writer's. ``coder_excess`` compares payloads with the ideal bits of their symbols, and
``integer_cost`` the bits under the Gaussian tables
that the prior was trained for with those of its float twin (continuous means and scales); ``fitted_tables`` says what the
bundle's own tables, fitted to real symbols, save.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photos import photos
from PIL import Image

import slimcodec
from slimcodec.codec import Codec
from slimcodec.container import unpack
from slimcodec.training.export import gaussian_tables

QUALITIES = (5, 25, 50, 75, 95)
READER = """
import hashlib, json, pathlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
import slimcodec
codec = slimcodec.load(dtype=sys.argv[2])
if sys.argv[3] == "plain":
    for module in (codec.bundle.autoencoder, codec.bundle.compressor):
        module.to(memory_format=torch.contiguous_format)
found = {}
for path in sorted(pathlib.Path(sys.argv[4]).glob("*.slim")):
    found[path.name] = hashlib.sha256(codec.read(path)[1].symbols().tobytes()).hexdigest()
print(json.dumps(found))
"""


def sha(symbols: Any) -> str:
    """Hash of symbols in coding order."""
    return hashlib.sha256(np.asarray(symbols, np.int32).tobytes()).hexdigest()


def write(codec: Codec, pictures: list[Image.Image], folder: Path, writer: str) -> dict[str, dict[str, Any]]:
    """Writes all files of a writer; returns the symbols' hash, payload bytes and ideal bits of each."""
    made = {}
    gaussian = gaussian_tables()
    for number, picture in enumerate(pictures):
        for quality in QUALITIES:
            name = f"{writer}-{number:03d}-{quality:03d}.slim"
            coded = codec.quantise(picture, quality)
            data = codec.encode(picture, quality)
            (folder / name).write_bytes(data)
            made[name] = {
                "symbols": sha(coded.symbols()),
                "payload": slimcodec.inspect(data).payload_bytes,
                "ideal": float(codec.bundle.coder.bit_map(coded).astype(np.float64).sum()),
                "gaussian": sum(
                    float(gaussian.bits(part.symbols, part.indices).sum()) for part in coded.passes
                ),
            }
    return made


def batched(codec: Codec, folder: Path, names: list[str]) -> int:
    """Files whose table indices differ when the prior runs on eight of them together."""
    wrong = 0
    for quality in QUALITIES:
        chosen = [name for name in names if name.endswith(f"-{quality:03d}.slim")]
        for start in range(0, len(chosen), 8):
            coded = [codec.read(folder / name)[1] for name in chosen[start : start + 8]]
            prior = codec.bundle.coder.prior
            height, width = coded[0].values.shape[2:]
            rows, columns = -(-height // 4), -(-width // 4)
            hyper = torch.stack(
                [torch.from_numpy(c.passes[0].symbols.reshape(rows, columns, -1)) for c in coded]
            )
            grid = (torch.cat([c.values for c in coded]).permute(0, 2, 3, 1).double() * 16).round()
            even = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0
            grid[:, ~even] = 0
            features = prior.features(hyper, quality, height, width)
            first, rest = (
                prior.first_pass(features, quality)[1],
                prior.second_pass(features, grid, quality)[1],
            )
            for number, one in enumerate(coded):
                same = np.array_equal(first[number].reshape(-1), one.passes[1].indices) and np.array_equal(
                    rest[number].reshape(-1), one.passes[2].indices
                )
                wrong += not same
    return wrong


def numpy_reference(codec: Codec, folder: Path, made: dict[str, dict[str, Any]]) -> int:
    """Files that the plain integer reference reads differently."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import reference_prior

    tensors = {key: value.numpy() for key, value in codec.bundle.stored["prior"].items()}
    wrong = 0
    for name, facts in made.items():
        container = unpack((folder / name).read_bytes())
        rows, columns = -(-container.height // 16), -(-container.width // 16)
        symbols, _ = reference_prior.decode(tensors, container.payload, rows, columns, container.quality)
        wrong += sha(symbols) != facts["symbols"]
    return wrong


def float_bits(pictures: list[Image.Image]) -> dict[str, float]:
    """Ideal bits of every photo and quality under the float twin of the prior."""
    from slimcodec.training.export import restore_latent_codec
    from slimcodec.training.latent_codec import code

    codec = slimcodec.load(dtype="float32")
    model = restore_latent_codec(codec.bundle)
    found = {}
    with torch.no_grad():
        for number, picture in enumerate(pictures):
            latents = codec._latents(np.asarray(picture))
            for quality in QUALITIES:
                coded = code(model, latents, torch.tensor([quality]), "rounded")
                found[f"plain-{number:03d}-{quality:03d}.slim"] = float(coded.bits)
    return found


def main() -> None:
    """Runs all readers over all files, prints the report, and writes it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder or parquet file of photos (default: scikit-image's four)"
    )
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    pictures = photos(arguments.data, arguments.count)
    fast, plain = slimcodec.load(), slimcodec.load(dtype="float32")
    for module in (plain.bundle.autoencoder, plain.bundle.compressor):
        module.to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = write(fast, pictures, folder, "fast") | write(plain, pictures, folder, "plain")
        mismatches: dict[str, int] = {}
        for threads, dtype, layout in (
            ("1", "float32", "plain"),
            ("2", "float32", "channels-last"),
            ("1", "bfloat16", "channels-last"),
            ("2", "bfloat16", "plain"),
        ):
            command = [sys.executable, "-c", READER, threads, dtype, layout, str(folder)]
            read = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            wrong = sum(read[file] != facts["symbols"] for file, facts in made.items())
            mismatches[f"fresh process, {threads} thread(s), {dtype}, {layout}"] = wrong
        mismatches["batches of 8"] = batched(fast, folder, list(made))
        fast_only = {file: facts for file, facts in made.items() if file.startswith("fast")}
        mismatches["numpy reference (files of the first writer)"] = numpy_reference(fast, folder, fast_only)

    twin = float_bits(pictures)
    excess = [facts["payload"] * 8 - facts["ideal"] for facts in made.values()]
    over = sum(facts["payload"] > 1.01 * facts["ideal"] / 8 + 8 for facts in made.values())
    by_quality = {}
    for quality in QUALITIES:
        chosen = [file for file in twin if file.endswith(f"-{quality:03d}.slim")]
        integer, floating = sum(made[file]["gaussian"] for file in chosen), sum(twin[file] for file in chosen)
        by_quality[quality] = round(100 * (integer / floating - 1), 3)
    total, plain_total = (sum(facts[key] for facts in made.values()) for key in ("ideal", "gaussian"))
    report = {
        "command": f"python benchmarks/exactness.py --data PHOTOS --count {arguments.count}",
        "data": arguments.data.name if arguments.data else "scikit-image",
        "bundle": fast.bundle.bundle_id,
        "photos": len(pictures),
        "qualities": QUALITIES,
        "files": len(made),
        "mismatches": mismatches,
        "coder_excess_bytes": {
            "mean": round(float(np.mean(excess)) / 8, 2),
            "max": round(max(excess) / 8, 2),
        },
        "files_above_1_percent_plus_8_bytes": over,
        "fitted_tables_percent": round(100 * (total / plain_total - 1), 3),
        "integer_cost_percent_by_quality": by_quality,
        "integer_cost_percent": round(
            100 * (sum(made[f]["gaussian"] for f in twin) / sum(twin.values()) - 1), 3
        ),
    }
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
