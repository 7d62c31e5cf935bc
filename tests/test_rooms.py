"""The rooms of docs/architecture.md: imports point down only, go in no circle, and the exact core needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support import GOLDEN, SLIM

PACKAGE = Path(__file__).parent.parent / "src" / "slimcodec"
#: the rooms from bottom to top, each with its modules; a module may import its own room and those below.
#: Rooms of one line do not import each other.
ROOMS: list[list[set[str]]] = [
    [{"images", "colours", "leftovers", "files", "config", "errors", "processes"}],
    [{"container", "entropy"}],
    [{"models"}],
    [{"codec", "encoder", "decoder", "batches"}],
    [{"data"}],
    [{"training"}, {"evaluation"}, {"integrations"}],
    [{"demo"}],
    [{"cli"}],
]
LEVEL = {name: level for level, rooms in enumerate(ROOMS) for room in rooms for name in room}
ROOM = {name: min(room) for rooms in ROOMS for room in rooms for name in room}
#: imports that point up or aside, or close a circle: "importer -> imported". To be emptied; never to be added to.
KNOWN: set[str] = set()


def module_name(path: Path) -> str:
    """The dotted name of a file below the package, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it but for the sake of types."""
    nodes: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: {ast.unparse(node)}"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [
                name if name.removeprefix("slimcodec.") in MODULES else str(node.module) for name in inner
            ]
        yield from (
            name.removeprefix("slimcodec").strip(".") for name in names if name.split(".")[0] == "slimcodec"
        )


@cache
def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return {module: set(imports(module)) - {"", module} for module in MODULES if module}


def test_every_module_is_in_a_room() -> None:
    assert {module.split(".")[0] for module in graph()} <= set(LEVEL)


def test_imports_point_down_only() -> None:
    up = set()
    for module, imported in graph().items():
        room = module.split(".")[0]
        for name in imported:
            other = name.split(".")[0]
            aside = LEVEL[other] == LEVEL[room] and ROOM[other] != ROOM[room]
            if LEVEL[other] > LEVEL[room] or aside:
                up.add(f"{module} -> {name}")
    assert up <= KNOWN, sorted(up - KNOWN)


def test_imports_go_in_no_circle() -> None:
    known_apart = {
        module: {name for name in imported if f"{module} -> {name}" not in KNOWN}
        for module, imported in graph().items()
    }
    try:
        TopologicalSorter(known_apart).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize(
    "modules", ["slimcodec.container", "slimcodec.entropy.coder, slimcodec.entropy.caption"]
)
def test_the_exact_core_needs_no_torch(modules: str) -> None:
    check = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    for module, path in MODULES.items():
        if module.split(".")[0] in ("container", "entropy"):
            assert "import torch" not in path.read_text(encoding="utf-8"), module


def test_slim_info_needs_no_torch_and_its_like() -> None:
    file = GOLDEN / "small-files" / "chelsea-97x41-q20.slim"
    command = [sys.executable, "-X", "importtime", *SLIM[1:], "info", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "97x41" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "PIL", "rich", "diffusers", "transformers", "constriction"}
