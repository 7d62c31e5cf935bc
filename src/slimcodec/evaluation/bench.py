"""A run of the benchmark: checks first, then photo by photo in one process or several, resumed where it stopped."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slimcodec import __version__
from slimcodec.data.photos import Record
from slimcodec.data.sources import LabelledPhotos
from slimcodec.errors import SlimError
from slimcodec.evaluation.curves import IMAGENET_CLASSES
from slimcodec.evaluation.results import FORMAT, assemble, from_json, to_text
from slimcodec.evaluation.summary import ENDS, RESAMPLES, SEED, Interval, summarise
from slimcodec.evaluation.worker import Setup, Worker, prepare
from slimcodec.files import atomic_write
from slimcodec.processes import progress, run_pool

#: photos judged uncompressed before anything is coded, to find wrong labels
TRIAL_PHOTOS = 64
Row = dict[str, Any]


def run(
    worker: Worker,
    samples: LabelledPhotos,
    out: Path,
    *,
    jobs: int = 1,
    command: str = "",
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measures every photo and writes the result to ``out``; returns it.

    Each process works with one thread, so that the result does not depend on ``jobs``, times apart. Finished photos are kept
    in ``<out>.partial`` until the end: the same run started again goes on from there. ``report`` takes lines about progress.

    Raises ``SlimError`` for labels that cannot be right, for a photo that cannot be coded, and where ``<out>.partial`` is from
    another run.
    """
    check(worker, samples)
    described = worker.describe()
    partial_file = Partial(out, described)
    labels = dict(zip(samples.ids, samples.labels, strict=True))
    done = {id_: row for id_, row in partial_file.read().items() if row["label"] == labels.get(id_)}
    todo = [number for number, id_ in enumerate(samples.ids) if id_ not in done]
    if done and report is not None:
        report(f"{len(done)} of {len(samples)} photos are done already")
    rows = [done[id_] for id_ in samples.ids if id_ in done]
    setup = partial(_row_function, worker.setup) if jobs > 1 else lambda: worker.row
    records = (samples.read(number) for number in todo)
    with (
        progress(len(samples), "photos", len(rows), report) as bar,
        closing(run_pool(setup, records, jobs, one_thread=True)) as measured,
    ):
        for row in measured:
            if isinstance(row, SlimError):
                raise row
            partial_file.add(row)
            rows.append(row)
            bar.advance()
    provenance = {
        "command": command,
        "slimcodec": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": 1,
    }
    dataset = {"name": samples.name, "sha256": samples.fingerprint, "photos": len(samples)}
    body = assemble({"format": FORMAT, "made": provenance, "dataset": dataset, **described}, rows)
    _add_summaries(body)
    atomic_write(out, (to_text(body) + "\n").encode())
    partial_file.path.unlink()
    return body


def _row_function(setup: Setup) -> Callable[[Record], Row]:
    return Worker(setup).row


def _add_summaries(body: dict[str, Any]) -> None:
    """Writes the mean and interval of every measure into a result."""
    summary = summarise(from_json(body))
    body["bootstrap"] = {"resamples": RESAMPLES, "seed": SEED, "interval_percent": list(ENDS)}
    body["uncompressed"] = _stored(summary.uncompressed)
    for curve in body["curves"]:
        for point in curve["points"]:
            point["summary"] = _stored(summary.points[curve["name"], point["quality"]])


def _stored(intervals: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Intervals to six digits; mAP, a number of all photos together, is stored without one."""
    stored: dict[str, Any] = {
        name: interval and [float(f"{value:.6g}") for value in interval]
        for name, interval in intervals.items()
    }
    if stored.get("map50"):
        stored["map50"] = stored["map50"][0]
    return stored


def check(worker: Worker, samples: LabelledPhotos) -> None:
    """Raises ``SlimError`` where labels do not fit the classifiers, before hours are spent."""
    for classifier in worker.classifiers:
        check_labels(samples, classifier.classes, classifier.name)
        wrong_captions = any(curve.control for curve in worker.setup.curves)
        if wrong_captions and classifier.classes != IMAGENET_CLASSES:
            raise SlimError(
                f"{classifier.name} has {classifier.classes} classes: the controls of SLIM's captions need the "
                f"{IMAGENET_CLASSES} of ImageNet-1k; run SLIM with --steps 0"
            )
    trial = min(TRIAL_PHOTOS, len(samples))
    photos = [prepare(samples.read(row), worker.setup.protocol) for row in range(trial)]
    for classifier in worker.classifiers:
        shifts = [
            classifier.judge(photo.pixels, photo.class_index)[0] - photo.class_index for photo in photos
        ]
        right, below, above = (shifts.count(shift) for shift in (0, -1, 1))
        shifted = max(below, above)
        if shifted >= 5 and shifted > 3 * right:
            raise SlimError(
                f"{classifier.name} names {shifted} of the first {trial} photos by the class {'before' if below > above else 'after'} "
                f"their label and {right} by their label: labels begin at 0, shift them by one"
            )
        if trial == TRIAL_PHOTOS and right * classifier.classes <= trial:
            raise SlimError(
                f"{classifier.name} names {right} of the first {trial} photos rightly, no better than chance: labels and "
                "classifier do not belong together (another order of classes?)"
            )


def check_labels(samples: LabelledPhotos, classes: int, judge: str) -> None:
    """Raises ``SlimError`` where a label is outside 0..``classes`` - 1, the outputs of the classifier ``judge``."""
    wrong = [row for row, label in enumerate(samples.labels) if not 0 <= label < classes]
    if wrong:
        raise SlimError(
            f"{len(wrong)} of {len(samples)} labels are outside 0..{classes - 1}, the classes of {judge}: the first is "
            f"{samples.labels[wrong[0]]} in row {wrong[0]}; give the labels that this classifier was trained with"
        )


class Partial:
    """Finished photos of a run that is not: ``<out>.partial``, a JSON line each after a line that says which run."""

    def __init__(self, out: Path, described: Mapping[str, Any]) -> None:
        self.path = out.with_name(out.name + ".partial")
        self._head = json.dumps(described, sort_keys=True)

    def read(self) -> dict[str, Row]:
        """The photos by id; a line cut off by a crash is dropped. ``SlimError`` where another run wrote the file."""
        if not self.path.exists():
            self.path.write_text(self._head + "\n", encoding="utf-8")
            return {}
        text = self.path.read_text(encoding="utf-8")
        head, _, body = text.partition("\n")
        if head != self._head:
            raise SlimError(
                f"{self.path} is from a run with other codecs, classifiers or settings; finish that run, or delete the file"
            )
        whole = body[: body.rfind("\n") + 1]
        if whole != body:
            atomic_write(self.path, f"{head}\n{whole}".encode())
        return {row["id"]: row for row in map(json.loads, whole.splitlines())}

    def add(self, row: Row) -> None:
        """Keeps a photo, on the disk at once."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
