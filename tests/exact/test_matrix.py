"""The exactness matrix in small: every configuration that needs no process of its own, on two pictures of odd sizes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from exact import cells
from exact.cells import CONFIGURATIONS, REFERENCE, Configuration
from support import photo

from slimcodec.codec import Codec

ROOT = Path(__file__).parent.parent.parent
SMALL = str(ROOT / "tests" / "golden" / "small")
HERE = [one for one in CONFIGURATIONS if not one.environment and one.device == "cpu"]
PICTURES = [photo("chelsea", 145, 80), photo("coffee", 64, 97)]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return cells.load(REFERENCE, SMALL)


@pytest.fixture(scope="module")
def folder(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exact") / "files"
    facts = cells.write(codec, PICTURES, (5, 95), path)
    assert len(set(facts.values())) == 4
    return path


@pytest.mark.parametrize("configuration", HERE, ids=lambda one: one.name)
def test_files_are_read_and_written_alike(configuration: Configuration, folder: Path) -> None:
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    assert cells.row(configuration, SMALL, folder) == {"read": 0, "written": 0}
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


@pytest.mark.parametrize("configuration", [one for one in HERE if one.encodes], ids=lambda one: one.name)
def test_files_that_another_configuration_encodes_are_read_alike(
    configuration: Configuration, codec: Codec, tmp_path: Path
) -> None:
    with cells.configured(configuration):
        cells.write(cells.load(configuration, SMALL), PICTURES, (50,), tmp_path / "own")
    assert cells.read_differently(codec, tmp_path / "own") == 0


def test_batches_and_numpy_say_the_same(codec: Codec, tmp_path: Path) -> None:
    cells.write(
        codec, [photo(name, 80, 72) for name in ("chelsea", "coffee", "rocket")], (5, 95), tmp_path / "files"
    )
    assert cells.batches(codec, tmp_path / "files", (2, 3)) == {2: 0, 3: 0}
    assert cells.numpy_reference(codec, tmp_path / "files") == 0


def test_each_cell_would_notice_a_difference(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "files")
    facts = cells.facts_of(folder)
    first, *_ = facts
    (tmp_path / "files" / cells.FACTS).write_text(json.dumps(facts | {first: "0" * 64}))
    codec = cells.load(REFERENCE, SMALL)
    assert cells.read_differently(codec, tmp_path / "files") == 1
    assert cells.numpy_reference(codec, tmp_path / "files") == 1
    # a prior that is off by half a unit in one layer reads and writes other symbols, alone and in batches
    layer: Any = codec.bundle.module("prior").network.layers["anchor_scale"]
    layer.bias += 1 << (layer.shift + 2)
    assert cells.read_differently(codec, folder) == len(facts)
    assert cells.written_differently(codec, folder) == len(facts)


def test_a_batch_that_depends_on_its_neighbours_is_noticed(codec: Codec, tmp_path: Path) -> None:
    cells.write(codec, [photo(name, 64, 64) for name in ("chelsea", "coffee")], (95,), tmp_path / "files")
    run: Any = codec.coder.run

    def mixing(name: str, *arrays: Any) -> Any:
        results = run(name, *arrays)
        return (results[0] + len(arrays[0]) - 1,) if name == "features" else results

    with mock.patch.object(codec.coder, "run", mixing):
        assert cells.batches(codec, tmp_path / "files", (1, 2)) == {1: 0, 2: 2}


# ---- the benchmark -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """benchmarks/exactness.py as a module."""
    import sys

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("exactness", ROOT / "benchmarks" / "exactness.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


@pytest.mark.slow
def test_a_row_in_a_process_of_its_own(benchmark: Any, folder: Path) -> None:
    number = next(n for n, one in enumerate(CONFIGURATIONS) if one.environment and one.threads > 1)
    row = benchmark.measure_row(number, folder.parent, SMALL)
    assert (row["read"], row["written"]) == (0, 0) and row["environment"]


def test_what_is_not_at_hand_is_said(benchmark: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    number = CONFIGURATIONS.index(replace(REFERENCE, name="CUDA", device="cuda", encodes=True))
    row = benchmark.measure_row(number, folder.parent, SMALL)
    assert row["read"] is None and "not available" in benchmark.markdown(
        published() | {"rows": [row | {"own": None}]}
    )


def published() -> dict[str, Any]:
    report: dict[str, Any] = json.loads((ROOT / "results" / "exactness.json").read_text())
    return report


def test_the_page_says_what_was_measured(benchmark: Any) -> None:
    report = published()
    assert (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8") == benchmark.markdown(report)
    assert report["mismatches"] == benchmark.mismatches(report) == 0
    assert report["photos"] >= 200 and len(report["qualities"]) == 5
    assert {row["configuration"] for row in report["rows"]} == {one.name for one in CONFIGURATIONS}


def test_mismatches_are_counted(benchmark: Any) -> None:
    report = published()
    report["rows"][1]["read"] += 2
    report["rows"][2]["written"] += 1
    assert benchmark.mismatches(report) == 3
