"""The README's own commands and code, run as a newcomer would type them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import photo

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return [body for name, body in BLOCK.findall(README.read_text(encoding="utf-8")) if name == language]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the photo that the README speaks of, as the working directory."""
    photo("chelsea", 451, 300).save(tmp_path / "photo.jpg", quality=92)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_python_blocks_run(desk: Path) -> None:
    # one after the other in one fresh process, as in a notebook
    script = "\n".join(blocks("python"))
    assert script.count("import slimcodec") >= 2
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=desk, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"451 300 30 .* 0\.\d{3} bits per pixel", done.stdout)
    assert (desk / "photo.slim").stat().st_size < 20_000


@pytest.mark.slow
def test_commands_run(desk: Path) -> None:
    commands = [
        line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")
    ]
    ran = [shlex.split(command) for command in commands if " train " not in command]
    assert len(ran) >= 5
    for name, *arguments in ran:
        assert name == "slim"
        done = subprocess.run(
            [sys.executable, "-m", "slimcodec.cli", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (arguments, done.stderr)
        if arguments[0] == "info":
            assert "451x300" in done.stdout
    assert {"photo.slim", "decoded.png", "small.slim", "bits.png"} <= {path.name for path in desk.iterdir()}
    assert (desk / "small.slim").stat().st_size <= 1500


def test_links_and_targets_exist() -> None:
    text = README.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert (README.parent / link).exists(), link
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
