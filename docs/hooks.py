"""Hooks of the site: pages that lie elsewhere in the repository, links to its files, and the command line's reference."""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from slimcodec.cli import application

ROOT = Path(__file__).parent.parent
#: files outside docs/ that are pages of the site
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "src/slimcodec/weights/slim-tiny/README.md": "model-card.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
EXAMPLES = re.compile(r"^Examples:\n((?:  .*\n)+)", re.MULTILINE)


def on_config(config: MkDocsConfig) -> None:
    """Leave out the entries of pages that are not written yet."""
    config.nav = _present(config.nav or [])


def _present(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = []
    for entry in entries:
        for title, content in entry.items():
            if isinstance(content, list):
                kept.append({title: _present(content)})
            elif content in SOURCES or (ROOT / "docs" / content).is_file():
                kept.append({title: content})
    return kept


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that lie elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to the site's pages; other files of the repository that they name are served with it."""
    name = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(name, f"docs/{name}"))

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if target.startswith("docs/") or target in PAGES:
            return PAGES.get(target, target.removeprefix("docs/"))
        if (ROOT / target).is_file() and not files.get_file_from_path(target):
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
        return target

    return LINK.sub(link, markdown).replace("<!-- commands -->", _commands() if name == "cli.md" else "")


def _commands() -> str:
    """The reference of ``slim``, from its Typer app."""
    command = typer.main.get_command(application())
    text = html.unescape(get_docs_for_click(obj=command, ctx=typer.Context(command), name="slim"))
    text = EXAMPLES.sub(lambda match: f"```sh\n{re.sub('^  ', '', match[1], flags=re.MULTILINE)}```\n", text)
    return re.sub("^#", "##", text, flags=re.MULTILINE)
