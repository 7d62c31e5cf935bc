"""``slim bench`` and ``slim report``: accuracy against bits, SLIM beside other codecs, from real files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.options import FAILED, USAGE, complain, failing, installed, option, say, stop

Split = Annotated[str, option("S", "Split of a hub data set.")]


def bench(
    context: typer.Context,
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Parquet file or glob, image folder, or hub id.")
    ],
    out: Annotated[str, option("JSON", "Result file to write.", "--out", "-o")],
    classifier: Annotated[
        list[str],
        option(
            "FILE|ID[@SIDE]",
            "Judge of pictures: ONNX or TorchScript file, transformers folder, or hub id (repeatable).",
            "--classifier",
            "-c",
        ),
    ],
    codecs: Annotated[
        str, option("A,B", "Codecs to measure: slim, jpeg, jpeg2000, webp, avif, jxl, heic.")
    ] = "slim,jpeg,jpeg2000,webp,avif",
    codec: Annotated[
        list[str] | None,
        option(
            "TEMPLATE",
            "Codec run by two commands: 'name: enc PROG {in} {out} -q {q} : dec PROG {in} {out}' (repeatable).",
        ),
    ] = None,
    qualities: Annotated[
        list[str] | None,
        option("NAME=Q,Q", "Qualities of a codec (default: about 0.02 to 1 bpp; repeatable)."),
    ] = None,
    steps: Annotated[
        str | None, option("N,N", "SLIM's denoising steps (default: 0 and the bundle's).")
    ] = None,
    guidance: Annotated[
        str | None, option("G,G|none", "SLIM's caption guidance; none: no caption (default: the bundle's).")
    ] = None,
    effort: options.Effort = None,
    protocol: Annotated[
        str, option("P", "Preparation of photos: icm-256 or full (docs/protocol.md).")
    ] = "icm-256",
    limit: Annotated[int | None, option("N", "Photos to take (default: all).", min=1)] = None,
    split: Split = "validation",
    label_column: Annotated[
        str | None, option("C", "Column of class indices (default: imagenet_index, label or labels).")
    ] = None,
    labels: Annotated[
        str | None, option("FILE", "Labels of an image folder: lines 'file name, class index'.")
    ] = None,
    classes: Annotated[
        str | None, option("FILE", "Names of an image folder's sub-folders, a line each, class 0 first.")
    ] = None,
    detector: Annotated[
        str | None, option("ONNX", "Detector: measure agreement of its boxes (mAP at IoU 0.5).")
    ] = None,
    lpips: Annotated[str | None, option("FILE", "LPIPS network: a TorchScript file.")] = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    jobs: options.Jobs = 1,
    engine: options.Engine = "local",
    address: options.Address = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Measure accuracy against bits: code every photo to a real file, decode it, let classifiers judge.

    Codecs, classifiers and labels are checked before the first photo. The same
    command resumes an interrupted run. slim report draws the result;
    docs/protocol.md describes the procedure. Needs the eval extra, and the peers
    extra for jxl and heic.

    Examples:
      slim bench val.parquet -c judge.onnx --codecs slim,avif,webp -o result.json
      slim bench photos/ --labels labels.csv -c microsoft/resnet-50 -o result.json --jobs 4
      slim bench val/ -c judge.onnx -o r.json --qualities avif=10,30 --limit 100
    """
    target = Path(out)
    if target.is_dir():
        stop(f"{out}: is a folder; name a file", USAGE)
    if target.exists() and not overwrite:
        stop(f"{out}: exists; --overwrite replaces it", FAILED)
    with installed("eval", "the benchmark"):
        from slimcodec.data.sources import open_labelled
        from slimcodec.evaluation.bench import Setup, Worker, run
        from slimcodec.evaluation.curves import chosen_curves
    with failing(go_on="the same command goes on"):
        names = [name.strip() for name in codecs.split(",") if name.strip()]
        given = options.given(effort=effort)
        curves = chosen_curves(names, codec or [], qualities or [], steps, guidance, model, device, **given)
        worker = Worker(Setup(curves, tuple(classifier), protocol, detector, lpips, model, device))
        worker.try_out()
        samples = open_labelled(
            dataset, split=split, label_column=label_column, labels=labels, classes=classes, limit=limit
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        # absolute paths are cut to their names: a result tells what was run, not where
        words = [Path(word).name if Path(word).is_absolute() else word for word in context.obj]
        command = shlex.join(["slim", *words])
        pool = options.pool(engine, jobs, device, address)
        run(worker, samples, target, jobs=jobs, command=command, report=complain, pool=pool)
    say(f"{out}: {len(samples)} photos, {len(curves)} curves; draw them with slim report {shlex.quote(out)}")


def report(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT...", help="Result files of slim bench, and files of published points."
        ),
    ],
    out: Annotated[str, option("DIR", "Folder to write the report to.", "--out", "-o")],
    anchor: Annotated[
        str | None, option("CURVE", "Anchor of BD-rates (default: avif, or the first codec).")
    ] = None,
    photos: Annotated[
        str | None, option("DATASET", "Data set of the results: add a sheet of examples.")
    ] = None,
    classifier: Annotated[
        str | None,
        option("FILE|ID", "Judge of the examples: one of the results' classifiers.", "--classifier", "-c"),
    ] = None,
    target_bytes: Annotated[
        int, option("N", "Largest file of an example, in bytes.", "--bytes", min=1)
    ] = 1000,
    examples: Annotated[int, option("N", "Number of example photos.", min=1)] = 4,
    split: Split = "validation",
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
    with installed("eval", "the report"):
        from slimcodec.data.sources import open_labelled
        from slimcodec.evaluation import report as pages
        from slimcodec.evaluation.figures import example_sheet
        from slimcodec.evaluation.results import load_all
    with failing():
        result, published = load_all(results)
        sheet = []
        if photos is not None and classifier is not None:
            samples = open_labelled(photos, split=split, labelled=False)
            sheet = example_sheet(result, samples, classifier, target_bytes, examples, model, device)
        blocks = pages.report(result, published, anchor, sheet)
    with failing(out):
        files = pages.write_report(Path(out), blocks)
    say(f"{files[0]}: {len(result)} photos, {len(result.curves)} curves, {len(files)} files in {out}")
