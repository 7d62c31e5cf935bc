"""The one training loop: every step is a function of the state and the step number, so a resumed run equals an unbroken one.

It runs unchanged on a CPU, on a GPU, and in several processes started by ``accelerate launch``, each on its share of a batch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from slimcodec.data.contact_sheet import Tile
from slimcodec.errors import SlimError
from slimcodec.training.batches import Draws
from slimcodec.training.log import TrainingLog, save_tensors
from slimcodec.training.losses import rate_failure
from slimcodec.training.recipe import Optimisation, Reports

logger = logging.getLogger(__name__)

#: steps in a row without a finite gradient after which a run stops
PATIENCE = 10

#: a tensor, or a tuple of tensors and of lists that are no tensors
B = TypeVar("B")


class Stage(Generic[B]):
    """What a training stage tells the loop, which brings all modules that it holds to the device."""

    name: str
    #: the modules that are trained, saved and averaged
    model: nn.Module
    #: parameters whose learning rate is ``rate_factor`` times that of the others: a linear path is a good transform already
    scaled: Sequence[nn.Parameter] = ()
    rate_factor = 0.02
    #: by step and the numbers of pictures in its batch, as a pure function
    batches: Callable[..., B]

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW: what is trained at the learning rate, and what at a multiple of it."""
        scaled = [parameter for parameter in self.scaled if parameter.requires_grad]
        ids = {id(parameter) for parameter in scaled}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in ids]
        return [
            {"params": rest, "lr": learning_rate},
            {"params": scaled, "lr": learning_rate * self.rate_factor},
        ]

    def loss(self, batch: B, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a share and its terms by name; ``progress`` runs from 0 to 1 over the stage."""
        raise NotImplementedError

    def failure(self, terms: dict[str, float]) -> str | None:
        """Why the run should stop, by the mean terms of a log line: a rate that has collapsed or burst; None while all is well."""
        return rate_failure(terms["bpp"]) if "bpp" in terms else None

    def samples(self, batch: B, draws: Draws) -> list[list[Tile]]:
        """Columns of pictures, a row for each of the batch, that show what the model does."""
        return []


def train(
    stage: Stage[Any],
    folder: Path,
    options: Optimisation,
    reports: Reports,
    accelerator: Accelerator | None = None,
    *,
    workers: int = 0,
    state: dict[str, Any] | None = None,
    about: Mapping[str, str] | None = None,
    deadline: float = math.inf,
) -> dict[str, Tensor]:
    """Trains a stage and returns the averaged (EMA) weights.

    The run folder gets ``<stage>.jsonl`` (terms by name), ``<stage>.pt`` (checkpoint, with ``about`` inside), curves for
    TensorBoard and sheets of samples; what the stage left there before goes first, unless it is resumed. ``workers`` processes
    prepare batches. ``state``: the checkpoint from which the stage goes on, see ``load_tensors``. At the first checkpoint or
    log line after ``deadline`` (``time.monotonic``) the stage writes a checkpoint and raises ``OutOfTime``.

    Stops with ``SlimError`` when ten steps in a row have no finite gradient, or the stage reports a failure; single bad steps are
    skipped.
    """
    accelerator = accelerator or Accelerator(cpu=True)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}.pt"
    for held in vars(stage).values():
        if isinstance(held, nn.Module):  # trained, or only used
            held.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        stage.parameter_groups(options.learning_rate), betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    base_rates = [group["lr"] for group in optimizer.param_groups]
    average = average_weights(stage.model, options.ema_decay)
    first, bad = 0, 0
    totals: dict[str, Tensor] = {}
    if state is not None:
        restore(stage.model, state["model"], checkpoint)
        restore(average, state["average"], checkpoint)
        try:
            optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise SlimError(
                f"{checkpoint} trained other parts of the model: give the settings that it was made with "
                f"({stage.name}.train_...), or train into another out folder"
            ) from error
        first, bad, totals = state["step"], state["bad"], state["totals"]
        logger.info("%s goes on at step %d", stage.name, first)
    weights: dict[str, Tensor] = average.module.state_dict()
    if first >= options.steps:
        return weights

    shares, remaining = shares_of(accelerator, options), range(first, options.steps)
    batches = iter(
        torch.utils.data.DataLoader(
            Steps(stage.batches, shares), batch_size=None, sampler=remaining, num_workers=workers
        )
    )
    if state is None and accelerator.is_main_process:
        # a run that is killed and resumed must not take them for its own
        for old in (folder / f"{stage.name}.safetensors", *folder.glob(f"{stage.name}.pt*")):
            old.unlink(missing_ok=True)
    with TrainingLog(folder, stage.name, options, first, accelerator, totals) as log:
        for step in remaining:
            begun = time.monotonic()
            pieces = list(zip(next(batches), shares, strict=True))
            waited = time.monotonic() - begun
            factor = schedule(step, options.steps, options.warmup)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            terms = gradient_step(stage, pieces, step, options, accelerator)
            norm = torch.nn.utils.clip_grad_norm_(stage.model.parameters(), options.clip)
            # the norm is the same in all processes, so all of them skip the same steps
            if math.isfinite(float(norm)):
                optimizer.step()
                bad = 0
            else:
                bad += 1
            if bad >= PATIENCE:
                raise SlimError(
                    f"{stage.name}: the gradient was not finite at {bad} steps up to {step}; lower "
                    f"{stage.name}.optimisation.learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            average.update_parameters(stage.model)
            log.count_step(terms | {"gradient_norm": norm.detach().float()}, waited)
            if _due(step + 1, reports.log_every, options) and (reason := stage.failure(log.write(step + 1))):
                raise SlimError(f"{stage.name} stopped at step {step + 1}: {reason}")
            if _due(step + 1, reports.sample_every, options) and accelerator.is_main_process:
                log.write_sheet(step + 1, _samples(stage, options, accelerator))
            late = _due(step + 1, reports.log_every or 1, options) and out_of_time(deadline, accelerator)
            if late or _due(step + 1, reports.checkpoint_every, options):
                state = {
                    "model": stage.model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "totals": log.merged_totals(),
                    "bad": bad,
                    "about": dict(about or {}),
                }
                if accelerator.is_main_process:
                    save_tensors(state, checkpoint, reports.checkpoint_megabytes)
            if late and step + 1 < options.steps:
                raise OutOfTime(f"{stage.name} stopped at step {step + 1} of {options.steps}")
    accelerator.wait_for_everyone()
    return weights


class OutOfTime(Exception):
    """A run has used the time that it was given; its checkpoint is written."""


def out_of_time(deadline: float, accelerator: Accelerator) -> bool:
    """Whether the main process is past a deadline: all processes are told the same."""
    late = torch.tensor(float(accelerator.is_main_process and time.monotonic() > deadline))
    if accelerator.num_processes > 1 and deadline < math.inf:
        late = accelerator.reduce(late.to(accelerator.device), "sum")
    return bool(late > 0)


class Steps(torch.utils.data.Dataset[list[Any]]):
    """A process's pieces of the batch of every step."""

    def __init__(self, batches: Callable[..., Any], shares: Sequence[range]) -> None:
        self.batches, self.shares = batches, shares

    def __getitem__(self, step: int) -> list[Any]:
        return [self.batches(step, share) for share in self.shares]


def shares_of(accelerator: Accelerator, options: Optimisation) -> list[range]:
    """The numbers of the pictures of a batch in each piece that this process works on."""
    count = accelerator.num_processes * options.accumulate
    if options.batch % count:
        raise SlimError(
            f"optimisation.batch is {options.batch}: it cannot be divided among {accelerator.num_processes} "
            f"processes and optimisation.accumulate={options.accumulate}; make it a multiple of {count}"
        )
    size, first = options.batch // count, accelerator.process_index * options.accumulate
    return [range(piece * size, (piece + 1) * size) for piece in range(first, first + options.accumulate)]


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def gradient_step(
    stage: Stage[B],
    pieces: Sequence[tuple[B, range]],
    step: int,
    options: Optimisation,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Leaves the mean gradient of a step's batch in the parameters; returns this process's mean terms, ``loss`` among them.

    ``pieces``: parts of the batch, with their pictures' numbers in it.
    """
    means: dict[str, Tensor] = {}
    for batch, numbers in pieces:
        draws = Draws(options.seed, step, numbers, options.batch, accelerator.device)
        # what torch itself draws (dropout) is a function of the step as well
        torch.manual_seed(options.seed * 1_000_003 + step)
        with accelerator.autocast():
            loss, terms = stage.loss(send_to_device(batch, accelerator.device), draws, step / options.steps)
        accelerator.backward(loss / len(pieces))
        for name, value in (terms | {"loss": loss}).items():
            means[name] = means.get(name, 0.0) + value.detach().float() / len(pieces)
    if accelerator.num_processes > 1:
        # the mean over all processes, in one exchange
        gradients: list[Tensor] = []
        for parameter in stage.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        vector_to_parameters(accelerator.reduce(parameters_to_vector(gradients), "mean"), gradients)
    return means


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a model, beginning with its weights as they are; ``decay`` a step."""

    def update(averages: Any, values: Any, count: Any) -> None:
        steps = int(count)
        if averages[0].is_floating_point():
            # a short average at first, so that early weights are forgotten
            get_ema_multi_avg_fn(min(decay, steps / (steps + 9)))(averages, values, count)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    average.update_parameters(model)
    return average


def restore(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Loads weights that a stage left in ``path``; ``SlimError`` where they do not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise SlimError(
            f"{path} was made by another recipe or release of slimcodec: its tensors are not those that this one wants; give the "
            "settings that it was made with, or train into another out folder"
        ) from error


def _due(step: int, every: int, options: Optimisation) -> bool:
    return every > 0 and (step % every == 0 or step == options.steps)


@torch.no_grad()
def _samples(stage: Stage[Any], options: Optimisation, accelerator: Accelerator) -> list[list[Tile]]:
    """Columns of what the stage does to pictures of the first step, so that sheets of a run can be compared."""
    # at least four, where there are as many
    numbers, training = range(options.batch // max(1, options.batch // 4)), stage.model.training
    draws = Draws(options.seed, 0, numbers, options.batch, accelerator.device)
    stage.model.eval()
    with accelerator.autocast():
        columns = stage.samples(send_to_device(stage.batches(0, numbers), accelerator.device), draws)
    stage.model.train(training)
    return columns
