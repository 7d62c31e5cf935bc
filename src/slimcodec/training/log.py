"""What a stage writes while it trains: a JSON-lines log, curves for TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from slimcodec.files import atomic_write
from slimcodec.processes import progress

logger = logging.getLogger(__name__)


class TrainingLog(ExitStack):
    """The log of a stage, in the main process alone; lines beyond the step at which a run goes on are dropped."""

    def __init__(self, folder: Path, stage: str, steps: int, first: int, writes: bool) -> None:
        super().__init__()
        self._stage, self._steps, self._first, self._writes = stage, steps, first, writes
        self._pictures, self._waited, self._before, self._note = 0, 0.0, 0.0, ""
        self._begun = self._last = time.monotonic()
        if not writes:
            return
        path = folder / f"{stage}.jsonl"
        lines = path.read_text().splitlines() if first and path.exists() else []
        kept = [line for line in map(_parsed, lines) if line is not None and line["step"] <= first]
        self._before = kept[-1]["seconds"] if kept else 0.0
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self.enter_context(path.open("a"))
        self._bar = self.enter_context(progress(steps, stage, first))
        self._board = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=first)
        self.callback(self._board.close)

    def count_step(self, pictures: int, waited: float) -> None:
        """Counts a step of ``pictures`` that waited so many seconds for its batch."""
        self._pictures += pictures
        self._waited += waited
        if self._writes:
            self._bar.advance(self._note)

    def write(self, step: int, means: dict[str, float]) -> None:
        """Writes the mean terms of the steps since the last line, with throughput and share of time spent on data."""
        pictures, waited = self._pictures, self._waited
        self._pictures, self._waited = 0, 0.0
        if not self._writes:
            return
        now = time.monotonic()
        spent, self._last = max(now - self._last, 1e-9), now
        line: dict[str, float] = {name: round(value, 6) for name, value in means.items()}
        line |= {
            "images_per_second": round(pictures / spent, 2),
            "data_share": round(waited / spent, 4),
            "step": step,
            "seconds": round(self._before + now - self._begun, 1),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in line.items():
            self._board.add_scalar(name, value, step)
        self._note = f"loss {means.get('loss', float('nan')):.4g}"
        if not self._bar.shown:
            left = (now - self._begun) / (step - self._first) * (self._steps - step) / 60
            logger.info("%s %s, about %.0f min left", self._stage, json.dumps(line), left)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Shows a sheet of samples on TensorBoard; to be called in the main process alone."""
        self._board.add_image("samples", np.asarray(picture), step, dataformats="HWC")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(line)
        return values
    except ValueError:  # the last line of a killed run may be half a line
        return None
