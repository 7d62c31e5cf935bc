"""Nothing in the package runs what it reads: no pickle, no eval, no code of a model's repository, weights as safetensors only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for folder in ("src", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
)
#: modules whose loading runs code that is in the data, or that unpack it anywhere
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "tarfile",
    "zipfile",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"os.system", "os.popen", "pandas.read_pickle", "torch.hub.load"}
#: TorchScript is a program: judges and teachers that a user names (SECURITY.md), and nothing that decoding needs
TORCHSCRIPT = {"evaluation/measures.py", "data/networks.py"}
#: what loads no weights
WITHOUT_WEIGHTS = {"AutoProcessor", "Bundle", "loader", "tokenizer"}


def dotted(node: ast.expr) -> str:
    """The name that an expression spells, "" for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(text: str, file: str = "") -> Iterator[str]:
    """What a source does that it must not."""
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (f"imports {name}" for name in names if name.split(".")[0] in MODULES)
        if isinstance(node, ast.keyword):
            yield from _keyword(node)
        if isinstance(node, ast.Call):
            yield from _call(node, file)


def _keyword(node: ast.keyword) -> Iterator[str]:
    value = node.value.value if isinstance(node.value, ast.Constant) else None
    if node.arg in ("trust_remote_code", "allow_pickle", "shell") and value is not False:
        yield f"{node.arg} is not False"
    if node.arg in ("weights_only", "use_safetensors") and value is not True:
        yield f"{node.arg} is not True"


def _call(node: ast.Call, file: str) -> Iterator[str]:
    name = dotted(node.func)
    keywords = {keyword.arg for keyword in node.keywords}
    if name in BUILTINS | CALLS:
        yield f"calls {name}"
    if name == "torch.load" and "weights_only" not in keywords:
        yield "torch.load without weights_only"
    if name == "torch.jit.load" and file not in TORCHSCRIPT:
        yield "torch.jit.load"
    owner, _, method = name.rpartition(".")
    if method == "from_pretrained" and owner not in WITHOUT_WEIGHTS and "use_safetensors" not in keywords:
        yield f"{name} without use_safetensors"


def relative(path: Path) -> str:
    package = ROOT / "src" / "slimcodec"
    return path.relative_to(package if package in path.parents else ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert list(findings(path.read_text(encoding="utf-8"), relative(path))) == []


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib.numpy_pickle import load", "imports joblib.numpy_pickle"),
        ("eval('1')", "calls eval"),
        ("torch.load(path)", "torch.load without weights_only"),
        ("torch.load(path, weights_only=False)", "weights_only is not True"),
        ("torch.load(path, weights_only=given)", "weights_only is not True"),
        ("torch.jit.load(path)", "torch.jit.load"),
        ("np.load(path, allow_pickle=True)", "allow_pickle is not False"),
        ("AutoModel.from_pretrained(path)", "AutoModel.from_pretrained without use_safetensors"),
        (
            "AutoModel.from_pretrained(path, use_safetensors=True, trust_remote_code=True)",
            "trust_remote_code is not False",
        ),
        ("subprocess.run(line, shell=True)", "shell is not False"),
    ],
)
def test_each_of_them_would_be_found(text: str, finding: str) -> None:
    assert list(findings(text)) == [finding]


def test_the_package_carries_no_pickled_weights() -> None:
    files = [
        path for path in (ROOT / "src").rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")
    ]
    assert len(SOURCES) > 70 and files == []
