"""Where training photos come from: parquet files, image folders, the hub, or drawn ones, as ``datasets`` objects."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimcodec.data.generated import generated_rows
from slimcodec.errors import SlimError

#: "generated:64" draws 64 pictures
GENERATED = "generated:"


def open_sources(specs: Sequence[str], name: str, split: str = "train", streaming: bool = False) -> list[Any]:
    """A ``datasets`` source for each of ``specs``; encoded pictures are kept as bytes or paths, and decoded when used.

    A spec is a glob of parquet files, an image folder (class folders, or ``metadata.csv`` / ``metadata.jsonl``, as ``datasets``
    reads them), a hub id ``owner/name``, or ``generated:N``. ``name`` is the setting that errors speak of. Raises ``SlimError``
    where nothing is found.
    """
    if not specs:
        raise SlimError(
            f"{name} is not set; give parquet files, an image folder or a hub id, for example --set {name}=photos/"
        )
    return [_undecoded(_open(spec, name, split, streaming)) for spec in specs]


def _open(spec: str, name: str, split: str, streaming: bool) -> Any:
    import datasets

    if spec.startswith(GENERATED):
        count = spec.removeprefix(GENERATED)
        if not count.isdigit() or int(count) < 1:
            raise SlimError(f"{name}: {spec}: write how many pictures to draw, for example generated:64")
        drawn = datasets.Dataset.from_list(generated_rows(int(count)))
        return drawn.to_iterable_dataset() if streaming else drawn
    path = str(Path(spec).expanduser())
    files = sorted(glob.glob(path, recursive=True))
    try:
        if Path(path).is_dir():
            return datasets.load_dataset("imagefolder", data_dir=path, split=split, streaming=streaming)
        if files:
            if other := [file for file in files if not file.endswith(".parquet")]:
                raise SlimError(
                    f"{name}: {other[0]} is no parquet file; give the folder that the pictures are in"
                )
            # local files have one split, whatever the hub's is called
            return datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
        if spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and "*" not in spec:
            return datasets.load_dataset(spec, split=split, streaming=streaming)
    except SlimError:
        raise
    except Exception as error:  # the library's errors have no common base
        raise SlimError(f"{name}: {spec}: cannot be read as a dataset ({error})") from error
    raise SlimError(f"{name}: {spec} matches no file")


def _undecoded(source: Any) -> Any:
    import datasets

    names = source.column_names or list((source.features or {}).keys())
    for column in ("image", "mask"):
        if column in names:
            source = source.cast_column(column, datasets.Image(decode=False))
    if names and "image" not in names:
        raise SlimError(f"the photos have no column 'image', but {', '.join(sorted(names))}")
    return source
