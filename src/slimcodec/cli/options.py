"""Options that several commands share, so that they read alike."""

from typing import Annotated

import typer

Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        help="File, or folder for several inputs (default: beside each input); - is standard output.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="M", help="Bundle: a folder or a hub id (default: the embedded slim-tiny)."
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="D", help="Where the networks run: cpu, cuda, cuda:1, mps.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="T",
        help="Of the networks: float32, bfloat16, float16 (default: the fastest on the device).",
    ),
]
Roi = Annotated[
    str,
    typer.Option(
        "--roi",
        metavar="auto|none|MASK",
        help="Where the bits go: as the captioner sees it, everywhere alike, or where a picture is white.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", "-j", min=1, metavar="N", help="Processes, one thread each; 1 uses all threads of one."
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="N",
        help="Files at a time; those of equal size share a pass through the networks, for a GPU.",
    ),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload", help="Pretrained parts come to the device one at a time: slower, for less memory there."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", min=1, metavar="N", help="Largest picture to open (default: Pillow's 89 million)."
    ),
]

# What a search in a folder takes for a picture; a file named itself may have any suffix.
PICTURES = frozenset(
    {
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
    }
    | {".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)
