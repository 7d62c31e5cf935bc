"""``slim info``: what .slim files say in their headers."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.inputs import find_inputs
from slimcodec.cli.messages import FAILED, complain, printable, say
from slimcodec.container import SlimInfo, inspect
from slimcodec.errors import describe


def info(
    inputs: Annotated[list[str], typer.Argument(metavar="FILE", help=".slim files, folders or globs.")],
    as_json: options.Json = False,
) -> None:
    """Show the headers of .slim files: size, quality, bytes and where they went, caption, bundle.

    No model is loaded. Exit status: 0 all fine, 1 some files were bad, 2 usage.

    Examples:
      slim info photo.slim
      slim info slims/ --json
    """
    files, problems = find_inputs(inputs, (".slim",))
    for argument, problem in problems:
        complain(problem, argument)
    headers: list[tuple[str, SlimInfo]] = []
    for file in files:
        try:
            headers.append((str(file.path), inspect(file.path)))
        except Exception as error:  # noqa: BLE001  a bad file must not hide the others
            complain(describe(error, file.path), file.path)
    if as_json:
        rows = [{"file": name, **asdict(header), "bpp": header.bpp} for name, header in headers]
        say(json.dumps(rows, indent=2))
    elif headers:
        _print_table([_row(name, header) for name, header in headers])
    if problems or len(headers) < len(files):
        raise typer.Exit(FAILED)


def _row(name: str, header: SlimInfo) -> dict[str, str]:
    if header.caption is not None:
        text = printable(header.caption)
    else:
        text = "-" if header.caption_index is None else f"tag {header.caption_index} of its bundle"
    return {
        "FILE": printable(name),
        "SIZE": f"{header.width}x{header.height}",
        "QUALITY": str(header.quality),
        "BYTES": str(header.file_bytes),
        "BPP": f"{header.bpp:.4f}",
        "HEADER": str(header.header_bytes),
        "CAPTION": str(header.caption_bytes),
        "PAYLOAD": str(header.payload_bytes),
        "BUNDLE": header.bundle_id,
        "VERSION": str(header.version),
        "TEXT": text,
    }


def _print_table(rows: list[dict[str, str]]) -> None:
    # Plain columns: rich would cost more time than the rest of the command, and pipes want no frames.
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
