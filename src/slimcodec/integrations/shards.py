"""Shards, that is parquet files with a column of pictures and tar files with pictures: each becomes one shard of .slim files.

All that is no picture keeps its value, name and order. A picture that cannot be encoded stays as it is and is named; one that is a
.slim file already stays without a word. A shard is read and written piece by piece, and appears whole or not at all.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from slimcodec.batches import attempt, chunks, encode_many
from slimcodec.codec import Codec
from slimcodec.container import inspect, is_slim
from slimcodec.errors import SlimError, describe, needs
from slimcodec.files import as_path, atomic_open
from slimcodec.images import picture_suffixes

#: pictures that are held at a time
PIECE = 64


@dataclass
class CellEncoder:
    """Encodes the cells of a column, and counts.

    A cell is a picture file's bytes, a mapping with ``bytes`` and ``path`` as ``datasets`` stores it, an [H, W, 3] uint8 array,
    or None. The result is of the same kind, an array's is bytes. ``settings``: those of ``encode_many``.

    ``pictures``, ``pixels``, ``bytes_in``, ``bytes_out`` and ``bpp`` (bits per pixel) sum up what was encoded; ``kept`` holds the place of
    each picture that could not be, and why.
    """

    codec: Codec
    settings: Mapping[str, Any] = field(default_factory=dict)
    pictures: int = 0
    pixels: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bpp: float = 0.0
    kept: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, cells: Sequence[Any], places: Iterable[object]) -> list[Any]:
        """The cells with their pictures encoded; ``places`` name them in ``kept``."""
        stored = [attempt(_stored, cell) for cell in cells]
        todo: list[Any] = [data for data in stored if data is not None]
        coded = iter(encode_many(self.codec, todo, **self.settings))
        return [
            cell if data is None else self._result(cell, data, next(coded), place)
            for cell, data, place in zip(cells, stored, places, strict=True)
        ]

    def _result(self, cell: Any, data: Any, file: bytes | Exception, place: object) -> Any:
        if isinstance(file, Exception):
            self.kept.append((str(place), describe(file)))
            return cell
        info = inspect(file)
        self.pictures += 1
        self.pixels += info.width * info.height
        self.bpp += info.bpp
        self.bytes_in += len(data) if isinstance(data, bytes) else data.nbytes
        self.bytes_out += len(file)
        if not isinstance(cell, Mapping):
            return file
        path = cell.get("path")
        return {**cell, "bytes": file, "path": path and str(PurePosixPath(path).with_suffix(".slim"))}


def _stored(cell: Any) -> Any:
    """What is to be encoded of a cell: bytes or array; None where there is nothing, or a .slim file."""
    data = cell
    if isinstance(cell, Mapping):
        data = cell.get("bytes")
        if data is None and cell.get("path"):
            data = as_path(cell["path"]).read_bytes()
    return None if isinstance(data, bytes) and is_slim(data) else data


def encode_shard(source: Path, target: Path, encode: CellEncoder, column: str = "image") -> None:
    """Write ``target`` with the pictures of ``source`` encoded; both are parquet files or both tar files, local or remote.

    ``column``: of the pictures in a parquet file; bytes, or ``datasets``' structure of bytes and path. Needs pyarrow or webdataset.
    Raises ``SlimError`` for a shard that cannot be read, ``OSError`` for what cannot be opened or written.
    """
    table = source.suffix.lower() == ".parquet"
    write = _write_parquet if table else _write_tar
    try:
        with (
            needs("datasets" if table else "webdataset", "a shard"),
            source.open("rb") as file,
            atomic_open(target) as out,
        ):
            write(file, out, encode, column)
    except (SlimError, OSError):
        raise
    except Exception as error:  # the libraries' errors have no common base
        raise SlimError(f"cannot be read as a shard: {error}") from error


def _write_parquet(file: BinaryIO, out: BinaryIO, encode: CellEncoder, column: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.ParquetFile(file)
    schema = table.schema_arrow
    if column not in schema.names:
        raise SlimError(f"no column {column!r}; choose one of {', '.join(schema.names)} with --column")
    place, row = schema.get_field_index(column), 0
    groups = table.metadata.num_row_groups
    compression = table.metadata.row_group(0).column(0).compression if groups else "SNAPPY"
    compression = compression.replace("UNCOMPRESSED", "NONE")
    with parquet.ParquetWriter(out, _as_slim(schema, column), compression=compression) as writer:
        for group in range(groups):
            done = []
            for batch in table.iter_batches(PIECE, row_groups=[group]):
                rows = range(row, row + len(batch))
                cells = encode(batch.column(place).to_pylist(), (f"row {number}" for number in rows))
                kind = schema.field(place)
                done.append(batch.set_column(place, kind, pa.array(cells, kind.type)))
                row = rows.stop
            # groups stay as they were: a reader takes whole ones
            writer.write_table(pa.Table.from_batches(done, writer.schema))


def _as_slim(schema: Any, column: str) -> Any:
    """A schema whose column is a ``SlimImage`` to ``datasets``, where it was an ``Image``."""
    metadata = dict(schema.metadata or {})
    known = json.loads(metadata.get(b"huggingface", b"{}"))
    features = known.get("info", {}).get("features", {})
    if features.get(column, {}).get("_type") != "Image":
        return schema
    features[column] = {"_type": "SlimImage"}
    return schema.with_metadata({**metadata, b"huggingface": json.dumps(known).encode()})


def _write_tar(file: BinaryIO, out: BinaryIO, encode: CellEncoder, column: str) -> None:
    from webdataset import TarWriter
    from webdataset.tariterators import tar_file_iterator

    used: set[str] = set()
    suffixes = picture_suffixes()
    members = tar_file_iterator(file, skip_meta=None)
    with TarWriter(out, encoder=False, compress=False, format="PAX_FORMAT") as writer:
        for piece in chunks(members, PIECE):
            names = [member["fname"] for member in piece]
            pictures = [PurePosixPath(name).suffix.lower() in suffixes for name in names]
            cells = [
                member["data"] if picture else None for member, picture in zip(piece, pictures, strict=True)
            ]
            for member, before, after in zip(piece, cells, encode(cells, names), strict=True):
                name, data = member["fname"], member["data"]
                if after is not before:
                    # two pictures of one sample must not get one name
                    short = str(PurePosixPath(name).with_suffix(".slim"))
                    name, data = f"{name}.slim" if short in used else short, after
                used.add(name)
                # not TarWriter.write, which has no members without a suffix and sorts them
                info = writer.tarstream.tarinfo(name)
                info.size, info.mode = len(data), writer.mode
                writer.tarstream.addfile(info, io.BytesIO(data))
