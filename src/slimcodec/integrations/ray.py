"""Pictures on a Ray cluster: columns of a Ray data set, and the jobs of a command.

ds = ray.data.read_parquet("s3://bucket/photos")
encode_column(ds, "image", quality=40).write_parquet("s3://bucket/slims")

Work is done by actors of Ray Data, each with a codec that it loads once. Ray scales their number, holds back what they cannot
take, and does the blocks of a worker that died again. An actor on processors works in one thread, as a worker of ``--jobs`` does:
the files are the same, byte for byte. The nodes of a cluster need slimcodec, and see the same files or buckets.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

# no reports to Ray's makers unless they are asked for
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np

from slimcodec.codec import default_codec
from slimcodec.errors import SlimError, needs
from slimcodec.integrations.shards import CellEncoder
from slimcodec.integrations.tensors import PictureReader
from slimcodec.processes import SetupError, do_item, set_up, take_one_thread

with needs("ray", "work on a Ray cluster"):
    import pyarrow as pa
    import ray
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.data.block import BlockAccessor

logger = logging.getLogger(__name__)


def encode_column(
    ds: ray.data.Dataset,
    column: str = "image",
    *,
    model: str | None = None,
    device: str | None = None,
    batch_size: int = 64,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    **settings: Any,
) -> ray.data.Dataset:
    """A data set whose column holds .slim files in place of pictures; the other columns are as they were.

    A cell is a picture file's bytes, a structure of ``bytes`` and ``path``, an [H, W, 3] uint8 array (as ``ray.data.read_images``
    gives), or None. Bytes that cannot be encoded stay as they are, with a warning in the worker's log; .slim files stay.

    ``settings``: those of ``slimcodec.batches.encode_many``, ``quality=40``. ``model`` and ``device``: as of ``slimcodec.load``.
    ``concurrency``: actors, or least and most; by default Ray scales them. ``num_cpus`` and ``num_gpus``: of each actor, fractions
    allowed. ``batch_size``: rows that an actor takes at a time.
    """
    setup = partial(_column_encoder, column, model, device, settings)
    return _mapped(ds, setup, batch_size, concurrency, num_cpus, num_gpus, batch_format="pyarrow")


def decode_column(
    ds: ray.data.Dataset,
    column: str = "image",
    *,
    output: str = "numpy",
    steps: int | None = 0,
    model: str | None = None,
    device: str | None = None,
    batch_size: int = 64,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> ray.data.Dataset:
    """A data set whose column holds pictures in place of .slim files: arrays [H, W, 3] uint8.

    ``output``: "numpy", "tensor" ([3, H, W] uint8) or "latent" ([C, h, w] float32), all as arrays. ``steps``, ``model`` and
    ``device``: as of ``PictureReader``; the other arguments are those of ``encode_column``.
    """
    if output == "pil":
        raise SlimError("output is 'pil'; Ray's tables hold arrays: give numpy, tensor or latent")
    setup = partial(_column_decoder, column, PictureReader(output, steps, model, device))
    return _mapped(ds, setup, batch_size, concurrency, num_cpus, num_gpus, batch_format="numpy")


def run_cluster(
    setup: Callable[[], Callable[[Any], Any]],
    items: Iterable[Any],
    *,
    jobs: int = 1,
    address: str | None = None,
    num_gpus: float = 0,
    block: int = 1,
) -> Generator[Any, None, None]:
    """What ``slimcodec.processes.run_pool`` does, on a Ray cluster: yield the result of every item in order.

    ``jobs``: most actors, 1: as many as the cluster has processors for. ``address``: of the cluster; by default the one that this
    process is connected to or RAY_ADDRESS names, else one on this machine for the time of the run. ``num_gpus``: of each actor.
    ``block``: items that an actor takes at a time, and does again where another one died. Raises ``SetupError``.
    """
    boxes = [{"item": _Box(item)} for item in items]
    if not boxes:
        return
    with _cluster(address, jobs):
        actors = int(ray.cluster_resources().get("GPU" if num_gpus else "CPU", 1)) or 1
        actors = min(len(boxes), actors if jobs == 1 else jobs)
        table = ray.data.from_items(boxes, override_num_blocks=-(-len(boxes) // block))
        table.context.execution_options.preserve_order = True
        done = _mapped(table, partial(_item_worker, setup), None, actors, 1, num_gpus)
        for row in done.iter_rows():
            if isinstance(row["result"].value, SetupError):
                raise row["result"].value
            yield row["result"].value


class _Actor:
    """A worker of Ray Data: what ``setup`` loaded once, applied to each batch."""

    def __init__(self, setup: Callable[[], Callable[[Any], Any]], one_thread: bool) -> None:
        if one_thread:
            take_one_thread()
        self._function = setup()

    def __call__(self, batch: Any) -> Any:
        return self._function(batch)


class _Box:
    """A value that Arrow must not look into."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _mapped(
    ds: ray.data.Dataset,
    setup: Callable[[], Callable[[Any], Any]],
    batch_size: int | None,
    concurrency: Any,
    num_cpus: float,
    num_gpus: float,
    batch_format: str = "numpy",
) -> ray.data.Dataset:
    least, most = concurrency if isinstance(concurrency, tuple) else (1, concurrency)
    return ds.map_batches(
        _Actor,
        fn_constructor_args=(setup, not num_gpus),
        batch_size=batch_size,
        batch_format=batch_format,
        compute=ActorPoolStrategy(min_size=least, max_size=most, initial_size=most or least),
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )


def _column_encoder(
    column: str, model: str | None, device: str | None, settings: dict[str, Any]
) -> Callable[[pa.Table], pa.Table]:
    codec = default_codec(model, device)

    def encode(table: pa.Table) -> pa.Table:
        encoder = CellEncoder(codec, settings)
        place = table.schema.get_field_index(column)
        if place < 0:
            raise SlimError(f"no column {column!r}; there are {', '.join(table.column_names)}")
        cells = list(BlockAccessor.for_block(table).to_numpy([column])[column])
        coded = encoder(cells, range(len(cells)))
        for _, reason in encoder.kept:
            logger.warning("a picture stays as it is: %s", reason)
        kind = table.schema.field(place).type
        return table.set_column(
            place, column, pa.array(coded, kind if pa.types.is_struct(kind) else pa.binary())
        )

    return encode


def _column_decoder(column: str, reader: PictureReader) -> Callable[[dict[str, Any]], dict[str, Any]]:
    default_codec(reader.model, reader.device)

    def decode(batch: dict[str, Any]) -> dict[str, Any]:
        files = [cell["bytes"] if isinstance(cell, dict) else cell for cell in batch[column]]
        arrays = np.empty(len(files), object)
        arrays[:] = [np.asarray(value) for value in reader.many(files)]
        return {**batch, column: arrays}

    return decode


def _item_worker(setup: Callable[[], Callable[[Any], Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    set_up(setup)

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        results = np.empty(len(batch["item"]), object)
        for number, box in enumerate(batch["item"]):
            try:
                results[number] = _Box(do_item(box.value))
            except SetupError as error:
                results[number] = _Box(error)
        return {"result": results}

    return work


@contextmanager
def _cluster(address: str | None, jobs: int) -> Iterator[None]:
    """Be connected to a cluster: the one at hand, or one for the time of the block."""
    # it warns of values that Arrow does not know, and of bars that are switched off
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        quiet |= {"include_dashboard": False, "num_cpus": None if jobs == 1 else jobs}
    try:
        ray.init(address, **quiet)
    except Exception as error:  # its errors have no common base
        raise SetupError(f"Ray cannot be reached: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
