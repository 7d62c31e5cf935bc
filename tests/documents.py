"""The documentation as tests see it: its pages, their blocks of code, and what runs them as they stand."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slimcodec.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
#: languages of blocks: those that run, and those that are only read
RUN, READ = {"sh", "console", "python"}, {"text", "json", "toml"}
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every block of code of a page."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(language: str, text: str) -> Iterator[list[str]]:
    """The words of every command of a block; patterns of existing files are expanded, as a shell does."""
    for line in text.replace("\\\n", " ").splitlines():
        if language == "console" and not line.startswith("$ "):
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield [found for word in words for found in (sorted(glob.glob(word)) or [word])]


def run_page(
    page: Path,
    names: dict[str, Any] | None = None,
    more: Callable[[list[str]], list[str]] = lambda arguments: [],
) -> dict[str, Any]:
    """Run the blocks of a page one after the other in the working directory; returns the names that its Python leaves.

    ``names``: what its Python finds; ``more``: arguments to add to a command, such as those that make training short.
    """
    names = {"__name__": page.stem, **(names or {})}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)  # noqa: S102  the documentation is ours
        elif language in RUN:
            for program, *arguments in commands(language, text):
                assert program == "slim", program
                with pytest.raises(SystemExit) as caught:
                    main([*arguments, *more(arguments)])
                assert not caught.value.code, arguments
    return names
