"""What a stage writes while it trains: a JSON-lines log, curves for TensorBoard, sheets of samples, and checkpoints."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from slimcodec.data.contact_sheet import Tile, contact_sheet
from slimcodec.files import atomic_open, atomic_write
from slimcodec.processes import progress
from slimcodec.training.recipe import Optimisation

logger = logging.getLogger(__name__)

#: what a part of a checkpoint adds to its name: the step, its number, and how many there are
PART = re.compile(r"\.(\d+)-(\d+)-of-(\d+)")


class TrainingLog(ExitStack):
    """The log of a stage; the main process alone writes."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        options: Optimisation,
        first: int,
        accelerator: Accelerator,
        totals: dict[str, Tensor],
    ) -> None:
        """Drops lines beyond step ``first``; ``totals``: sum and count of each term since the last line, over all processes."""
        super().__init__()
        self.folder, self.stage, self.options, self.accelerator = folder, stage, options, accelerator
        self.first = self.last_step = first
        self.begun = self.last = time.monotonic()
        self.waited, self.note = 0.0, ""
        self.totals: dict[str, Tensor] = {}
        if not accelerator.is_main_process:
            return
        self.totals = {name: total.to(accelerator.device) for name, total in totals.items()}
        path = folder / f"{stage}.jsonl"
        lines = path.read_text().splitlines() if first and path.exists() else []
        kept = [line for line in map(_parsed, lines) if line is not None and line["step"] <= first]
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.file = self.enter_context(path.open("a"))
        self.bar = self.enter_context(progress(options.steps, stage, first))
        self.board = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=first)
        self.callback(self.board.close)

    def count_step(self, terms: dict[str, Tensor], waited: float) -> None:
        """Adds a step's terms; ``waited`` seconds went by until its batch was there."""
        for name, term in terms.items():
            self.totals[name] = self.totals.get(name, 0.0) + torch.stack([term, torch.ones_like(term)])
        self.waited += waited
        if self.accelerator.is_main_process:
            self.bar.advance(self.note)

    def merged_totals(self) -> dict[str, Tensor]:
        """Sum and count [2] of each term over all processes, each of which may know other terms."""
        merged: dict[str, Tensor] = {}
        for part in gather_object([{name: total.cpu() for name, total in self.totals.items()}]):
            for name, total in part.items():
                merged[name] = merged.get(name, torch.zeros(2)) + total
        return merged

    def write(self, step: int) -> dict[str, float]:
        """Writes and returns the mean terms since the last line, with throughput and the share of time spent on data."""
        means = {name: float(total / count) for name, (total, count) in self.merged_totals().items()}
        now = time.monotonic()
        spent, pictures = max(now - self.last, 1e-9), (step - self.last_step) * self.options.batch
        line = {name: round(value, 6) for name, value in means.items()} | {
            "images_per_second": round(pictures / spent, 2),
            "data_share": round(self.waited / spent, 4),
            "step": step,
        }
        self.totals, self.waited, self.last, self.last_step = {}, 0.0, now, step
        if self.accelerator.is_main_process:
            line["seconds"] = round(self.seconds_before + now - self.begun, 1)
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            for name, value in line.items():
                self.board.add_scalar(name, value, step)
            self.note = f"loss {means['loss']:.4g}"
            if not self.bar.shown:
                left = (now - self.begun) / (step - self.first) * (self.options.steps - step) / 60
                logger.info("%s %s, about %.0f min left", self.stage, json.dumps(line), left)
        return means

    def write_sheet(self, step: int, columns: list[list[Tile]]) -> None:
        """Writes a contact sheet to the run folder and TensorBoard; to be called in the main process alone."""
        if columns:
            sheet = contact_sheet(list(zip(*columns, strict=True)))
            (self.folder / "samples").mkdir(exist_ok=True)
            sheet.save(self.folder / "samples" / f"{self.stage}-{step:06d}.png")
            self.board.add_image("samples", np.asarray(sheet), step, dataformats="HWC")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # the last line of a killed run may be half a line
        return None


# ---- checkpoints: one file, or several of a bounded size -------------------------------------------------------


def save_tensors(state: dict[str, Any], path: Path, megabytes: int = 0) -> None:
    """``torch.save`` of a state with its ``step`` that leaves the old file whole when it is killed.

    ``megabytes``: writes parts of at most so many, ``path`` with ``PART`` behind it; older ones go when the last is written.
    """
    if not megabytes:
        with atomic_open(path) as file:
            torch.save(state, file)
        written = {path}
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content, size = buffer.getbuffer(), megabytes * 1_000_000
        step, count = state["step"], -(-len(content) // size)
        places = [path.with_name(f"{path.name}.{step}-{number}-of-{count}") for number in range(count)]
        for number, place in enumerate(places):
            atomic_write(place, bytes(content[number * size : (number + 1) * size]))
        written = set(places)
    for old in {path, *path.parent.glob(f"{path.name}.*")} - written:
        if old == path or PART.fullmatch(old.name.removeprefix(path.name)):
            old.unlink(missing_ok=True)


def load_tensors(path: Path) -> Any:
    """What ``save_tensors`` wrote last, on the processor; None where there is nothing whole."""
    found: dict[tuple[int, int], list[Path]] = {}
    for part in path.parent.glob(f"{path.name}.*"):
        if match := PART.fullmatch(part.name.removeprefix(path.name)):
            step, _, count = map(int, match.groups())
            found.setdefault((step, count), []).append(part)
    whole = [key for key, parts in found.items() if len(parts) == key[1]]
    # several processes on processors have devices of names ("cpu:0") to which tensors cannot be mapped in reading
    read = partial(torch.load, map_location="cpu", weights_only=True)
    states = [read(path)] if path.exists() else []
    if whole:
        step, count = max(whole)
        places = (path.with_name(f"{path.name}.{step}-{number}-of-{count}") for number in range(count))
        states.append(read(io.BytesIO(b"".join(place.read_bytes() for place in places))))
    # a killed writer leaves the older of the two
    return max(states, key=lambda state: state["step"], default=None)
