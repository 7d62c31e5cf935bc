"""``slim report``: plots, tables and examples from the results of ``slim bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.options import USAGE, failing, say, stop


def report(
    results: Annotated[
        list[str],
        typer.Argument(metavar="RESULTS", help="Result files of slim bench, and files of published points."),
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder to write the report to.")],
    anchor: Annotated[
        str | None,
        typer.Option(metavar="CURVE", help="Anchor of BD-rates (default: avif, or the first codec)."),
    ] = None,
    photos: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Data set of the results: add a sheet of examples.")
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            "--classifier",
            "-c",
            metavar="FILE|ID",
            help="Judge of the examples: one of the results' classifiers.",
        ),
    ] = None,
    target_bytes: Annotated[
        int, typer.Option("--bytes", min=1, metavar="N", help="Largest file of an example, in bytes.")
    ] = 1000,
    examples: Annotated[int, typer.Option(min=1, metavar="N", help="Number of example photos.")] = 4,
    split: Annotated[str, typer.Option(metavar="S", help="Split of a hub data set.")] = "validation",
    model: options.Model = None,
    device: options.Device = "cpu",
) -> None:
    """Draw the results of slim bench: report.html (one file with everything), report.md and PNG files.

    Curves of SLIM that a caption enhances are refused without their controls.
    A sheet of examples shows photos of the data set: check its licence before you
    publish the sheet. Needs the eval extra.

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
        from slimcodec.evaluation.figures import example_sheet
        from slimcodec.evaluation.results import load_all
    except ModuleNotFoundError as error:
        stop(f"the report needs {error.name}: install it with pip install 'slimcodec[eval]'", USAGE)
    with failing():
        result, published = load_all(results)
        sheet = []
        if photos is not None and classifier is not None:
            samples = open_labelled(photos, split=split, labelled=False)
            sheet = example_sheet(result, samples, classifier, target_bytes, examples, model, device)
        blocks = pages.report(result, published, anchor, sheet)
        files = pages.write_report(Path(out), blocks)
    say(f"{files[0]}: {len(result)} photos, {len(result.curves)} curves, {len(files)} files in {out}")
