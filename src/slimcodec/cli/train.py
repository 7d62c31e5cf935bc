"""``slim train``: the stages of a recipe, and a look at what it would learn from."""

from __future__ import annotations

import logging
import math
import time
from typing import Annotated

import typer

from slimcodec.cli.options import USAGE, failing, installed, option, say, stop
from slimcodec.training import STAGES

#: what is made of a recipe, in order
MADE = (*STAGES, "bundle")
PREVIEW = "preview"
#: exit status of a run that --minutes ended
STOPPED = 3


def train(
    stage: Annotated[
        str,
        typer.Argument(metavar="STAGE|all|preview", help=f"One of {', '.join(MADE)}; all; or preview."),
    ],
    config: Annotated[str, option("RECIPE", "Built-in recipe or .toml file.", "--config", "-c")] = "tiny-cpu",
    settings: Annotated[
        list[str] | None, option("KEY=VALUE", "Change a value of the recipe.", "--set")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint; finished stages are kept.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Train stages again whose weights are there.")
    ] = False,
    minutes: Annotated[
        float | None, option("M", "Stop with a checkpoint after so many minutes; exit status 3.", min=0)
    ] = None,
) -> None:
    """Train a bundle of your own, stage by stage.

    Every stage writes its weights, checkpoints, samples and a JSON-lines log
    into the run folder (out); the last one packs OUT/bundle, which slim encode
    --model and slimcodec.load take. preview draws a sheet of photos with their
    masks and captions and trains nothing. Needs the train extra.

    Recipes: smoke (minutes, needs no data), tiny-cpu (hours of one core),
    tiny-gpu (half an hour of a GPU), hub-lora (a pretrained diffusion model),
    hub-latent (its autoencoder alone, hours of one core).

    Examples:
      slim train all -c smoke
      slim train preview --set data=photos/ --set out=runs/mine
      slim train all -c tiny-cpu --set data=photos/ --set out=runs/mine
      slim train compressor --set out=runs/mine --set compressor.background=0.3 --overwrite
      slim train all -c tiny-gpu --set data=photos/ --minutes 9 --resume
    """
    if stage not in (*MADE, "all", PREVIEW):
        stop(f"{stage}: no such stage; take one of {', '.join(MADE)}, all or {PREVIEW}", USAGE)
    with installed("train", "training"):
        from slimcodec.training.data import card_lines, preview
        from slimcodec.training.export import save_bundle
        from slimcodec.training.loop import OutOfTime
        from slimcodec.training.recipe import load_recipe
        from slimcodec.training.run import Run
        from slimcodec.training.stages import check_stages, train_stage

    logging.basicConfig(format="%(message)s")
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    with failing(go_on="go on with --resume"):
        chosen = tuple(settings or ())
        run = Run(load_recipe(config, chosen), resume, config, chosen)
        run.deadline = deadline
        # one voice, whatever the number of processes
        logger = logging.getLogger("slimcodec")
        logger.setLevel(logging.INFO if run.accelerator.is_main_process else logging.ERROR)
        if run.accelerator.is_main_process:
            for line in card_lines(run.card):
                logger.info(line)
        if stage == PREVIEW:
            say(str(preview(run.data)))
        names = {"all": (*run.recipe.stages, "bundle"), PREVIEW: ()}.get(stage, (stage,))
        check_stages(run, names)
        if not (resume or overwrite) and (done := [name for name in names if run.has_begun(name)]):
            stop(
                f"{run.folder} holds {', '.join(done)}: go on with --resume, train again with --overwrite, "
                "or choose another folder with --set out=",
                USAGE,
            )
        for name in names:
            if name == "bundle":
                save_bundle(run)
            else:
                try:
                    train_stage(run, name)
                except OutOfTime as ended:
                    stop(f"{ended}; go on with --resume", STOPPED)
        # several processes part in order: without it, one of them may abort at its exit
        run.accelerator.end_training()
