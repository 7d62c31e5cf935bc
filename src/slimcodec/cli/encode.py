"""``slim encode``: pictures to .slim files."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypedDict

import typer

from slimcodec.cli import options
from slimcodec.cli.batch import Output, run_batch
from slimcodec.cli.messages import USAGE, stop
from slimcodec.cli.paths import Job
from slimcodec.cli.removal import file_state


class Rate(TypedDict, total=False):
    """The argument of ``Codec.encode`` that sets the size: one of these, or none for its default."""

    quality: int
    target_bytes: int
    target_bpp: float


@dataclass(frozen=True)
class Encode:
    """Encoding as the batch runs it: load the codec once, then a picture at a time."""

    model: str | None
    device: str
    dtype: str | None
    caption: str | None
    rate: Rate
    max_pixels: int | None
    delete_source: bool = False

    def prepare(self) -> Callable[[Job], Output]:
        """Load the codec; raises what ``slimcodec.load`` raises."""
        import slimcodec

        codec = slimcodec.load(self.model, device=self.device, dtype=self.dtype)

        def run(job: Job) -> Output:
            spent = file_state(job.source) if self.delete_source else None
            picture = job.read()
            data = codec.encode(picture, caption=self.caption, max_pixels=self.max_pixels, **self.rate)
            if self.delete_source:
                # what is compared with the file on disk, before the source goes, has been decoded here
                codec.read(data, max_pixels=self.max_pixels)
            return Output(data, slimcodec.inspect(data), len(picture), spent)

        return run


def encode(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IN", help="Pictures, folders or globs; - is standard input.")
    ],
    out: options.Out = None,
    quality: Annotated[
        int | None, typer.Option("--quality", "-q", min=1, max=100, metavar="Q", help="1..100 (default: 50).")
    ] = None,
    target_bytes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Best quality whose file has at most N bytes.")
    ] = None,
    target_bpp: Annotated[
        float | None, typer.Option(metavar="R", help="Best quality whose file has at most R bits per pixel.")
    ] = None,
    caption: Annotated[
        str,
        typer.Option(metavar="auto|none|TEXT", help="Found by the bundle's captioner, left out, or yours."),
    ] = "auto",
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    jobs: options.Jobs = 1,
    max_pixels: options.MaxPixels = None,
    overwrite: options.Overwrite = False,
    delete_source: Annotated[
        bool,
        typer.Option(
            "--delete-source", help="Remove each picture once its file was read back from disk and checked."
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Encode pictures to .slim files.

    Folders are searched recursively and mirrored below OUT.
    A result that exists is kept: in a batch its input is skipped, so that
    an interrupted batch can be taken up again; for a single picture it is an error.
    --delete-source keeps the source of whatever failed, warned, was skipped or
    changed meanwhile. A .slim file holds neither metadata nor a second frame.
    Exit status: 0 all fine, 1 some failed, 2 usage.

    Examples:
      slim encode photo.jpg
      slim encode photo.jpg -o small.slim --target-bytes 400
      slim encode photos/ -o slims/ --quality 30 --jobs 4
      slim encode 'photos/**/*.png' -o slims/ --caption none
      slim encode photos/ -o slims/ --delete-source
      slim encode - -o - < photo.jpg > photo.slim
    """
    rates = {"quality": quality, "target_bytes": target_bytes, "target_bpp": target_bpp}
    given = {name: value for name, value in rates.items() if value is not None}
    if len(given) > 1:
        stop(f"give only one of {', '.join('--' + name.replace('_', '-') for name in given)}", USAGE)
    if target_bpp is not None and not target_bpp > 0:
        stop("--target-bpp must be above 0", USAGE)
    if delete_source and "-" in (*inputs, out):
        stop("--delete-source needs a file to read and a file to write, not -", USAGE)
    run_batch(
        Encode(
            model,
            device,
            dtype,
            None if caption == "none" else _as_text(caption),
            Rate(**given),  # type: ignore[typeddict-item]
            max_pixels,
            delete_source,
        ),
        inputs,
        out,
        reads=options.PICTURES,
        writes=(".slim",),
        jobs=jobs,
        overwrite=overwrite,
        as_json=as_json,
    )


def _as_text(argument: str) -> str:
    """Return an argument whose bytes are UTF-8 as text, where the locale knows ASCII only."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "surrogateescape")
    return argument
