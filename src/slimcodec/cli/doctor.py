"""``slim doctor``: what is installed, what is missing, and how to get it."""

import json
import os
from typing import Any

import typer

from slimcodec.cli import options
from slimcodec.cli.options import FAILED, printable, say
from slimcodec.errors import describe

#: libraries of each extra; "" is the package itself
LIBRARIES = {
    "": "onnxruntime constriction numpy pillow",
    "torch": "torch diffusers transformers tokenizers huggingface_hub safetensors onnx",
    "train": "accelerate peft datasets tensorboard",
}


def doctor(model: options.Model = None, base: options.Base = None, as_json: options.Json = False) -> None:
    """List the libraries, devices and parts of a bundle that are there, and how to get what is missing.

    Exit status: 0 all that decoding needs is there, 1 something is missing.

    Examples:
      slim doctor
      slim doctor --model mine/
    """
    state: dict[str, Any] = {
        "libraries": libraries(),
        "devices": devices(),
        "hub": hub(),
        "bundle": bundle(model, base),
    }
    if as_json:
        say(json.dumps(state, indent=2))
    else:
        _print(state)
    missing = any(not library["version"] and not library["extra"] for library in state["libraries"])
    if missing or state["bundle"]["problems"]:
        raise typer.Exit(FAILED)


def libraries() -> list[dict[str, str]]:
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


def devices() -> list[dict[str, str]]:
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


def hub() -> dict[str, str]:
    """The cache of downloaded models, whether the network may be used, and the folder that is searched first."""
    try:
        from huggingface_hub import constants

        from slimcodec.models.pretrained.references import BASE_VARIABLE
    except ImportError:
        return {"cache": "", "network": "off (huggingface_hub is missing)", "base": ""}

    network = "off (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "on"
    return {"cache": constants.HF_HUB_CACHE, "network": network, "base": os.environ.get(BASE_VARIABLE, "")}


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


def _print(state: dict[str, Any]) -> None:
    def line(name: str, text: str) -> None:
        say(printable(f"{name:<16} {text}"))

    for library in state["libraries"]:
        extra = f"[{library['extra']}]" if library["extra"] else ""
        line(library["name"], library["version"] or f"missing: pip install 'slimcodec{extra}'")
    for device in state["devices"]:
        line(device["name"], f"{device['about']}, fastest in {device['dtype']}")
    hub, bundle = state["hub"], state["bundle"]
    line("hub", f"network {hub['network']}, cache {hub['cache']}")
    if hub["base"]:
        line("base", hub["base"])
    line("bundle", f"{bundle['name']} {bundle['id']}")
    for name, folder in bundle["parts"].items():
        line(f"  {name}", folder)
    for problem in bundle["problems"]:
        say(printable(f"  missing: {problem}"))
