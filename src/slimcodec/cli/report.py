"""``slim report``: plots, tables and examples from the results of ``slim bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.messages import USAGE, failing, say, stop


def report(
    results: Annotated[
        list[str], typer.Argument(metavar="RESULTS", help="JSON files of slim bench; published points too.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder for the report.")],
    anchor: Annotated[
        str | None,
        typer.Option(metavar="CURVE", help="What BD-rates refer to (default: avif, or the first codec)."),
    ] = None,
    photos: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="The data set of the results: adds a sheet of examples."),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option("--classifier", "-c", metavar="FILE|ID", help="One of the results', to judge examples."),
    ] = None,
    target_bytes: Annotated[
        int, typer.Option("--bytes", min=1, metavar="N", help="Size of the examples' files.")
    ] = 1000,
    examples: Annotated[int, typer.Option(min=1, metavar="N", help="Photos on the sheet.")] = 4,
    split: Annotated[str, typer.Option(metavar="S", help="Split of a hub data set.")] = "validation",
    model: options.Model = None,
    device: options.Device = "cpu",
) -> None:
    """Draw what slim bench measured: report.html (all in one file), report.md and PNG files.

    Curves of SLIM that a caption enhances are refused without their controls.
    A sheet of examples needs the photos and a classifier, and shows photos of
    the data set: mind its terms before you publish it. Needs the eval extra.

    Examples:
      slim report result.json -o report/
      slim report slim.json peers.json results/published/*.json -o report/
      slim report result.json -o report/ --photos val.parquet -c judge.onnx
    """
    if (photos is None) != (classifier is None):
        stop("a sheet of examples needs both --photos and --classifier", USAGE)
    try:
        from slimcodec.data.sources import open_labelled
        from slimcodec.evaluation import report as pages
        from slimcodec.evaluation.comparison import load_all
        from slimcodec.evaluation.sheet import example_sheet
    except ModuleNotFoundError as error:
        stop(f"the report needs {error.name}: install it with pip install 'slimcodec[eval]'", USAGE)
    with failing():
        result, published = load_all(results)
        sheet = None
        if photos is not None and classifier is not None:
            samples = open_labelled(photos, split=split, labelled=False)
            sheet = example_sheet(result, samples, classifier, target_bytes, examples, model, device)
        written = pages.write_report(Path(out), pages.report(result, published, anchor, sheet))
    say(f"{written[0]}: {len(result)} photos, {len(result.curves)} curves, {len(written)} files in {out}")
