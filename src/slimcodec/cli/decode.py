"""``slim decode``: .slim files to pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimcodec.cli import options
from slimcodec.cli.batch import Output, Steps, run_batch
from slimcodec.cli.inputs import Job, PictureSuffixes
from slimcodec.cli.options import complain, option
from slimcodec.container import MAX_FILE_BYTES, read_source

if TYPE_CHECKING:
    from PIL import Image


def decoder(loading: dict[str, Any], sampling: dict[str, Any], settings: dict[str, Any]) -> Steps:
    """Load the codec; return how a batch is decoded.

    ``loading``: arguments of ``slimcodec.load``, whose errors are raised. ``sampling``: steps, guidance and
    preset, ``settings``: the other arguments of ``decode_many``.
    """
    from PIL.PngImagePlugin import PngInfo

    import slimcodec
    from slimcodec.batches import decode_many
    from slimcodec.images import as_file, format_of

    codec = slimcodec.load(**loading)
    # an option out of range, or in vain, stops the command once
    codec.sampling(**sampling)

    def suffix(job: Job) -> str:
        return job.target.suffix.lower() or ".png"

    def read(job: Job) -> bytes:
        if format_of(suffix(job)) is None:
            raise ValueError(f"{job.target}: Pillow writes no {suffix(job)} files; use .png, .jpg or .webp")
        return read_source(job.source if job.data is None else job.data)

    def work(files: list[bytes | Exception]) -> Iterator[Image.Image | Exception]:
        return decode_many(codec, files, **sampling, **settings)

    def output(job: Job, data: bytes, picture: Image.Image) -> Output:
        # PNG takes no quality; for a lossy format its default would be a second, visible compression.
        chunks = PngInfo()
        if "comment" in picture.info:
            chunks.add_text("Comment", picture.info["comment"])
        made = as_file(picture, format_of(suffix(job)) or "", quality=95, pnginfo=chunks)
        return Output(made, slimcodec.inspect(data), len(data))

    return Steps(read, work, output)


def decode(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IN...", help=".slim files, folders or globs; - is standard input.")
    ],
    out: options.Out = None,
    steps: Annotated[
        int | None,
        option("N", "Denoising steps; 0 is fastest, without diffusion (default: the bundle's).", min=0),
    ] = None,
    guidance: Annotated[
        float | None,
        option("G", "Strength of the caption guidance, 0 (off) to 1 (default: the preset's).", min=0),
    ] = None,
    preset: Annotated[
        str,
        option(
            "natural|machine",
            "Decode for people (natural) or for classifiers (machine: guided by the caption, 5 times slower).",
        ),
    ] = "natural",
    guidance_steps: Annotated[
        int | None, option("N", "Gradient steps of caption guidance (default: 4).", min=1)
    ] = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    runtime: options.Runtime = "auto",
    jobs: options.Jobs = 1,
    batch_size: options.BatchSize = 1,
    offload: options.Offload = False,
    max_pixels: options.MaxPixels = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Decode .slim files to pictures: PNG, or what the suffix of a single OUT says.

    Folders are searched recursively and mirrored below OUT.
    Guided and denoised pixels are drawn by the model: the picture's comment
    says so (PNG, JPEG). A result that exists is kept. In a batch its input is skipped, so the same
    command resumes an interrupted batch; for a single file it is an error.
    Exit status: 0 all fine, 1 some failed, 2 usage.

    Examples:
      slim decode photo.slim
      slim decode photo.slim -o photo.webp --steps 0
      slim decode slims/ -o pictures/ --jobs 4
      slim decode photo.slim --preset machine
      slim decode slims/ -o pictures/ --device cuda --batch-size 16
      slim decode - -o - < photo.slim > photo.png
    """
    if guidance is not None and guidance > 1:  # docs/decisions.md
        complain(f"warning: --guidance {guidance:g} damages pictures; it helps classifiers from 0.2 to 1")
    loading = {"source": model, "device": device, "dtype": dtype, "offload": offload, "runtime": runtime}
    sampling = {"steps": steps, "guidance": guidance, "preset": preset, "guidance_steps": guidance_steps}
    settings = {"batch_size": batch_size, "max_pixels": max_pixels}
    run_batch(
        partial(decoder, loading, sampling, settings),
        inputs,
        out,
        reads=(".slim",),
        writes=PictureSuffixes(".png"),
        jobs=jobs,
        overwrite=overwrite,
        as_json=as_json,
        stdin_limit=MAX_FILE_BYTES,
        batch_size=batch_size,
    )
