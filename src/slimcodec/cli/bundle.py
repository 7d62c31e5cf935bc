"""``slim bundle``: bundles on pretrained models, made, shown, checked and packed."""

import json
from typing import Annotated, Any

import typer

from slimcodec.cli import options
from slimcodec.cli.options import FAILED, complain, failing, option, printable, say
from slimcodec.errors import describe

bundle = typer.Typer(no_args_is_help=True, help="Make, show, check and pack bundles on pretrained models.")

Folder = Annotated[str, typer.Argument(metavar="DIR", help="Bundle: a folder or a hub id.")]
NewFolder = Annotated[str, option("DIR", "Folder to make.", "--out", "-o")]


@bundle.command()
def create(
    ldm: Annotated[str, option("ID|FOLDER", "Pretrained pipeline, a folder or a hub id.")],
    out: NewFolder,
    autoencoder: Annotated[
        str, option("ID|FOLDER", "Autoencoder to use instead of the pipeline's, such as a tiny one.")
    ] = "",
    text_encoder: Annotated[
        str, option("ID|FOLDER", "Text encoder to use instead of the pipeline's first.")
    ] = "",
    captioner: Annotated[
        str,
        option(
            "ID|FOLDER|none",
            "Captioner: image-to-text or zero-shot model, bundle, or none (default: slim-tiny).",
        ),
    ] = "slim-tiny",
    prompt: Annotated[str, option("TEXT", "Prompt of an image-to-text captioner.")] = "",
    tags: Annotated[str, option("FILE", "Tags of a zero-shot captioner, one per line.")] = "",
    compressor: Annotated[str, option("RUN|DIR", "Trained compressor (default: a transform code).")] = "",
    alternative: Annotated[
        list[str] | None, option("ID|FOLDER", "Another source of the pipeline; repeatable.")
    ] = None,
    photos: Annotated[str, option("FOLDER", "Pictures for the transform of an untrained compressor.")] = "",
    name: Annotated[str, option("NAME", "Name of the bundle.")] = "",
    steps: Annotated[int, option("N", "Default number of denoising steps.", min=0)] = 1,
    text_scale: Annotated[float, option("G", "Classifier-free guidance scale; 1 is off.", min=0)] = 1.0,
    strength: Annotated[
        tuple[float, float] | None,
        option("LOW HIGH", "Shares of the noise schedule at quality 1 and 100 (default: measured)."),
    ] = None,
    device: options.Device = "cpu",
    pack: Annotated[bool, typer.Option("--pack", help="Copy the pretrained parts into the bundle.")] = False,
) -> None:
    """Make a bundle on a pretrained latent diffusion model.

    The bundle names the model's parts by id, revision and hash, and holds our
    own parts: compressor, prior, LoRA.
    Supported models: Stable Diffusion 1.x and 2.x, Turbo, LCM, SDXL.

    Examples:
      slim bundle create --ldm stable-diffusion-v1-5/stable-diffusion-v1-5 -o sd15
      slim bundle create --ldm sdxl-turbo/ --compressor runs/mine -o mine --pack
    """
    with failing():
        from slimcodec.models.publishing import save
        from slimcodec.training.create import create as create_bundle

        created = create_bundle(
            ldm,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            compressor=compressor,
            captioner="" if captioner == "none" else captioner,
            prompt=prompt,
            tags=tags,
            alternatives=tuple(alternative or ()),
            photos=photos,
            name=name,
            steps=steps,
            text_scale=text_scale,
            strength=strength,
            device=device,
        )
        save(created, out, packed=pack)
        say(f"{printable(out)}: bundle {created.bundle_id}")


@bundle.command()
def show(source: Folder, base: options.Base = None, as_json: options.Json = False) -> None:
    """Show what a bundle is and which pretrained parts it names; nothing is loaded or hashed."""
    with failing(source):
        described = _describe(_load(source, base))
        if as_json:
            say(json.dumps(described, indent=2))
            return
        for key, value in described.items():
            if key != "parts":
                say(f"{key:<11} {printable(str(value))}")
        for part in described["parts"]:
            revision = f" at {part['revision'][:12]}" if part["revision"] else ""
            line = f"  {part['name']:<15} {part['megabytes']:>9.1f} MB  {part['sha256'][:16]}  {part['source']}{revision}"
            say(printable(line))


@bundle.command()
def verify(source: Folder, base: options.Base = None) -> None:
    """Look for every pretrained part that a bundle names and check its hash.

    Exit status: 0 all there, 1 something is missing or altered.
    """
    with failing(source):
        from slimcodec.batches import attempt

        loaded, missing = _load(source, base), 0
        for reference in loaded.references():
            part = attempt(loaded.pretrained_part, reference.name)
            if isinstance(part, Exception):
                complain(describe(part))
                missing += 1
            else:
                say(printable(f"{reference.name:<15} {part.place:<7} {part.folder}"))
        count = len(loaded.references())
        say(f"{count - missing} of {count} pretrained parts are there and as they must be")
    if missing:
        raise typer.Exit(FAILED)


@bundle.command()
def pack(source: Folder, out: NewFolder, base: options.Base = None) -> None:
    """Copy a bundle with all pretrained parts that it names, for use without a network."""
    with failing(source):
        from slimcodec.models.publishing import save

        loaded = _load(source, base)
        save(loaded, out, packed=True)
        say(f"{printable(out)}: bundle {loaded.bundle_id} with {len(loaded.references())} pretrained parts")


@bundle.command()
def export(
    out: Annotated[str, typer.Argument(metavar="DIR", help="Folder to write, made if missing.")],
    model: options.Model = None,
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Put the weights into the graphs.")
    ] = True,
) -> None:
    """Write a bundle's networks as ONNX graphs: the encoder's and the decoder's in a folder each.

    DIR/graphs.json lists them with their inputs and outputs, and holds the symbol tables.
    Graphs without weights belong into the folder graphs of the bundle, where the onnx runtime reads them.

    Examples:
      slim bundle export networks/
      slim bundle export mine/graphs --no-weights --model mine/
    """
    with failing(out):
        from pathlib import Path

        from slimcodec.models.graphs import export

        loaded = _load(model, None)
        export(loaded, Path(out), weights=weights)
        say(f"{printable(out)}: networks of bundle {loaded.bundle_id}")


def _load(source: str | None, base: str | None) -> Any:
    from slimcodec.models.bundle import Bundle

    return Bundle.from_pretrained(source, base=base)


def _describe(bundle: Any) -> dict[str, Any]:
    config = bundle.config
    network = config.compressor
    return {
        "name": config.name,
        "id": bundle.bundle_id,
        "sha256": bundle.sha256,
        "enhancer": config.enhancer.mode if config.enhancer else "none",
        "steps": config.steps,
        "text_scale": config.text_scale,
        "latent": f"{network.latent_channels} channels, {config.stride} pixels a position",
        "holds": ", ".join(sorted(bundle.stored)),
        "parts": [
            {
                key: getattr(part, key)
                for key in ("name", "source", "revision", "sha256", "megabytes", "licence")
            }
            for part in bundle.references()
        ],
    }
