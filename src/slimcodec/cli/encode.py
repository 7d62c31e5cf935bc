"""``slim encode``: pictures to .slim files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimcodec.cli import options
from slimcodec.cli.batch import FileState, Output, Steps, file_state, run_batch
from slimcodec.cli.inputs import SHARDS, STREAM, Job, PictureSuffixes, names_picture, only_shards
from slimcodec.cli.options import USAGE, option, stop
from slimcodec.files import is_url

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
    from slimcodec.errors import ImageError
    from slimcodec.images import load_image, register_plugins

    register_plugins()
    codec = slimcodec.load(**loading)
    region = options.region_of(roi)

    def read(job: Job) -> Picture:
        if job.source.suffix.lower() in SHARDS:
            raise ImageError("shards and pictures cannot be mixed; give shards alone")
        state = file_state(job.source) if delete_source else None
        data = job.source.read_bytes() if job.data is None else job.data
        return load_image(data, max_pixels, every_loss=delete_source), len(data), state

    def work(pictures: list[Picture | Exception]) -> Iterator[bytes | Exception]:
        pixels = (one if isinstance(one, Exception) else one[0] for one in pictures)
        return encode_many(codec, pixels, roi=region, max_pixels=max_pixels, **settings)

    def output(job: Job, picture: Picture, data: bytes) -> Output:
        if delete_source:
            # what is compared with the file on disk, before the source goes, has been decoded here
            codec.read(data, max_pixels=max_pixels)
        _, bytes_in, state = picture
        return Output(data, slimcodec.inspect(data), bytes_in, state)

    return Steps(read, work, output)


def shard_encoder(loading: dict[str, Any], settings: dict[str, Any], roi: str, column: str) -> Steps:
    """Load the codec; return how a shard is encoded, by the worker from its source to its target."""
    import slimcodec
    from slimcodec.integrations.shards import CellEncoder, encode_shard

    codec = slimcodec.load(**loading)
    settings = {**settings, "roi": options.region_of(roi)}

    def output(job: Job, source: Job, done: object) -> Output:
        encode = CellEncoder(codec, settings)
        if not is_url(job.target):
            job.target.parent.mkdir(parents=True, exist_ok=True)
        encode_shard(job.source, job.target, encode, column)
        bpp = encode.bpp / max(1, encode.pictures)
        row = {"pictures": encode.pictures, "pixels": encode.pixels, "bpp": bpp}
        return Output(b"", row, encode.bytes_in, written=encode.bytes_out, kept=encode.kept)

    return Steps(lambda job: job, list, output)


def encode(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IN...",
            help="Pictures, folders, globs, URLs, or shards (.parquet, .tar); - is standard input.",
        ),
    ],
    out: options.Out = None,
    quality: Annotated[
        int | None, option("Q", "Quality, 1 to 100 (default: 50).", "--quality", "-q", min=1, max=100)
    ] = None,
    target_bytes: Annotated[
        int | None, option("N", "Take the best quality whose file has at most N bytes.", min=1)
    ] = None,
    target_bpp: Annotated[
        float | None, option("R", "Take the best quality of at most R bits per pixel.")
    ] = None,
    caption: Annotated[
        str, option("auto|none|TEXT", "Caption: auto (bundle's captioner), none, or your text.")
    ] = "auto",
    roi: options.Roi = "auto",
    effort: options.Effort = None,
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
        option(
            "KIND,...",
            "Losses to accept: frames, raw, depth, transparency, colour, vector, exif, gps, xmp, other.",
        ),
    ] = "",
    keep_suffix: Annotated[
        bool,
        typer.Option("--keep-suffix", help="Name results photo.jpg.slim, so that photo.png has its own."),
    ] = False,
    column: Annotated[str, option("C", "Column of the pictures in a parquet file.")] = "image",
    engine: options.Engine = "local",
    address: options.Address = None,
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
    A parquet file or a tar file (WebDataset shard) becomes one with its pictures
    encoded and all else untouched; a folder of nothing but shards does likewise.
    IN and OUT may be URLs that fsspec opens: s3://, gs://, hf://, https://.
    Exit status: 0 all fine, 1 some failed, 2 usage.

    Examples:
      slim encode photo.jpg
      slim encode photo.jpg -o small.slim --target-bytes 400
      slim encode photos/ -o slims/ --quality 30 --jobs 4
      slim encode 'photos/**/*.png' -o slims/ --caption none
      slim encode photo.jpg -o photo.slim --roi mask.png
      slim encode photos/ -o slims/ --effort 0
      slim encode photos/ -o slims/ --delete-source --lose exif,gps
      slim encode photos/ -o slims/ --device cuda --batch-size 16
      slim encode s3://bucket/photos -o s3://bucket/slims --jobs 4
      slim encode hf://datasets/owner/name -o parquet/
      slim encode 'shards-{000..009}.tar' -o out/ --engine ray
      slim encode - -o - < photo.jpg > photo.slim
    """
    given = options.given(quality=quality, target_bytes=target_bytes, target_bpp=target_bpp)
    if len(given) > 1:
        stop(f"give one of {', '.join('--' + name.replace('_', '-') for name in given)}", USAGE)
    if target_bpp is not None and not target_bpp > 0:
        stop(f"--target-bpp {target_bpp}: give a number above 0", USAGE)
    if delete_source and STREAM in (*inputs, out):
        stop("--delete-source needs files to read and write; leave out -", USAGE)
    from slimcodec.leftovers import KINDS

    accepted = set(filter(None, lose.split(",")))
    if unknown := accepted - KINDS.keys():
        stop(f"--lose {','.join(sorted(unknown))}: give {', '.join(KINDS)}", USAGE)
    loading = {"source": model, "device": device, "dtype": dtype, "offload": offload, "runtime": runtime}
    text = None if caption == "none" else _as_text(caption)
    settings = {"caption": text, "batch_size": batch_size, **given, **options.given(effort=effort)}
    shards = STREAM not in (*inputs, out) and only_shards(inputs)
    if delete_source and (shards or any(map(is_url, (*inputs, out)))):
        stop("--delete-source is for local pictures; leave it out for shards and URLs", USAGE)
    if shards:
        load = partial(shard_encoder, loading, {**settings, "max_pixels": max_pixels}, roi, column)
        kind: dict[str, Any] = {"reads": SHARDS, "writes": SHARDS}
    else:
        if out is not None and names_picture(out):
            stop(f"{out}: names a picture; .slim files end in .slim", USAGE)
        load = partial(encoder, loading, settings, roi, max_pixels, delete_source)
        kind = {"reads": PictureSuffixes(), "writes": (".slim",), "batch_size": batch_size}
        kind["keep_suffix"] = keep_suffix
    run_batch(
        load,
        inputs,
        out,
        **kind,
        jobs=jobs,
        overwrite=overwrite,
        as_json=as_json,
        accepted=accepted,
        pool=options.pool(engine, jobs, device, address, block=1 if shards else 16),
    )


def _as_text(argument: str) -> str:
    """Return an argument whose bytes are UTF-8 as text, where the locale knows ASCII only."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "surrogateescape")
    return argument
