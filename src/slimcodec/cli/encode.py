"""``slim encode``: pictures to .slim files."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import typer

from slimcodec.cli import options
from slimcodec.cli.batch import Output, Steps, run_batch
from slimcodec.cli.messages import USAGE, stop
from slimcodec.cli.paths import Job
from slimcodec.cli.removal import FileState, file_state


class Rate(TypedDict, total=False):
    """The argument of ``Codec.encode`` that sets the size: one of these, or none for its default."""

    quality: int
    target_bytes: int
    target_bpp: float


@dataclass(frozen=True)
class Picture:
    """A picture that was read: its pixels, the bytes it took, and the state of its file where that is to go."""

    pixels: Any
    bytes_in: int
    spent: FileState | None


@dataclass(frozen=True)
class Encode:
    """Encoding as the batch runs it: load the codec once, then some pictures at a time."""

    model: str | None
    device: str
    dtype: str | None
    caption: str | None
    roi: str
    rate: Rate
    max_pixels: int | None
    delete_source: bool = False
    batch_size: int = 1
    offload: bool = False

    def prepare(self) -> Steps:
        """Load the codec; raises what ``slimcodec.load`` raises."""
        import slimcodec
        from slimcodec.batches import encode_many
        from slimcodec.cli.regions import region_of

        codec = slimcodec.load(self.model, device=self.device, dtype=self.dtype, offload=self.offload)
        region = region_of(self.roi)

        def read(job: Job) -> Picture:
            spent = file_state(job.source) if self.delete_source else None
            data = job.read()
            return Picture(codec.open(data, self.max_pixels), len(data), spent)

        def work(pictures: list[Picture]) -> Iterator[bytes | Exception]:
            return encode_many(
                codec,
                (picture.pixels for picture in pictures),
                caption=self.caption,
                batch_size=self.batch_size,
                roi=region,
                max_pixels=self.max_pixels,
                **self.rate,
            )

        def output(job: Job, picture: Picture, data: bytes) -> Output:
            if self.delete_source:
                # what is compared with the file on disk, before the source goes, has been decoded here
                codec.read(data, max_pixels=self.max_pixels)
            return Output(data, slimcodec.inspect(data), picture.bytes_in, picture.spent)

        return Steps(read, work, output)


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
    roi: options.Roi = "auto",
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    jobs: options.Jobs = 1,
    batch_size: options.BatchSize = 1,
    offload: options.Offload = False,
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
      slim encode photo.jpg -o photo.slim --roi mask.png
      slim encode photos/ -o slims/ --delete-source
      slim encode photos/ -o slims/ --device cuda --batch-size 16
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
            roi,
            Rate(**given),  # type: ignore[typeddict-item]
            max_pixels,
            delete_source,
            batch_size,
            offload,
        ),
        inputs,
        out,
        reads=options.PICTURES,
        writes=(".slim",),
        jobs=jobs,
        overwrite=overwrite,
        as_json=as_json,
        batch_size=batch_size,
    )


def _as_text(argument: str) -> str:
    """Return an argument whose bytes are UTF-8 as text, where the locale knows ASCII only."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "surrogateescape")
    return argument
