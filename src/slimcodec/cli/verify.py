"""``slim verify``: whether .slim files are whole, down to their symbols."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.inputs import find_inputs
from slimcodec.cli.messages import FAILED, complain, failing, say
from slimcodec.errors import describe
from slimcodec.processes import track


def verify(
    inputs: Annotated[list[str], typer.Argument(metavar="FILE", help=".slim files, folders or globs.")],
    model: options.Model = None,
    max_pixels: options.MaxPixels = None,
    as_json: options.Json = False,
) -> None:
    """Check .slim files: checksum, header, caption, and that the payload decodes to its last symbol.

    No picture is made. Each bad file is a line. A file of another bundle than M
    counts as bad, since its symbols can't be checked.
    Exit status: 0 all fine, 1 some were bad, 2 usage, 130 interrupted.

    Examples:
      slim verify photo.slim
      slim verify slims/ --json
      slim verify 'slims/**/*.slim' --model my-bundle/
    """
    start = time.perf_counter()
    files, problems = find_inputs(inputs, (".slim",))
    rows: list[dict[str, str | None]] = []

    def count(name: object, error: str | None) -> None:
        if error is not None:
            complain(error, name)
        rows.append({"file": str(name), "error": error})

    for argument, problem in problems:
        count(argument, problem)
    if files:
        with failing():
            check = _checker(model, max_pixels)
        for file in track(files):
            count(file.path, check(file.path))
    bad = sum(row["error"] is not None for row in rows)
    good = len(rows) - bad
    seconds = time.perf_counter() - start
    if as_json:
        say(json.dumps({"files": rows, "good": good, "bad": bad, "seconds": round(seconds, 4)}, indent=2))
    else:
        say(f"{good} file{'s' * (good != 1)} good, {bad} bad, {seconds:.1f} s")
    if bad:
        raise typer.Exit(FAILED)


def _checker(model: str | None, max_pixels: int | None) -> Callable[[Path], str | None]:
    """Load the codec; returns the function that says what is wrong with a file, None for a good one."""
    import slimcodec

    # exact symbols need no fast networks, so float32 does everywhere
    codec = slimcodec.load(model, dtype="float32")

    def check(path: Path) -> str | None:
        try:
            codec.read(path, max_pixels=max_pixels)
        except Exception as error:  # noqa: BLE001  a bad file must not hide the others
            return describe(error, path)
        return None

    return check
