"""Options that several commands share, so that they read alike, and the region that ``--roi`` means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from slimcodec.encoder import Roi as Region

Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        help="Output file, folder for several inputs, or - for standard output (default: beside each input).",
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="M", help="Bundle: a folder or a hub id (default: slim-tiny)."),
]
Base = Annotated[
    str | None,
    typer.Option("--base", metavar="FOLDER", help="Folder that is searched first for pretrained parts."),
]
Device = Annotated[
    str, typer.Option("--device", metavar="D", help="Device of the networks: cpu, cuda, cuda:1, mps.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="T",
        help="Precision of the networks: float32, bfloat16, float16 (default: fastest on the device).",
    ),
]
Roi = Annotated[
    str,
    typer.Option(
        "--roi",
        metavar="auto|none|MASK",
        help="Region of interest: auto (bundle's captioner), none, or a mask picture, white inside.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", "-j", min=1, metavar="N", help="Worker processes, one thread each; 1 uses all threads."
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="N",
        help="Files per batch; those of equal size pass the networks together, for a GPU.",
    ),
]
Offload = Annotated[
    bool,
    typer.Option("--offload", help="Keep pretrained parts off the device until used: slower, less memory."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels", min=1, metavar="N", help="Most pixels of a picture (default: Pillow's 89 million)."
    ),
]

FORMATS = "apng avif bmp dib gif j2k jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
#: suffixes that a search in a folder takes for a picture; a file that is named itself may have any
PICTURES = frozenset(f".{name}" for name in FORMATS.split())


def region_of(option: str) -> Region:
    """Return the argument ``roi`` of ``Codec.encode``: "auto", None, or the mask of a picture file.

    Raises ``ImageError`` for a file that cannot be read.
    """
    if option in ("auto", "none"):
        return None if option == "none" else option
    from PIL import Image

    from slimcodec.data.masks import mask_from_picture
    from slimcodec.images import load_image

    picture = Image.fromarray(load_image(option))
    return mask_from_picture(picture, picture.size)
