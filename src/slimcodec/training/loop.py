"""The one training loop: every step is a function of the state and the step number, so a resumed run equals an unbroken one.

It runs unchanged in one process, on a GPU, and in many processes started by ``accelerate launch``: each works on its share of
every batch, and gradients are averaged.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from slimcodec.errors import SlimError
from slimcodec.training.draws import Draws, Share
from slimcodec.training.journal import Journal, save_atomic
from slimcodec.training.sheets import Tile, sheet

logger = logging.getLogger(__name__)

#: steps in a row without a finite loss after which a run stops
PATIENCE = 10


@dataclass(frozen=True)
class Optimisation:
    """Steps and rates that every stage has.

    ``batch`` is that of a step, over all processes; ``accumulate`` divides each process's part of it into that many pieces that
    are worked on one after another. ``crop`` is in pixels. The averaged weights forget with ``ema_decay`` a step.
    """

    steps: int = 1000
    batch: int = 16
    crop: int = 128
    learning_rate: float = 7e-4
    warmup: int = 150
    ema_decay: float = 0.998
    clip: float = 1.0
    accumulate: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Reports:
    """How often a run reports, in steps: a line of the log, a checkpoint, a sheet of sample pictures (0: none)."""

    log_every: int = 25
    checkpoint_every: int = 250
    sample_every: int = 1000


class Moving(Protocol):
    """A batch that can be moved to a device and knows its pictures' numbers in the step."""

    numbers: Sequence[int]

    def to(self, device: torch.device) -> Any:
        """The batch with its tensors on a device."""
        ...


class Batches(Protocol):
    """Batches by step and share: a pure function."""

    batch: int
    seed: int

    def __call__(self, step: int, share: Share = ...) -> Moving:
        """The pictures of a share of a step."""
        ...


class Stage(Protocol):
    """What a training stage tells the loop."""

    name: str
    batches: Any

    @property
    def model(self) -> nn.Module:
        """The modules that are trained, saved and averaged, in one container."""
        ...

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """Modules that are used but not trained."""
        ...

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW, each with its own ``lr``."""
        ...

    def loss(self, batch: Any, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a share and its terms by name; ``progress`` runs from 0 to 1 over the stage."""
        ...

    def trouble(self, terms: dict[str, float]) -> str | None:
        """Why the run should stop, seeing the mean terms of a log line; None while all is well."""
        ...

    def samples(self, batch: Any, draws: Draws) -> list[list[Tile]]:
        """Rows of pictures that show what the model does."""
        ...


class Steps(torch.utils.data.Dataset[list[Any]]):
    """A process's pieces of the batch of every step."""

    def __init__(self, batches: Batches, shares: Sequence[Share], steps: int) -> None:
        self.batches, self.shares, self.steps = batches, shares, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[Any]:
        return [self.batches(step, share) for share in self.shares]


def shares_of(accelerator: Accelerator, options: Optimisation) -> list[Share]:
    """The shares of a batch that this process works on, one a piece; ``SlimError`` where it cannot be divided evenly."""
    count = accelerator.num_processes * options.accumulate
    if options.batch % count:
        raise SlimError(
            f"optimisation.batch is {options.batch}: it cannot be divided among {accelerator.num_processes} "
            f"processes and optimisation.accumulate={options.accumulate}; make it a multiple of {count}"
        )
    first = accelerator.process_index * options.accumulate
    return [Share(first + piece, count) for piece in range(options.accumulate)]


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def average_gradients(model: nn.Module, accelerator: Accelerator) -> None:
    """Replaces every gradient by its mean over all processes, in one exchange."""
    if accelerator.num_processes == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat: Any = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def gradient_step(
    stage: Stage, pieces: Sequence[Any], step: int, progress: float, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Leaves the mean gradient of a step's batch in the parameters; returns this process's mean terms, ``loss`` among them."""
    terms: dict[str, Tensor] = {}
    for piece in pieces:
        moved = piece.to(accelerator.device)
        draws = Draws(stage.batches.seed, step, piece.numbers, stage.batches.batch, accelerator.device)
        # what torch itself draws (dropout) is a function of the step as well
        torch.manual_seed(stage.batches.seed * 1_000_003 + step)
        with accelerator.autocast():
            loss, found = stage.loss(moved, draws, progress)
        accelerator.backward(loss / len(pieces))
        for name, value in (found | {"loss": loss}).items():
            terms[name] = terms.get(name, 0.0) + value.detach().float() / len(pieces)
    average_gradients(stage.model, accelerator)
    return terms


def train(
    stage: Stage,
    folder: Path,
    options: Optimisation,
    reports: Reports | None = None,
    accelerator: Accelerator | None = None,
    *,
    workers: int = 0,
    resume: bool = False,
    about: dict[str, str] | None = None,
) -> dict[str, Tensor]:
    """Trains a stage and returns the averaged (EMA) weights.

    ``about`` gets an entry ``earlier`` where a run goes on that another revision of the program began.

    The run folder gets ``<stage>.jsonl`` (terms by name), ``<stage>.pt`` (checkpoint, with ``about`` inside), curves for
    TensorBoard and sheets of samples. ``workers``: processes that prepare batches, 0 = none beside the trainer.

    Stops with ``SlimError`` at a loss that is not finite for ten steps in a row, and for what the stage calls trouble; single bad
    steps are skipped.
    """
    reports = reports or Reports()
    accelerator = accelerator or Accelerator(cpu=True)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}.pt"
    for module in (stage.model, *stage.frozen):
        module.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        stage.parameter_groups(options.learning_rate), betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    base_rates = [group["lr"] for group in optimizer.param_groups]
    average = {name: value.detach().clone() for name, value in stage.model.state_dict().items()}
    first, bad = 0, 0
    totals: dict[str, Tensor] = {}
    if resume and checkpoint.exists():
        # several processes on processors have devices of names ("cpu:0") to which tensors cannot be mapped in reading
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        restore(stage.model, state["model"], checkpoint)
        average = {name: value.to(accelerator.device) for name, value in state["average"].items()}
        if state["optimizer"] is not None:  # None: weights of another run to start from
            try:
                optimizer.load_state_dict(state["optimizer"])
            except ValueError as error:
                raise SlimError(
                    f"{checkpoint} trained other parts of the model: give the settings that it was made with "
                    f"({stage.name}.train_...), or train into another out folder"
                ) from error
        first, bad = state["step"], state.get("bad", 0)
        if accelerator.is_main_process:  # these are the sums over all processes
            totals = {name: total.to(accelerator.device) for name, total in state.get("totals", {}).items()}
        if about is not None:
            about |= _history(state.get("about", {}), about.get("revision"), first)
        logger.info("%s goes on at step %d", stage.name, first)
    if first >= options.steps:
        return average

    shares = shares_of(accelerator, options)
    loader = torch.utils.data.DataLoader(
        Steps(stage.batches, shares, options.steps),
        batch_size=None,
        sampler=range(first, options.steps),
        num_workers=workers,
        persistent_workers=False,
    )
    journal = Journal(folder, stage.name, options.steps, first, accelerator.is_main_process)
    with journal:
        for step, pieces, waited in _timed(loader, first):
            factor = schedule(step, options.steps, options.warmup)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            terms = gradient_step(stage, pieces, step, step / options.steps, accelerator)
            norm = torch.nn.utils.clip_grad_norm_(stage.model.parameters(), options.clip)
            terms["gradient_norm"] = norm.detach().float()
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
            # a short average at first, so that early weights are forgotten
            decay = min(options.ema_decay, (step + 1) / (step + 10))
            for name, value in stage.model.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value.detach(), 1 - decay)
            for name, term in terms.items():
                # the sum of a term and how often it was there
                here = torch.stack([term, torch.ones_like(term)])
                totals[name] = totals[name] + here if name in totals else here
            journal.tick(step + 1, options.batch, waited)
            if (step + 1) % reports.log_every == 0 or step + 1 == options.steps:
                means, totals = _means(totals), {}
                journal.write(step + 1, means)
                if reason := stage.trouble(means):
                    raise SlimError(f"{stage.name} stopped at step {step + 1}: {reason}")
            if _due(step + 1, reports.sample_every, options.steps) and accelerator.is_main_process:
                _show(stage, folder, step + 1, accelerator, journal)
            if _due(step + 1, reports.checkpoint_every, options.steps):
                state = {
                    "model": stage.model.state_dict(),
                    "average": average,
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "totals": _merged(totals),
                    "bad": bad,
                    "about": about or {},
                }
                if accelerator.is_main_process:
                    save_atomic(state, checkpoint)
    accelerator.wait_for_everyone()
    return average


def restore(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Loads weights that a stage left in ``path``; ``SlimError`` where they do not fit, so that whoever mixed runs knows."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise SlimError(
            f"{path} was made by another recipe or release of slimcodec: its tensors are not those that this one wants; give the "
            "settings that it was made with, or train into another out folder"
        ) from error


def _history(before: dict[str, str], revision: str | None, step: int) -> dict[str, str]:
    """What earlier revisions of the program did of a run, if there were any: "REVISION to step 2000, ..."."""
    earlier = [before["earlier"]] if "earlier" in before else []
    if before.get("revision", revision) != revision:
        earlier.append(f"{before['revision']} to step {step}")
    return {"earlier": ", ".join(earlier)} if earlier else {}


def _means(totals: dict[str, Tensor]) -> dict[str, float]:
    """Mean terms over all processes."""
    return {name: float(total[0] / total[1]) for name, total in _merged(totals).items()}


def _merged(totals: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over all processes, each of which may know other terms."""
    merged: dict[str, Tensor] = {}
    for found in gather_object([{name: total.cpu() for name, total in totals.items()}]):
        for name, total in found.items():
            merged[name] = merged.get(name, torch.zeros(2)) + total
    return merged


def _due(step: int, every: int, steps: int) -> bool:
    return every > 0 and (step % every == 0 or step == steps)


def _timed(loader: Any, first: int) -> Iterator[tuple[int, list[Any], float]]:
    """Steps with their batches and the seconds that were spent waiting for each."""
    batches = iter(loader)
    step = first
    while True:
        begun = time.monotonic()
        try:
            pieces = next(batches)
        except StopIteration:
            return
        yield step, pieces, time.monotonic() - begun
        step += 1


@torch.no_grad()
def _show(stage: Stage, folder: Path, step: int, accelerator: Accelerator, journal: Journal) -> None:
    # the pictures of the first step, so that sheets of a run can be compared
    batch = stage.batches(0, Share(0, max(1, stage.batches.batch // 4)))
    draws = Draws(stage.batches.seed, 0, batch.numbers, stage.batches.batch, accelerator.device)
    training = stage.model.training
    stage.model.eval()
    with accelerator.autocast():
        rows = stage.samples(batch.to(accelerator.device), draws)
    stage.model.train(training)
    if rows:
        (folder / "samples").mkdir(exist_ok=True)
        picture = sheet(rows)
        picture.save(folder / "samples" / f"{stage.name}-{step:06d}.png")
        journal.picture(step, picture)
