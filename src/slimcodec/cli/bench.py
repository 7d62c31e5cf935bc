"""``slim bench`` and ``slim report``: accuracy against bits, SLIM beside other codecs, from real files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.options import FAILED, USAGE, complain, failing, installed, say, stop

Split = Annotated[str, typer.Option(metavar="S", help="Split of a hub data set.")]


def bench(
    context: typer.Context,
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Parquet file or glob, image folder, or hub id.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="JSON", help="Result file to write.")],
    classifier: Annotated[
        list[str],
        typer.Option(
            "--classifier",
            "-c",
            metavar="FILE|ID[@SIDE]",
            help="Judge of pictures: ONNX or TorchScript file, transformers folder, or hub id (repeatable).",
        ),
    ],
    codecs: Annotated[
        str,
        typer.Option(metavar="A,B", help="Codecs to measure: slim, jpeg, jpeg2000, webp, avif, jxl, heic."),
    ] = "slim,jpeg,jpeg2000,webp,avif",
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEMPLATE",
            help="Codec run by two commands: 'name: enc PROG {in} {out} -q {q} : dec PROG {in} {out}' (repeatable).",
        ),
    ] = None,
    qualities: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=Q,Q", help="Qualities of a codec (default: about 0.02 to 1 bpp; repeatable)."
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N,N", help="SLIM's denoising steps (default: 0 and the bundle's).")
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(
            metavar="G,G|none", help="SLIM's caption guidance; none: no caption (default: the bundle's)."
        ),
    ] = None,
    effort: options.Effort = None,
    protocol: Annotated[
        str, typer.Option(metavar="P", help="Preparation of photos: icm-256 or full (docs/protocol.md).")
    ] = "icm-256",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Photos to take (default: all).")
    ] = None,
    split: Split = "validation",
    label_column: Annotated[
        str | None,
        typer.Option(metavar="C", help="Column of class indices (default: imagenet_index, label or labels)."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Labels of an image folder: lines 'file name, class index'."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Names of an image folder's sub-folders, a line each, class 0 first."
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(metavar="ONNX", help="Detector: measure agreement of its boxes (mAP at IoU 0.5)."),
    ] = None,
    lpips: Annotated[
        str | None, typer.Option(metavar="FILE", help="LPIPS network: a TorchScript file.")
    ] = None,
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
    if target.exists() and not overwrite:
        stop(f"{out}: exists; --overwrite replaces it", FAILED)
    with installed("eval", "the benchmark"):
        from slimcodec.data.sources import open_labelled
        from slimcodec.evaluation.bench import Setup, Worker, run
        from slimcodec.evaluation.curves import chosen_curves
    with failing():
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
        options.classifier("Judge of the examples: one of the results' classifiers."),
    ] = None,
    target_bytes: Annotated[
        int, typer.Option("--bytes", min=1, metavar="N", help="Largest file of an example, in bytes.")
    ] = 1000,
    examples: Annotated[int, typer.Option(min=1, metavar="N", help="Number of example photos.")] = 4,
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
        files = pages.write_report(Path(out), blocks)
    say(f"{files[0]}: {len(result)} photos, {len(result.curves)} curves, {len(files)} files in {out}")
