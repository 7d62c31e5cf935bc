"""The training loop: resuming is exact, batches may be divided, and a run that goes wrong stops with a reason."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from slimcodec import SlimError
from slimcodec.training.batches import Draws
from slimcodec.training.log import load_tensors, save_tensors
from slimcodec.training.loop import OutOfTime, Stage, schedule, train
from slimcodec.training.losses import rate_failure
from slimcodec.training.recipe import Optimisation, Reports, load_recipe
from slimcodec.training.run import Run


def counting(step: int, numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers)


class Line(Stage[Tensor]):
    """The smallest stage: fit a line to drawn points."""

    name = "line"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Linear = nn.Linear(3, 1)
        self.batches = counting
        self.fail_at: int | None = None
        self.excuse: str | None = None
        self.steps_seen: list[float] = []

    def loss(self, batch: Tensor, draws: Draws, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        self.steps_seen.append(progress)
        if self.fail_at is not None and len(self.steps_seen) > self.fail_at:
            raise KeyboardInterrupt
        x = draws.normal(3)
        error = (self.model(x) - x.sum(1, keepdim=True)).square().mean(1)
        chosen = draws.every(0.5)
        terms = {"first": error.detach()[chosen].mean()} if chosen.any() else {}
        return error.mean(), terms

    def failure(self, terms: dict[str, float]) -> str | None:
        return self.excuse


OPTIONS = Optimisation(steps=40, learning_rate=0.05, warmup=5)
REPORTS = Reports(log_every=8, checkpoint_every=10, sample_every=0)


def checkpoint(folder: Path) -> Any:
    return load_tensors(folder / "line.pt")


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "line.jsonl").read_text().splitlines()]
    # how long it took differs
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "images_per_second", "data_share")}
        for line in lines
    ]


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = train(Line(), tmp_path / "a", OPTIONS, REPORTS)
    broken = Line()
    broken.fail_at = 27
    with pytest.raises(KeyboardInterrupt):
        train(broken, tmp_path / "b", OPTIONS, REPORTS)
    # the killed process may have left half a line
    with (tmp_path / "b" / "line.jsonl").open("a") as file:
        file.write('{"loss": 0.')
    resumed = train(Line(), tmp_path / "b", OPTIONS, REPORTS, state=checkpoint(tmp_path / "b"))
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    # the checkpoint of step 20 lies between two lines of the log: both runs say the same of every step, once
    assert log(tmp_path / "a") == log(tmp_path / "b")
    lines = log(tmp_path / "a")
    assert [line["step"] for line in lines] == [8, 16, 24, 32, 40]
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert list((tmp_path / "b" / "tensorboard" / "line").iterdir())


def test_a_run_in_pieces_of_time_equals_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = train(Line(), tmp_path / "a", OPTIONS, REPORTS)
    steps = []
    for _ in range(4):
        with pytest.raises(OutOfTime, match="line stopped at step .* of 40") as stopped:
            train(Line(), tmp_path / "b", OPTIONS, REPORTS, state=checkpoint(tmp_path / "b"), deadline=0.0)
        steps.append(int(str(stopped.value).split()[4]))
    assert steps == [8, 16, 24, 32]
    # the last piece ends with the stage
    resumed = train(Line(), tmp_path / "b", OPTIONS, REPORTS, state=checkpoint(tmp_path / "b"), deadline=0.0)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert log(tmp_path / "a") == log(tmp_path / "b")


def test_a_checkpoint_in_parts_is_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "line.pt"
    assert load_tensors(path) is None
    save_tensors({"step": 1}, path)
    for step in (2, 3):
        save_tensors({"step": step, "x": torch.arange(600_000)}, path, 1)
        parts = sorted(tmp_path.glob("line.pt*"))
        assert [part.name for part in parts] == [f"line.pt.{step}-{number}-of-5" for number in range(5)]
        assert max(part.stat().st_size for part in parts) <= 1_000_000
    # a killed writer has left some parts of a newer one
    (tmp_path / "line.pt.4-0-of-5").write_bytes(b"half")
    state = load_tensors(path)
    assert state["step"] == 3 and torch.equal(state["x"], torch.arange(600_000))
    # a killed writer has left the parts that a newer file takes the place of
    torch.save({"step": 4}, path)
    assert load_tensors(path) == {"step": 4}
    save_tensors({"step": 5}, path)
    assert load_tensors(path) == {"step": 5} and [entry.name for entry in tmp_path.iterdir()] == ["line.pt"]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = train(Line(), tmp_path, OPTIONS, REPORTS)
    again = Line()
    weights = train(again, tmp_path, OPTIONS, REPORTS, state=checkpoint(tmp_path))
    assert not again.steps_seen and all(torch.equal(first[name], weights[name]) for name in first)


class Retrained(Line):
    name = "autoencoder"


def test_retraining_that_is_killed_leaves_nothing_of_the_weights_before(tmp_path: Path) -> None:
    settings = (f"out={tmp_path}", "device=cpu", "precision=no", "reports.checkpoint_every=4")
    recipe = load_recipe("smoke", (*settings, "autoencoder.optimisation.steps=8"))
    Run(recipe).train(Retrained(), '{"autoencoder": "before"}')
    resumed = Run(recipe, resume=True)
    assert resumed.is_finished("autoencoder")
    for fail_at, left in ((2, False), (6, True)):
        broken = Retrained()
        broken.fail_at = fail_at
        with pytest.raises(KeyboardInterrupt):
            Run(recipe).train(broken, '{"autoencoder": "after"}')
        # neither are the old weights finished, nor does the old checkpoint go on
        assert not resumed.is_finished("autoencoder") and resumed.has_begun("autoencoder") == left
        resumed.check_origin("autoencoder", '{"autoencoder": "after"}', resumed.checkpoint("autoencoder"))
    resumed.train(Retrained(), '{"autoencoder": "after"}', resumed.checkpoint("autoencoder"))
    assert resumed.is_finished("autoencoder")


def test_accumulation_gives_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    whole = train(Line(), tmp_path / "a", OPTIONS, REPORTS)
    pieces = train(Line(), tmp_path / "b", replace(OPTIONS, accumulate=4), REPORTS)
    assert all(torch.allclose(whole[name], pieces[name], atol=1e-5) for name in whole)
    with pytest.raises(SlimError, match="multiple of 3"):
        train(Line(), tmp_path / "c", replace(OPTIONS, accumulate=3), REPORTS)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=12)
    alone = train(Line(), tmp_path / "a", options, REPORTS)
    helped = train(Line(), tmp_path / "b", options, REPORTS, workers=2)
    assert all(torch.equal(alone[name], helped[name]) for name in alone)


LAUNCHED = """
import sys, torch
from pathlib import Path
from accelerate import Accelerator
sys.path.insert(0, {tests!r})
from test_loop import Line, OPTIONS, REPORTS, checkpoint
from slimcodec.training.loop import train
accelerator = Accelerator(cpu=True)
broken = Line()
broken.fail_at = 21
folder = Path({folder!r})
try:
    train(broken, folder, OPTIONS, REPORTS, accelerator)
except KeyboardInterrupt:
    weights = train(Line(), folder, OPTIONS, REPORTS, accelerator, state=checkpoint(folder))
if accelerator.is_main_process:
    torch.save([accelerator.num_processes, weights], folder / "weights.pt")
accelerator.wait_for_everyone()
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_average_the_gradients_of_the_whole_batch_and_resume(tmp_path: Path) -> None:
    script, folder = tmp_path / "two.py", tmp_path / "two"
    script.write_text(LAUNCHED.format(tests=str(Path(__file__).parent), folder=str(folder)))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    # with --cpu Accelerate starts several processes through MPI only; the script asks for the processor itself
    command += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run([*command, str(script)], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    processes, weights = torch.load(folder / "weights.pt", weights_only=True)
    assert processes == 2
    alone = train(Line(), tmp_path / "one", OPTIONS, REPORTS, Accelerator(cpu=True))
    assert all(torch.allclose(alone[name], weights[name], atol=1e-5) for name in alone)
    ours, theirs = log(tmp_path / "one"), log(folder)
    assert [line["step"] for line in theirs] == [line["step"] for line in ours]
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3, abs=1e-5)
        assert a["first"] == pytest.approx(b["first"], rel=1e-3, abs=1e-5)


def test_a_loss_that_stays_infinite_stops_the_run(tmp_path: Path) -> None:
    stage = Line()
    with torch.no_grad():
        stage.model.weight.fill_(float("nan"))
    with pytest.raises(SlimError, match=r"line.*lower line\.optimisation\.learning_rate"):
        train(stage, tmp_path, OPTIONS, REPORTS)


def test_what_a_stage_calls_a_failure_stops_the_run(tmp_path: Path) -> None:
    stage = Line()
    stage.excuse = "it rains"
    with pytest.raises(SlimError, match="line stopped at step 8: it rains"):
        train(stage, tmp_path, OPTIONS, REPORTS)
    assert "collapsed" in str(rate_failure(0.0)) and "grown" in str(rate_failure(30.0))
    assert rate_failure(0.1) is None


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [schedule(step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[9:])) and rates[-1] < 0.03
