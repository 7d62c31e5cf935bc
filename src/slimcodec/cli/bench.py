"""``slim bench``: accuracy against bits, SLIM beside other codecs, from real files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.messages import FAILED, USAGE, complain, failing, say, stop


def bench(
    context: typer.Context,
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Parquet file or glob, image folder, or hub id.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="JSON", help="The result to write.")],
    classifier: Annotated[
        list[str],
        typer.Option(
            "--classifier",
            "-c",
            metavar="FILE|ID[@SIDE]",
            help="ONNX or TorchScript file, transformers folder, hub id; several times for several.",
        ),
    ],
    codecs: Annotated[
        str, typer.Option(metavar="A,B", help="Of slim, jpeg, jpeg2000, webp, avif, jxl, heic.")
    ] = "slim,jpeg,jpeg2000,webp,avif",
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEMPLATE", help="A command: 'name: enc PROG {in} {out} -q {q} : dec PROG {in} {out}'."
        ),
    ] = None,
    qualities: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=Q,Q", help="Qualities of a codec (default: about 0.02 to 1 bpp)."),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N,N", help="SLIM's denoising steps (default: 0 and the bundle's).")
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(metavar="G,G", help="SLIM's caption guidance (default: the bundle's).")
    ] = None,
    protocol: Annotated[
        str, typer.Option(metavar="P", help="icm-256 or full: see docs/protocol.md.")
    ] = "icm-256",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Take the first N photos.")] = None,
    split: Annotated[str, typer.Option(metavar="S", help="Split of a hub data set.")] = "validation",
    label_column: Annotated[
        str | None, typer.Option(metavar="C", help="Column of class indices (default: the first that fits).")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="FILE", help="Image folder: lines of 'file name, class index'.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help="Image folder: the sub-folders' names, class 0 first.")
    ] = None,
    detector: Annotated[
        str | None, typer.Option(metavar="ONNX", help="Detector: agreement of its boxes, mAP at IoU 0.5.")
    ] = None,
    lpips: Annotated[
        str | None, typer.Option(metavar="FILE", help="LPIPS network as a TorchScript file.")
    ] = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    jobs: options.Jobs = 1,
    overwrite: options.Overwrite = False,
) -> None:
    """Measure accuracy against bits: code every photo to real bytes, decode them, let classifiers judge.

    Everything is checked before the first photo: codecs, classifiers, labels. A
    run that was stopped goes on when the same command is given again.
    slim report draws the result; docs/protocol.md says exactly what is done.
    Needs the eval extra, and peers for jxl and heic.

    Examples:
      slim bench val.parquet -c judge.onnx --codecs slim,avif,webp -o result.json
      slim bench photos/ --labels labels.csv -c microsoft/resnet-50 -o result.json --jobs 4
      slim bench val/ -c judge.onnx -o r.json --qualities avif=10,30 --limit 100
    """
    target = Path(out)
    if target.exists() and not overwrite:
        stop(f"{out}: exists; --overwrite replaces it", FAILED)
    try:
        from slimcodec.data.sources import open_labelled
        from slimcodec.evaluation.bench import run
        from slimcodec.evaluation.curves import chosen_curves
        from slimcodec.evaluation.protocol import protocol as preset
        from slimcodec.evaluation.worker import Setup, Worker
    except ModuleNotFoundError as error:
        stop(f"the benchmark needs {error.name}: install it with pip install 'slimcodec[eval]'", USAGE)
    with failing():
        preset(protocol)
        curves = chosen_curves(
            [name.strip() for name in codecs.split(",") if name.strip()],
            codec or [],
            qualities or [],
            steps,
            guidance,
            model,
            device,
        )
        worker = Worker(Setup(curves, tuple(classifier), protocol, detector, lpips, model, device))
        worker.try_out()
        samples = open_labelled(
            dataset, split=split, label_column=label_column, labels=labels, classes=classes, limit=limit
        )
        target.parent.mkdir(parents=True, exist_ok=True)
    with failing(), _progress() as (started, advance):
        run(
            worker,
            samples,
            target,
            jobs=jobs,
            command=shlex.join(["slim", *_without_folders(context.obj)]),
            started=started,
            advance=advance,
        )
    say(f"{out}: {len(samples)} photos, {len(curves)} curves; draw them with slim report {shlex.quote(out)}")


def _without_folders(arguments: list[str]) -> list[str]:
    """The command's words, absolute paths cut to their names: a result tells what was run, not where."""
    return [Path(word).name if Path(word).is_absolute() else word for word in arguments]


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[], None]]]:
    """Show a bar on stderr if that is a terminal, else a line now and then; yields what to call at start and per photo."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    if sys.stderr.isatty():
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("photos")
            yield (
                lambda done, total: bar.update(task, completed=done, total=total),
                lambda: bar.advance(task),
            )
        return
    done, total, begin, last = 0, 0, 0.0, 0.0

    def started(found: int, count: int) -> None:
        nonlocal done, total, begin, last
        done, total, begin, last = 0, count - found, time.monotonic(), time.monotonic()
        if found:
            complain(f"{found} of {count} photos are done already")

    def advance() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last > 60:
            last = now
            left = (now - begin) / done * (total - done)
            complain(f"{done} of {total} photos, about {left / 60:.0f} minutes left")

    yield started, advance
