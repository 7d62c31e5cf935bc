"""``slim decode``: .slim files to pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from slimcodec.cli import options
from slimcodec.cli.batch import Output, Steps, run_batch
from slimcodec.cli.paths import Job
from slimcodec.container import MAX_FILE_BYTES


@dataclass(frozen=True)
class Decode:
    """Decoding as the batch runs it: load the codec once, then some files at a time."""

    model: str | None
    device: str
    dtype: str | None
    steps: int | None
    guidance: float | None
    preset: str
    max_pixels: int | None
    batch_size: int = 1
    offload: bool = False

    def prepare(self) -> Steps:
        """Load the codec; raises what ``slimcodec.load`` raises."""
        import io

        from PIL import Image

        import slimcodec
        from slimcodec.batches import decode_many
        from slimcodec.container import read_source

        codec = slimcodec.load(self.model, device=self.device, dtype=self.dtype, offload=self.offload)
        # what cannot be for any file stops the command once
        codec.sampling(self.steps, self.guidance, self.preset)
        formats = Image.registered_extensions()

        def suffix(job: Job) -> str:
            return job.target.suffix.lower() or ".png"

        def read(job: Job) -> bytes:
            if formats.get(suffix(job)) not in Image.SAVE:
                raise ValueError(
                    f"{job.target}: Pillow writes no {suffix(job)} files; use .png, .jpg or .webp"
                )
            return read_source(job.source if job.data is None else job.data)

        def work(files: list[bytes]) -> Iterator[Image.Image | Exception]:
            return decode_many(
                codec,
                files,
                self.steps,
                self.guidance,
                preset=self.preset,
                batch_size=self.batch_size,
                max_pixels=self.max_pixels,
            )

        def output(job: Job, data: bytes, picture: Image.Image) -> Output:
            file = io.BytesIO()
            # PNG takes no quality; for a lossy format its default would be a second, visible compression.
            picture.save(file, formats[suffix(job)], quality=95)
            return Output(file.getvalue(), slimcodec.inspect(data), len(data))

        return Steps(read, work, output)


def decode(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IN", help=".slim files, folders or globs; - is standard input.")
    ],
    out: options.Out = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Denoising steps; 0 is fastest, no diffusion (default: the bundle's)."
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="G", help="Strength of the caption's guidance; 0 is off (default: the preset's)."
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            metavar="natural|machine",
            help="For people and quick, or for classifiers: guided by the caption, ten times as slow.",
        ),
    ] = "natural",
    model: options.Model = None,
    device: options.Device = "cpu",
    dtype: options.Dtype = None,
    jobs: options.Jobs = 1,
    batch_size: options.BatchSize = 1,
    offload: options.Offload = False,
    max_pixels: options.MaxPixels = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Decode .slim files to pictures: PNG, or what the suffix of a single OUT says.

    Folders are searched recursively and mirrored below OUT.
    A result that exists is kept: in a batch its input is skipped, so that
    an interrupted batch can be taken up again; for a single file it is an error.
    Exit status: 0 all fine, 1 some failed, 2 usage.

    Examples:
      slim decode photo.slim
      slim decode photo.slim -o photo.webp --steps 0
      slim decode slims/ -o pictures/ --jobs 4
      slim decode photo.slim --preset machine
      slim decode slims/ -o pictures/ --device cuda --batch-size 16
      slim decode - -o - < photo.slim > photo.png
    """
    run_batch(
        Decode(model, device, dtype, steps, guidance, preset, max_pixels, batch_size, offload),
        inputs,
        out,
        reads=(".slim",),
        writes=(".png", *sorted(options.PICTURES)),
        jobs=jobs,
        overwrite=overwrite,
        as_json=as_json,
        stdin_limit=MAX_FILE_BYTES,
        batch_size=batch_size,
    )
