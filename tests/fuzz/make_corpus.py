"""Makes the corpus anew: the shortest input found for each way in which a file is refused, or accepted.

python tests/fuzz/make_corpus.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

from fuzz.mutator import CORPUS, GOLDEN, MAX_PIXELS, fuzzed, golden_files

import slimcodec


def main() -> None:
    codec = slimcodec.load(GOLDEN / "small", dtype="float32")
    files, kept = golden_files(), dict[str, bytes]()
    for number in range(6000):
        data = fuzzed(files, 1, number).data
        try:
            codec.read(data, max_pixels=MAX_PIXELS)
            outcome = "accepted"
        except slimcodec.SlimError as error:
            outcome = f"{type(error).__name__} {error}"
        # numbers tell one file from another, not one reason
        name = "-".join(re.sub(r"\b\w*\d\w*\b", " ", outcome.lower()).replace(".", " ").split())
        name = re.sub(r"[^a-z-]", "", name)[:60].strip("-")
        if name not in kept or len(data) < len(kept[name]):
            kept[name] = data
    CORPUS.mkdir(exist_ok=True)
    for old in CORPUS.glob("*.slim"):
        old.unlink()
    for name, data in kept.items():
        (CORPUS / f"{name}.slim").write_bytes(data)
    print(f"{len(kept)} files, {sum(map(len, kept.values()))} bytes")


if __name__ == "__main__":
    main()
