"""A run of the benchmark: checks first, then photo by photo in one process or several, taken up again where it stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import signal
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from slimcodec import __version__
from slimcodec.data.photos import Record
from slimcodec.data.sources import LabelledPhotos
from slimcodec.errors import SlimError
from slimcodec.evaluation.results import FORMAT, assemble, to_text
from slimcodec.evaluation.slim_curves import IMAGENET_CLASSES
from slimcodec.evaluation.worker import Setup, Worker
from slimcodec.files import atomic_write
from slimcodec.processes import end_with_parent

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
    started: Callable[[int, int], None] = lambda done, total: None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measures every photo and writes the result to ``out``; returns it.

    Each process works with one thread, so that the result does not depend on ``jobs``, times apart. Finished photos are kept
    in ``<out>.partial`` until the end: the same run started again goes on from there. ``started`` is told how many photos
    were found there and how many there are in all, ``advance`` is called after each other one.

    Raises ``SlimError`` for labels that cannot be right, for a photo that cannot be coded, and where ``<out>.partial`` is from
    another run.
    """
    check(worker, samples)
    described = worker.describe()
    partial = Partial(out, described)
    kept = {id_: row for id_, row in partial.read().items() if row["label"] == _labels(samples).get(id_)}
    todo = [row for row, id_ in enumerate(samples.ids) if id_ not in kept]
    started(len(samples) - len(todo), len(samples))
    rows = [kept[id_] for id_ in samples.ids if id_ in kept]
    with closing(_rows(worker, samples, todo, jobs)) as measured:
        for row in measured:
            partial.add(row)
            rows.append(row)
            advance()
    body = assemble(
        {
            "format": FORMAT,
            "made": {
                "command": command,
                "slimcodec": __version__,
                "torch": torch.__version__,
                "machine": platform.machine(),
                "threads": 1,
            },
            "dataset": {"name": samples.name, "sha256": samples.fingerprint, "photos": len(samples)},
            **described,
        },
        rows,
    )
    atomic_write(out, to_text(body).encode())
    partial.path.unlink()
    return body


def check(worker: Worker, samples: LabelledPhotos) -> None:
    """Raises ``SlimError`` where labels do not fit the classifiers, before hours are spent."""
    for classifier in worker.classifiers:
        check_labels(samples, classifier.classes, classifier.name)
        wrong = any(curve.slim and curve.slim.caption == "wrong" for curve in worker.setup.curves)
        if wrong and classifier.classes != IMAGENET_CLASSES:
            raise SlimError(
                f"{classifier.name} has {classifier.classes} classes: the controls of SLIM's captions need the "
                f"{IMAGENET_CLASSES} of ImageNet-1k; run SLIM with --steps 0"
            )
    trial = min(TRIAL_PHOTOS, len(samples))
    photos = [worker.photo(samples.read(row)) for row in range(trial)]
    for classifier in worker.classifiers:
        guesses = [classifier.judge(photo.pixels, photo.class_index)[0] for photo in photos]
        right, below, above = (
            sum(guess == photo.class_index + shift for guess, photo in zip(guesses, photos, strict=True))
            for shift in (0, -1, 1)
        )
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


def _labels(samples: LabelledPhotos) -> dict[str, int]:
    return dict(zip(samples.ids, samples.labels, strict=True))


def _rows(
    worker: Worker, samples: LabelledPhotos, todo: Sequence[int], jobs: int
) -> Generator[Row, None, None]:
    processes = min(jobs, len(todo))
    if processes <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from (worker.row(samples.read(row)) for row in todo)
        finally:
            torch.set_num_threads(threads)
        return
    # Spawned and not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(worker.setup,)) as pool:
        waiting: deque[Future[Row]] = deque()
        remaining = iter(todo)
        try:
            while True:
                # A few photos ahead and not all: the encoded bytes of a large data set need not fit in memory.
                while len(waiting) < 3 * processes and (row := next(remaining, None)) is not None:
                    waiting.append(pool.submit(_measure, samples.read(row)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise SlimError(
                "a worker process died, perhaps out of memory; start the same command again with fewer --jobs"
            ) from error
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


_worker: Worker | None = None


def _start(setup: Setup) -> None:
    global _worker
    end_with_parent()
    # Ctrl-C reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    _worker = Worker(setup)


def _measure(sample: Record) -> Row:
    assert _worker is not None
    return _worker.row(sample)
