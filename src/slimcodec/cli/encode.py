"""``slim encode``: pictures to .slim files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimcodec.cli import options
from slimcodec.cli.batch import FileState, Output, Steps, file_state, run_batch
from slimcodec.cli.inputs import STREAM, Job
from slimcodec.cli.options import USAGE, stop

if TYPE_CHECKING:
    from slimcodec.images import Pixels

    #: pixels, the bytes they were read from, and the state of the file if that is to be removed
    Picture = tuple[Pixels, int, FileState | None]


def encoder(
    loading: dict[str, Any], settings: dict[str, Any], roi: str, max_pixels: int | None, delete_source: bool
) -> Steps:
    """Load the codec; return how a batch is encoded.

    ``loading``: arguments of ``slimcodec.load``, whose errors are raised. ``settings``: of ``encode_many``.
    """
    import slimcodec
    from slimcodec.batches import encode_many
    from slimcodec.formats import register_plugins
    from slimcodec.images import load_image

    register_plugins()
    codec = slimcodec.load(**loading)
    region = options.region_of(roi)

    def read(job: Job) -> Picture:
        state = file_state(job.source) if delete_source else None
        data = job.source.read_bytes() if job.data is None else job.data
        return load_image(data, max_pixels, every_loss=delete_source), len(data), state

    def work(pictures: list[Picture]) -> Iterator[bytes | Exception]:
        pixels = (pixels for pixels, _, _ in pictures)
        return encode_many(codec, pixels, roi=region, max_pixels=max_pixels, **settings)

    def output(job: Job, picture: Picture, data: bytes) -> Output:
        if delete_source:
            # what is compared with the file on disk, before the source goes, has been decoded here
            codec.read(data, max_pixels=max_pixels)
        _, bytes_in, state = picture
        return Output(data, slimcodec.inspect(data), bytes_in, state)

    return Steps(read, work, output)


def encode(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IN", help="Pictures, folders or globs; - is standard input.")
    ],
    out: options.Out = None,
    quality: Annotated[
        int | None,
        typer.Option("--quality", "-q", min=1, max=100, metavar="Q", help="Quality, 1 to 100 (default: 50)."),
    ] = None,
    target_bytes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Take the best quality whose file has at most N bytes."),
    ] = None,
    target_bpp: Annotated[
        float | None, typer.Option(metavar="R", help="Take the best quality of at most R bits per pixel.")
    ] = None,
    caption: Annotated[
        str,
        typer.Option(
            metavar="auto|none|TEXT", help="Caption: auto (bundle's captioner), none, or your text."
        ),
    ] = "auto",
    roi: options.Roi = "auto",
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    runtime: options.Runtime = "auto",
    jobs: options.Jobs = 1,
    batch_size: options.BatchSize = 1,
    offload: options.Offload = False,
    max_pixels: options.MaxPixels = None,
    overwrite: options.Overwrite = False,
    delete_source: Annotated[
        bool,
        typer.Option(
            "--delete-source", help="Remove each picture when its file has been read back and checked."
        ),
    ] = False,
    lose: Annotated[
        str,
        typer.Option(
            metavar="KIND,...",
            help="Losses to accept: frames, raw, depth, transparency, colour, vector, exif, gps, xmp, other.",
        ),
    ] = "",
    keep_suffix: Annotated[
        bool,
        typer.Option("--keep-suffix", help="Name results photo.jpg.slim, so that photo.png has its own."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Encode pictures to .slim files.

    Folders are searched recursively and mirrored below OUT.
    A result that exists is kept. In a batch its input is skipped, so the same
    command resumes an interrupted batch; for a single picture it is an error.
    Every format that Pillow and its installed plugins read is taken; the
    summary counts what else the folders hold.
    --delete-source keeps the source of what failed, warned, was skipped or
    changed meanwhile, and of what holds more than its .slim file: frames,
    camera raw data, metadata and more. --lose accepts such losses by name.
    Exit status: 0 all fine, 1 some failed, 2 usage.

    Examples:
      slim encode photo.jpg
      slim encode photo.jpg -o small.slim --target-bytes 400
      slim encode photos/ -o slims/ --quality 30 --jobs 4
      slim encode 'photos/**/*.png' -o slims/ --caption none
      slim encode photo.jpg -o photo.slim --roi mask.png
      slim encode photos/ -o slims/ --delete-source --lose exif,gps
      slim encode photos/ -o slims/ --device cuda --batch-size 16
      slim encode - -o - < photo.jpg > photo.slim
    """
    rates = {"quality": quality, "target_bytes": target_bytes, "target_bpp": target_bpp}
    given = {name: value for name, value in rates.items() if value is not None}
    if len(given) > 1:
        stop(f"give one of {', '.join('--' + name.replace('_', '-') for name in given)}", USAGE)
    if target_bpp is not None and not target_bpp > 0:
        stop(f"--target-bpp {target_bpp}: give a number above 0", USAGE)
    if delete_source and STREAM in (*inputs, out):
        stop("--delete-source needs files to read and write; leave out -", USAGE)
    from slimcodec.formats import picture_suffixes
    from slimcodec.leftovers import KINDS

    accepted = set(filter(None, lose.split(",")))
    if unknown := accepted - KINDS.keys():
        stop(f"--lose {','.join(sorted(unknown))}: give {', '.join(KINDS)}", USAGE)
    loading = {
        "source": model,
        "device": device,
        "dtype": dtype,
        "offload": offload,
        "runtime": runtime,
    }
    text = None if caption == "none" else _as_text(caption)
    settings = {"caption": text, "batch_size": batch_size, **given}
    run_batch(
        partial(encoder, loading, settings, roi, max_pixels, delete_source),
        inputs,
        out,
        reads=picture_suffixes(),
        writes=(".slim",),
        jobs=jobs,
        overwrite=overwrite,
        as_json=as_json,
        batch_size=batch_size,
        keep_suffix=keep_suffix,
        accepted=accepted,
    )


def _as_text(argument: str) -> str:
    """Return an argument whose bytes are UTF-8 as text, where the locale knows ASCII only."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "surrogateescape")
    return argument
