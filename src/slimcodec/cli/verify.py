"""``slim verify``: whether .slim files are whole, down to their symbols."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.batch import progress
from slimcodec.cli.messages import FAILED, complain, failing, say
from slimcodec.cli.paths import find_inputs
from slimcodec.errors import describe


def verify(
    inputs: Annotated[list[str], typer.Argument(metavar="FILE", help=".slim files, folders or globs.")],
    model: options.Model = None,
    max_pixels: options.MaxPixels = None,
    as_json: options.Json = False,
) -> None:
    """Check .slim files: checksum, header, caption, and that the payload is exactly that of its symbols.

    No picture is made. Bad files are named one a line; a file of another bundle
    than M counts as bad, since its symbols can't be checked.
    Exit status: 0 all fine, 1 some were bad, 2 usage, 130 interrupted.

    Examples:
      slim verify photo.slim
      slim verify slims/ --json
      slim verify 'slims/**/*.slim' --model my-bundle/
    """
    start = time.perf_counter()
    found, problems = find_inputs(inputs, (".slim",))
    rows: list[dict[str, object]] = []

    def count(name: object, error: str | None) -> None:
        if error is not None:
            complain(error, name)
        rows.append({"file": str(name), "error": error})

    for argument, problem in problems:
        count(argument, problem)
    if found:
        with failing():
            check = _checker(model, max_pixels)
        with progress(len(found)) as advance:
            for item in found:
                count(item.path, check(item.path))
                advance()
    bad = sum(row["error"] is not None for row in rows)
    seconds = time.perf_counter() - start
    if as_json:
        summary = {"files": rows, "good": len(rows) - bad, "bad": bad, "seconds": round(seconds, 4)}
        say(json.dumps(summary, indent=2))
    else:
        good = len(rows) - bad
        say(f"{good} file{'s' * (good != 1)} good, {bad} bad, {seconds:.1f} s")
    if bad:
        raise typer.Exit(FAILED)


def _checker(model: str | None, max_pixels: int | None) -> Callable[[Path], str | None]:
    """Load the codec; returns the function that says what is wrong with a file, None if nothing is."""
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
