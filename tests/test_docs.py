"""README, docs/ and their kin: blocks of code run as they stand, links lead somewhere, the site builds, numbers are today's."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from documents import PAGES, READ, ROOT, RUN, blocks, commands, run_page
from judges import colour_classifier
from support import NAMES, photo
from test_evaluation import crops, write

import slimcodec
from slimcodec.cli import application
from slimcodec.cli.info import LIBRARIES
from slimcodec.data.classifiers import load_classifier
from slimcodec.data.photos import Record
from slimcodec.evaluation.bench import prepare
from slimcodec.training.recipe import RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: pages whose blocks another test runs
ELSEWHERE = {"hub.md"}
RUNNING = [
    page
    for page in PAGES
    if page.name not in ELSEWHERE and any(language in RUN for language, _ in blocks(page))
]


def settings(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """A recipe's values as arguments of --set."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={str(value).lower() if isinstance(value, bool) else value}"


def short(arguments: list[str]) -> list[str]:
    """What makes a command of the documentation short: two qualities, small networks and three training steps a stage."""
    if arguments[0] == "bench":
        codecs = "slim=20,60 jpeg=5,45 jpeg2000=200,50 webp=2,60 avif=10,40 jxl=7,65 heic=10,41"
        return ["--jobs", "1", *(part for one in codecs.split() for part in ("--qualities", one))]
    if arguments[0] != "train":
        return []
    recipe = tomllib.loads((RECIPES / "smoke.toml").read_text(encoding="utf-8"))
    small = {key: value for key, value in recipe.items() if key not in ("name", "out", "data")}
    steps = {name: {"optimisation": {"steps": 3}} for name in small if "optimisation" in (small[name] or {})}
    return [part for one in (*settings(small), *settings(steps)) for part in ("--set", one)]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages speak of, as the working directory: a photo, a folder of photos, labelled photos and their judge."""
    photo("chelsea", 451, 300).save(tmp_path / "photo.jpg", quality=92)
    (tmp_path / "photos").mkdir()
    photo("chelsea", 160, 130).save(tmp_path / "photos" / "cat.png")
    for name in NAMES:
        photo(name, 140, 130).save(tmp_path / "photos" / f"{name}.png")
    classifier = load_classifier(str(colour_classifier(tmp_path / "judge.onnx")))
    images = crops(3)
    labels = [classifier.judge(prepare(Record(image), "icm-256").pixels, 0)[0] for image in images]
    write(tmp_path / "val.parquet", images, labels)
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.name)
def test_blocks_run(page: Path, desk: Path) -> None:
    names = run_page(page, more=short)
    if page.name == "start.md":
        assert (desk / "small.slim").stat().st_size <= 1500
        assert (names["info"].width, names["info"].height, names["info"].quality) == (451, 300, 30)
        assert {"decoded.png", "for-a-classifier.png", "bits.png"} <= {path.name for path in desk.iterdir()}


def test_the_pages_of_a_newcomer_run_something() -> None:
    assert {"README.md", "start.md", "compress.md", "training.md", "protocol.md"} <= {p.name for p in RUNNING}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_what_they_are_and_options_exist(page: Path) -> None:
    for language, text in blocks(page):
        assert language in RUN | READ, f"{page.name}: mark the block {', '.join(sorted(RUN | READ))}\n{text}"
        if language == "python":
            compile(text, page.name, "exec")
        elif language == "text":
            for line in re.findall(r"^(?:slim|make) (?:.*\\\n)*.*", text, re.MULTILINE):
                for words in commands("text", line):
                    check_target(words[1:]) if words[0] == "make" else check_options(words[1:])


def check_target(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        assert "=" in word or re.search(rf"^{word}:", makefile, re.MULTILINE), word


def check_options(words: list[str]) -> None:
    """The command and its options exist."""
    command: Any = typer.main.get_command(application())
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    given = {word.split("=")[0] for word in words if re.match("--?[a-z]", word)}
    assert not hasattr(command, "commands") and given <= known, given - known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!\w+:)([^)#]+)[^)]*\)", text):
        assert (page.parent / link).exists(), link
    for target in re.findall(r"`make ([\w-]+)`", text):
        check_target([target])


def test_the_questions_of_a_newcomer_are_answered_from_the_first_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for question in (
        "How small?",
        "How good?",
        "What does it need?",
        "Can I trust it?",
        "How do I train it?",
    ):
        (answer,) = re.findall(rf"^\| {re.escape(question)} \|(.*)\|$", text, re.MULTILINE)
        assert re.search(r"\]\([\w/.-]+\.md", answer), question


def test_the_citation_names_this_release() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", text, re.MULTILINE)[1] == slimcodec.__version__  # type: ignore[index]
    assert f"## [{slimcodec.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_numbers_are_those_of_the_results() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "results.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("material"), reason="needs the extra docs")
def test_the_site_builds_without_warnings_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pages = {path.parent.name: path.read_text(encoding="utf-8") for path in tmp_path.rglob("index.html")}
    assert "slim encode" in pages["cli"] and "--target-bytes" in pages["cli"]
    assert "slimcodec.Codec.encode" in pages["api"] and "bisection" in pages["api"]
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|img|link)\b[^>]*\b(?:src|href)=\"?(https?:[^\s\">]+)", text)
        assert not loaded, (name, loaded)
    styles = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css"))
    assert not re.search(r"url\(\"?https?:", styles)


def test_the_doctor_lists_the_libraries_of_each_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in ("torch", "train"):
        needed = [line for line in project["optional-dependencies"][extra] if ";" not in line]
        names = {re.split(r"[\[<>=]", line)[0] for line in needed} - {"slimcodec"}
        assert set(LIBRARIES[extra].split()) == names, extra
