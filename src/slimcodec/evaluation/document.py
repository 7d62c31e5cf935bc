"""A report as blocks, and the two ways to write them: one HTML file with everything inside, or Markdown beside PNG files."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from slimcodec.evaluation.plots import Plot

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1280px; padding: 0 16px 48px; color: #1b1b1b; background: #fff;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
p, figcaption { max-width: 75ch; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure img { width: 100%; height: auto; } figcaption { color: #444; font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff;
       white-space: normal; min-width: 8rem; max-width: 13rem; }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 10px; margin-bottom: 1.5rem; }
.photos figure { margin: 0; } .photos figcaption { line-height: 1.3; font-size: .8rem; } .photos b { display: block; }
.right { color: #00604a; } .wrong { color: #9c3d00; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 or 2."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers; the first column names the row."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Cell:
    """A picture (PNG bytes) with what made it, its size, and a verdict: right, wrong, or None where none is due."""

    picture: bytes
    title: str
    detail: str
    verdict: str
    right: bool | None


@dataclass(frozen=True)
class Sheet:
    """Example photos, a row of cells each; ``picture``: the whole sheet as one PNG."""

    rows: Sequence[Sequence[Cell]]
    picture: bytes


Block = Heading | Text | Table | Plot | Sheet


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One HTML page that needs no other file."""
    body = "\n".join(map(_html, blocks))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown that shows the PNG files of ``pictures``."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def pictures(blocks: Sequence[Block]) -> dict[str, bytes]:
    """The PNG files that belong to the Markdown, by name."""
    files: dict[str, bytes] = {}
    for block in blocks:
        if isinstance(block, Plot):
            files |= {f"{block.name}.png": block.wide, f"{block.name}-narrow.png": block.narrow}
        elif isinstance(block, Sheet):
            files["examples.png"] = block.picture
    return files


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Table):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.headers)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in block.rows
        )
        return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{rows}\n</table></div>'
    if isinstance(block, Plot):
        return (
            f'<figure><picture><source media="(max-width: 700px)" srcset="{_inline(block.narrow)}">'
            f'<img src="{_inline(block.wide)}" alt="{html.escape(block.caption)}"></picture>'
            f"<figcaption>{html.escape(block.caption)}</figcaption></figure>"
        )
    return "\n".join(f'<div class="photos">{"".join(map(_html_cell, row))}</div>' for row in block.rows)


def _html_cell(cell: Cell) -> str:
    kind = {True: "right", False: "wrong", None: ""}[cell.right]
    return (
        f'<figure><img src="{_inline(cell.picture)}" alt="{html.escape(cell.title)}"><figcaption>'
        f"<b>{html.escape(cell.title)}</b>{html.escape(cell.detail)}<br>"
        f'<span class="{kind}">{html.escape(cell.verdict)}</span></figcaption></figure>'
    )


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return "#" * block.level + " " + block.text
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Table):
        lines = [block.headers, ["---"] + ["---:"] * (len(block.headers) - 1), *block.rows]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
    if isinstance(block, Plot):
        return f"![{block.caption}]({block.name}.png)"
    return "![Example photos](examples.png)"
