"""``slim train``: the stages of a recipe."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from slimcodec.cli.messages import USAGE, complain, describe

STAGES = ("autoencoder", "compressor", "captioner", "enhance", "bundle")


def train(
    stage: Annotated[str, typer.Argument(metavar="STAGE|all", help=f"One of {', '.join(STAGES)}, or all.")],
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="RECIPE", help="Built-in recipe or .toml file.")
    ] = "tiny-cpu",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a bundle of your own, stage by stage.

    Every stage writes its weights, checkpoints and a JSON-lines log into the
    run folder (out); the last one packs <out>/bundle, which slim encode
    --model and slimcodec.load take. Needs the train extra.

    Examples:
      slim train all -c tiny-cpu --set 'data.photos=["photos/*.parquet"]'
      slim train compressor --set out=runs/mine --set compressor.background=0.3
    """
    if stage not in (*STAGES, "all"):
        complain(f"{stage}: no such stage; take one of {', '.join(STAGES)}, or all")
        raise typer.Exit(USAGE)
    try:
        from slimcodec.training.recipe import load_recipe
        from slimcodec.training.run import Run, stages
    except ModuleNotFoundError as error:
        complain(f"training needs {error.name}: install it with pip install 'slimcodec[train]'")
        raise typer.Exit(USAGE) from None
    from slimcodec.errors import SlimError

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        steps = stages(Run(load_recipe(config, settings or ()), resume))
        for name in STAGES if stage == "all" else (stage,):
            steps[name]()
    except (SlimError, OSError, ModuleNotFoundError) as error:
        complain(describe(error))
        raise typer.Exit(1) from None
