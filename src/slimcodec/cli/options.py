"""What the commands share: options that read alike, exit statuses, and messages of one line, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from slimcodec.errors import SlimError, describe, needs

if TYPE_CHECKING:
    from slimcodec.encoder import Roi as Region

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def option(metavar: str, help: str, *flags: str, **rest: Any) -> Any:
    """An option with a value; ``flags``, by default its parameter's name, and ``rest`` are those of ``typer.Option``."""
    return typer.Option(*flags, metavar=metavar, help=help, **rest)


Files = Annotated[list[str], typer.Argument(metavar="FILE...", help=".slim files, folders or globs.")]
Out = Annotated[
    str | None,
    option(
        "OUT",
        "Output file, folder for several inputs, or - for standard output (default: beside each input).",
        "--out",
        "-o",
    ),
]
Model = Annotated[
    str | None, option("M", "Bundle: a folder or a hub id (default: slim-tiny).", "--model", "-m")
]
Base = Annotated[str | None, option("FOLDER", "Folder that is searched first for pretrained parts.")]
Device = Annotated[str, option("D", "Device of the networks: cpu, cuda, cuda:1.")]
Dtype = Annotated[
    str | None,
    option("T", "Precision of the networks: float32, bfloat16, float16 (default: fastest on the device)."),
]
Runtime = Annotated[
    str,
    option(
        "auto|onnx|torch",
        "What runs the networks (auto: onnx, or torch where a device, a type or the bundle asks for it).",
    ),
]
Roi = Annotated[
    str,
    option(
        "auto|none|MASK",
        "Region of interest: auto (bundle's captioner, from quality 32 on), none, or a mask picture, white inside.",
    ),
]
Effort = Annotated[
    int | None,
    option(
        "N",
        "Gradient steps by which rounding keeps what a classifier sees; 0 is fastest (default: 3).",
        min=0,
        max=32,
    ),
]
Jobs = Annotated[
    int, option("N", "Worker processes, one thread each; 1 uses all threads.", "--jobs", "-j", min=1)
]
BatchSize = Annotated[
    int, option("N", "Files per batch; those of equal size pass the networks together, for a GPU.", min=1)
]
Offload = Annotated[
    bool,
    typer.Option("--offload", help="Keep pretrained parts off the device until used: slower, less memory."),
]
Engine = Annotated[
    str,
    option(
        "local|ray",
        "What runs the jobs: processes here (local), or actors of a Ray cluster (ray; --jobs: their number).",
    ),
]
Address = Annotated[
    str | None, option("A", "Address of the Ray cluster (default: RAY_ADDRESS, else a local one).")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
MaxPixels = Annotated[
    int | None, option("N", "Most pixels of a picture (default: Pillow's 89 million).", min=1)
]


def given(**settings: Any) -> dict[str, Any]:
    """Return the settings that the user gave: those that are not None."""
    return {name: value for name, value in settings.items() if value is not None}


def region_of(option: str) -> Region:
    """Return what ``--roi`` means to ``Codec.encode``: "auto", None or a mask. Raises ``ImageError``."""
    if option in ("auto", "none"):
        return None if option == "none" else option
    from PIL import Image

    from slimcodec.images import load_image, mask_from_picture

    picture = Image.fromarray(load_image(option))
    return mask_from_picture(picture, picture.size)


def pool(engine: str, jobs: int, device: str, address: str | None, block: int = 1) -> Any:
    """Return what takes the place of ``run_pool`` for an ``--engine``, None for processes on this machine.

    ``block``: items that an actor of a cluster takes at a time.
    """
    if engine not in ("local", "ray"):
        stop(f"--engine {engine}: give local or ray", USAGE)
    if engine == "local":
        if address is not None:
            stop("--address is for --engine ray", USAGE)
        return None
    with installed("ray", "--engine ray"):
        from slimcodec.integrations.ray import run_cluster
    return partial(
        run_cluster, jobs=jobs, address=address, num_gpus=int(device.startswith("cuda")), block=block
    )


def printable(text: str) -> str:
    """Return ``text`` without control characters: a file's name or caption must not steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print one line to ``stream`` (default: stdout), whatever characters its encoding lacks."""
    stream = stream or sys.stdout
    if stream is not None:  # None: the command was started with its output closed
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def complain(message: str, source: object = None) -> None:
    """Print ``slim: source: message`` to stderr."""
    say(printable(f"slim: {message}" if source in (None, "") else f"slim: {source}: {message}"), sys.stderr)


def stop(message: str, status: int) -> NoReturn:
    """Print ``slim: message`` and end the command with ``status``."""
    complain(message)
    raise typer.Exit(status)


@contextmanager
def installed(extra: str, feature: str) -> Iterator[None]:
    """End the command with status 2 where the block imports a library that is missing; ``extra`` would install it."""
    try:
        with needs(extra, feature):
            yield
    except SlimError as error:
        stop(str(error), USAGE)


@contextmanager
def failing(source: object = None, go_on: str = "") -> Iterator[None]:
    """End the command with a one-line message about ``source`` if the block raises.

    ``go_on``: how to go on after an interrupt, if the command can.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        stop(f"interrupted; {go_on}" if go_on else "interrupted", INTERRUPTED)
    except Exception as error:
        complain(describe(error, source), source)
        raise typer.Exit(FAILED) from error
