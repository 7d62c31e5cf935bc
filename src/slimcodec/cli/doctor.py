"""``slim doctor``: what is there, what is missing, and how to get it."""

import importlib.metadata
import json
import os
import platform
from typing import Annotated, Any

import typer

from slimcodec.cli import options
from slimcodec.cli.messages import FAILED, printable, say
from slimcodec.errors import describe

#: what each extra of the package adds; "" is the package itself
LIBRARIES = {
    "": (
        "torch",
        "diffusers",
        "transformers",
        "tokenizers",
        "huggingface_hub",
        "safetensors",
        "constriction",
        "numpy",
        "pillow",
    ),
    "train": ("accelerate", "peft", "datasets", "tensorboard"),
}


def doctor(
    model: options.Model = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="FOLDER", help="Where pretrained parts are looked for first."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say which libraries, devices and parts of a bundle are there, and how to get what is missing.

    Exit status: 0 all that decoding needs is there, 1 something is missing.

    Examples:
      slim doctor
      slim doctor --model mine/
    """
    found: dict[str, Any] = {"libraries": libraries(), "devices": devices(), "hub": hub()}
    found["bundle"] = bundle(model, base)
    missing = [library for library in found["libraries"] if not library["version"]]
    fine = not found["bundle"]["problems"] and not any(not library["extra"] for library in missing)
    if as_json:
        say(json.dumps(found, indent=2))
    else:
        _print(found)
    if not fine:
        raise typer.Exit(FAILED)


def libraries() -> list[dict[str, str]]:
    """Name, extra and version of every library, the version "" where it is not installed; none of them is imported."""
    result = [{"name": "python", "extra": "", "version": platform.python_version()}]
    for extra, names in LIBRARIES.items():
        for name in names:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                version = ""
            result.append({"name": name, "extra": extra, "version": version})
    return result


def devices() -> list[dict[str, str]]:
    """The devices that torch can use, with the type that networks run fastest in."""
    try:
        import torch

        from slimcodec.codec import fast_dtype
    except ImportError:
        return []

    def fastest(device: str) -> str:
        return str(fast_dtype(device)).removeprefix("torch.")

    result = [{"name": "cpu", "about": f"{os.cpu_count()} processors", "dtype": fastest("cpu")}]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        about = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        result.append({"name": f"cuda:{number}", "about": about, "dtype": fastest(f"cuda:{number}")})
    return result


def hub() -> dict[str, str]:
    """Where downloaded models are kept, whether the network may be used, and the folder that is looked in first."""
    from huggingface_hub import constants

    from slimcodec.models.pretrained.references import BASE_VARIABLE

    offline = "off (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "on"
    return {"cache": constants.HF_HUB_CACHE, "network": offline, "base": os.environ.get(BASE_VARIABLE, "")}


def bundle(model: str | None, base: str | None) -> dict[str, Any]:
    """A bundle's name and id, its pretrained parts with the folders that they are in, and what is wrong."""
    try:
        from slimcodec.models.bundle import Bundle
        from slimcodec.models.publishing import part_states

        loaded = Bundle.from_pretrained(model, base=base)
        states = part_states(loaded)
    except Exception as error:  # noqa: BLE001  whatever is wrong is what the user wants to know
        return {"name": str(model), "id": "", "parts": {}, "problems": [describe(error)]}
    return {
        "name": loaded.config.name,
        "id": loaded.bundle_id,
        "parts": {state.reference.name: str(state.found.folder) for state in states if state.found},
        "problems": [state.problem for state in states if state.problem],
    }


def _print(found: dict[str, Any]) -> None:
    for library in found["libraries"]:
        extra = f"[{library['extra']}]" if library["extra"] else ""
        state = library["version"] or f"missing: pip install 'slimcodec{extra}'"
        say(f"{library['name']:<16} {state}")
    for device in found["devices"]:
        say(f"{device['name']:<16} {device['about']}, fastest in {device['dtype']}")
    say(printable(f"{'hub':<16} network {found['hub']['network']}, cache {found['hub']['cache']}"))
    if found["hub"]["base"]:
        say(printable(f"{'base':<16} {found['hub']['base']}"))
    about = found["bundle"]
    say(printable(f"{'bundle':<16} {about['name']} {about['id']}"))
    for name, folder in about["parts"].items():
        say(printable(f"  {name:<14} {folder}"))
    for problem in about["problems"]:
        say(printable(f"  missing: {problem}"))
