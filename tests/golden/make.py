"""Makes the golden files: run once per format version or embedded bundle, never to make a failing test pass.

    python tests/golden/make.py

``small/`` is a frozen miniature bundle; the files that it made must decode to the same symbols for ever. The files of
``slim-tiny/`` hold for the embedded bundle of the same id and are made again when that bundle changes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

from small import small_bundle
from support import NAMES, photo

import slimcodec
from slimcodec.codec import Codec

#: quality, size and caption of each golden file, one for each photo in turn
KINDS = [
    (1, (256, 256), None),
    (20, (97, 41), "egyptian cat"),
    (50, (256, 192), "two dogs under a red umbrella"),
    (75, (1, 1), None),
    (90, (130, 260), "espresso"),
    (100, (64, 64), None),
    (35, (33, 48), "Ž-17"),  # too odd a text to be shorter deflated
]


def make(codec: Codec, folder: Path) -> None:
    """Writes the golden files of a codec with ``symbols.json``: file name to SHA-256 of its symbols (int32).

    And ``headers.json``: file name to what ``slimcodec.inspect`` says of it.
    """
    folder.mkdir(exist_ok=True)
    hashes, headers = {}, {}
    for number, (quality, (width, height), caption) in enumerate(KINDS):
        name = NAMES[number % len(NAMES)]
        data = codec.encode(photo(name, width, height), quality, caption)
        file = f"{name}-{width}x{height}-q{quality}.slim"
        (folder / file).write_bytes(data)
        symbols = codec.read(data)[1].symbols()
        hashes[file] = hashlib.sha256(symbols.astype("<i4").tobytes()).hexdigest()
        headers[file] = header(data, codec)
    (folder / "symbols.json").write_text(json.dumps(hashes, indent=2) + "\n")
    (folder / "headers.json").write_text(json.dumps(headers, indent=2) + "\n")


def header(source: bytes | Path, codec: Codec) -> dict[str, Any]:
    """All that a file says of itself, its caption spelt out."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    return asdict(slimcodec.inspect(data, codec.bundle.vocabulary))


if __name__ == "__main__":
    if not (HERE / "small").exists():
        small_bundle(captioner=False).save_pretrained(HERE / "small")
        make(slimcodec.load(HERE / "small", dtype="float32"), HERE / "small-files")
    make(slimcodec.load(), HERE / "slim-tiny")
