"""Parts photos into those for training and those of one source, which are set aside for judging and never trained on.

    python benchmarks/set_aside.py 'PHOTOS/*.parquet' --source imagenet-sample-1000 --tuned 760 --out FOLDER

Writes ``FOLDER/train.parquet`` and ``FOLDER/set-aside.parquet``; the latter holds photos with ``imagenet_index`` alone. Settings
were chosen on some of the first of those: ``FOLDER/fresh.parquet`` holds the rest, which judges settings too.
"""

from __future__ import annotations

import argparse
import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def main() -> None:
    """Reads, parts and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", help="parquet files with the columns source and imagenet_index")
    parser.add_argument("--source", required=True, help="value of the column source to set aside")
    parser.add_argument("--tuned", type=int, default=0, help="photos that settings were chosen on")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    files = sorted(glob.glob(arguments.photos))
    if not files:
        parser.error(f"{arguments.photos}: no such files")
    table = pa.concat_tables([pq.read_table(file) for file in files])
    chosen = pc.equal(table["source"], arguments.source)
    labelled = pc.and_(chosen, pc.greater_equal(pc.fill_null(table["imagenet_index"], -1), 0))
    arguments.out.mkdir(parents=True, exist_ok=True)
    aside = table.filter(labelled)
    parts = {
        "train": table.filter(pc.invert(chosen)),
        "set-aside": aside,
        "fresh": aside.slice(arguments.tuned),
    }
    for name, part in parts.items():
        pq.write_table(part, arguments.out / f"{name}.parquet")
        print(f"{arguments.out / name}.parquet: {len(part)} photos")


if __name__ == "__main__":
    main()
