"""Ray Data on a cluster of two nodes, one of which is killed in the middle of a run."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Slim
from remote import free_port
from support import SMALL, SMALL_OPTIONS, photo

import slimcodec
from slimcodec.codec import Codec
from slimcodec.errors import SlimError
from slimcodec.processes import SetupError

ray = pytest.importorskip("ray")
slim_ray = pytest.importorskip("slimcodec.integrations.ray")
parquet = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.slow
MODEL = str(SMALL)
PLAIN = ("--caption", "none", *SMALL_OPTIONS)


def add_node(cluster: Any) -> Any:
    """Add a node of one processor. Of agents whose ports are given none waits, as they start slowly on a busy machine."""
    agents = (
        "metrics_agent_port",
        "metrics_export_port",
        "runtime_env_agent_port",
        "dashboard_agent_listen_port",
    )
    ports = {agent: free_port() for agent in agents}
    lean = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    return cluster.add_node(num_cpus=1, object_store_memory=100 << 20, **lean, **ports)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each; this process is connected to the first."""
    from ray.cluster_utils import Cluster

    made = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        # the nodes' workers find this module
        patch.setenv(
            "PYTHONPATH", os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
        )
        for _ in range(2):
            add_node(made)
        ray.init(made.address, log_to_driver=False)
        yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[Codec]:
    """The small codec with one thread, as a worker has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield slimcodec.load(SMALL)
    torch.set_num_threads(threads)


def jpeg(width: int) -> bytes:
    file = io.BytesIO()
    photo("chelsea", width, 24).save(file, "JPEG")
    return file.getvalue()


def test_columns_are_encoded_and_decoded(cluster: Any, one_thread: Codec, tmp_path: Path) -> None:
    files = [jpeg(16 + number % 3) for number in range(12)]
    rows = [
        {"image": {"bytes": data, "path": f"{n}.jpg"}, "n": n, "list": [n]} for n, data in enumerate(files)
    ]
    rows[5]["image"] = {"bytes": b"no picture", "path": None}
    table = ray.data.from_items(rows, override_num_blocks=3)
    coded = slim_ray.encode_column(table, quality=40, model=MODEL, concurrency=2, batch_size=4)
    coded.write_parquet(str(tmp_path / "coded"))
    made = parquet.read_table(tmp_path / "coded").sort_by("n").to_pydict()
    assert (made["n"], made["list"]) == (list(range(12)), [[n] for n in range(12)])
    expected = [one_thread.encode(data, 40) for data in files]
    expected[5] = b"no picture"
    assert [cell["bytes"] for cell in made["image"]] == expected
    assert made["image"][0]["path"] == "0.slim"

    good = ray.data.from_items([{"image": data, "n": n} for n, data in enumerate(expected) if n != 5])
    for output in ("numpy", "latent"):
        decoded = slim_ray.decode_column(good, output=output, model=MODEL, concurrency=1)
        for row in decoded.take_all():
            data = expected[row["n"]]
            value = one_thread.decode_latent(data) if output == "latent" else one_thread.decode(data, steps=0)
            np.testing.assert_allclose(np.asarray(row["image"], float), np.asarray(value, float), atol=1e-4)
    with pytest.raises(SlimError, match="pil"):
        slim_ray.decode_column(good, output="pil")


def test_arrays_are_encoded_too(cluster: Any, one_thread: Codec) -> None:
    arrays = [np.asarray(photo("coffee", 20, 24)) for _ in range(3)]
    table = ray.data.from_items([{"image": array, "n": n} for n, array in enumerate(arrays)])
    coded = slim_ray.encode_column(table, model=MODEL, concurrency=1).take_all()
    assert [row["image"] for row in coded] == [one_thread.encode(arrays[0])] * 3


def doubled(fails: bool) -> Any:
    if fails:
        raise ValueError("no such model")

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three is bad")
        return 2 * item

    return work


def test_the_cluster_does_what_processes_do(cluster: Any) -> None:
    results = list(slim_ray.run_cluster(partial(doubled, False), range(10), jobs=2, block=2))
    assert isinstance(results[3], SlimError) and "three is bad" in str(results[3])
    assert results[:3] + results[4:] == [0, 2, 4, 8, 10, 12, 14, 16, 18]
    with pytest.raises(SetupError, match="no such model"):
        list(slim_ray.run_cluster(partial(doubled, True), range(3), jobs=1))
    assert list(slim_ray.run_cluster(partial(doubled, True), [], jobs=1)) == []


def test_a_killed_nodes_work_is_done_again(cluster: Any, slim: Slim, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(60):
        (photos / f"{number:02}.jpg").write_bytes(jpeg(400 + number))
    assert slim("encode", photos, "-o", tmp_path / "jobs", "--jobs", 2, *PLAIN).status == 0
    extra = add_node(cluster)
    out = tmp_path / "ray"

    def kill() -> None:
        while not list(out.glob("*.slim")):
            time.sleep(0.01)
        cluster.remove_node(extra, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    result = slim("encode", photos, "-o", out, "--engine", "ray", "--jobs", 3, "--json", *PLAIN)
    assert result.status == 0, result.err
    killer.join(60)
    assert not killer.is_alive()
    names = sorted(path.name for path in (tmp_path / "jobs").iterdir())
    assert len(names) == 60 and sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "jobs" / name).read_bytes()


def marked(folder: Path, doomed: str) -> Any:
    """Work that leaves a file named by item and node: on the doomed node it never ends, elsewhere it waits for that one's end."""
    node = ray.get_runtime_context().get_node_id()

    def work(item: int) -> int:
        (folder / f"{item}-{node}").touch()
        while node == doomed or not (folder / "killed").exists():
            time.sleep(0.01)
        return item

    return work


def test_an_item_that_was_under_way_is_done_again_and_told_once(cluster: Any, tmp_path: Path) -> None:
    extra = add_node(cluster)

    def kill() -> None:
        while not list(tmp_path.glob(f"*-{extra.node_id}")):
            time.sleep(0.01)
        cluster.remove_node(extra, allow_graceful=False)
        (tmp_path / "killed").touch()

    threading.Thread(target=kill, daemon=True).start()
    done = slim_ray.run_cluster(partial(marked, tmp_path, extra.node_id), range(12), jobs=3, block=2)
    assert list(done) == list(range(12))
    nodes_of = [sorted(path.name.split("-")[1] for path in tmp_path.glob(f"{item}-*")) for item in range(12)]
    assert any(len(nodes) == 2 and extra.node_id in nodes for nodes in nodes_of)
