"""The one training loop: every step is a function of the state and the step number, so a resumed run equals an unbroken one."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from slimcodec.errors import SlimError

logger = logging.getLogger(__name__)


class Stage(Protocol):
    """What a training stage tells the loop."""

    name: str

    @property
    def model(self) -> nn.Module:
        """The modules that are trained, saved and averaged, in one container."""
        ...

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW, each with its own ``lr``."""
        ...

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step and its terms by name; ``progress`` runs from 0 to 1 over the stage."""
        ...


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def save_atomic(state: Any, path: Path) -> None:
    """Writes a checkpoint under a temporary name and renames it, so that a kill leaves the old one whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(
    stage: Stage,
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    warmup: int = 150,
    clip: float = 1.0,
    ema_decay: float = 0.998,
    checkpoint_every: int = 250,
    log_every: int = 25,
    seed: int = 0,
    precision: str = "bf16",
    resume: bool = False,
) -> dict[str, Tensor]:
    """Trains a stage and returns the averaged (EMA) weights; the run folder gets ``<stage>.jsonl`` and ``<stage>.pt``.

    Stops with ``SlimError`` at a loss that is not finite for ten steps in a row; single bad steps are skipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}.pt"
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    stage.model.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        stage.parameter_groups(learning_rate), betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    base_rates = [group["lr"] for group in optimizer.param_groups]
    optimizer = accelerator.prepare(optimizer)
    average = {name: value.detach().clone() for name, value in stage.model.state_dict().items()}
    first = 0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=accelerator.device, weights_only=True)
        stage.model.load_state_dict(state["model"])
        average = state["average"]
        if state["optimizer"] is not None:  # None: weights of another run to start from
            optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        logger.info("%s goes on at step %d", stage.name, first)

    log = (folder / f"{stage.name}.jsonl").open("a" if first else "w")
    totals: dict[str, float] = {}
    bad, started = 0, time.monotonic()
    for step in range(first, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        factor = schedule(step, steps, warmup)
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        with accelerator.autocast():
            loss, terms = stage.loss(step, step / steps)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(stage.model.parameters(), clip)
        if torch.isfinite(loss) and math.isfinite(float(norm)):
            optimizer.step()
            bad = 0
        else:
            bad += 1
            if bad >= 10:
                raise SlimError(
                    f"{stage.name}: the loss was not finite at ten steps up to {step}; lower the learning rate"
                )
        optimizer.zero_grad(set_to_none=True)
        # a short average at first, so that early weights are forgotten
        decay = min(ema_decay, (step + 1) / (step + 10))
        for name, value in stage.model.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value.detach(), 1 - decay)

        for name, term in (terms | {"loss": float(loss.detach()), "gradient_norm": float(norm)}).items():
            totals[name] = totals.get(name, 0.0) + term
        if (step + 1) % log_every == 0:
            record: dict[str, Any] = {name: round(total / log_every, 6) for name, total in totals.items()}
            elapsed = time.monotonic() - started
            record |= {"step": step + 1, "seconds": round(elapsed, 1)}
            log.write(json.dumps(record) + "\n")
            log.flush()
            remaining = elapsed / (step + 1 - first) * (steps - step - 1)
            logger.info("%s, about %.0f min left", json.dumps(record), remaining / 60)
            totals = {}
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            state = {
                "model": stage.model.state_dict(),
                "average": average,
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            save_atomic(state, checkpoint)
    log.close()
    return average
