"""A run of the benchmark: checks, then photo by photo coded, decoded from the bytes and judged; resumed where it stopped."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from slimcodec import __version__
from slimcodec.data.classifiers import load_classifier
from slimcodec.data.photos import Photo, Record
from slimcodec.data.sources import LabelledPhotos
from slimcodec.errors import SlimError
from slimcodec.evaluation.curves import IMAGENET_CLASSES, Curve, PictureCodec, SlimCodec
from slimcodec.evaluation.measures import (
    FIDELITY,
    TRUTH_SCORE,
    Boxes,
    Detector,
    load_lpips,
    matched,
    ms_ssim,
    psnr,
)
from slimcodec.evaluation.results import FORMAT, assemble, to_text
from slimcodec.files import atomic_write
from slimcodec.images import Pixels
from slimcodec.models.pretrained.hub import centre_square
from slimcodec.processes import Pool, progress, run_pool

#: what a codec is given and what a classifier sees, as docs/protocol.md describes it
PROTOCOLS = {
    "icm-256": "short side to 256 (antialiased bilinear), centre crop 256, codec, classifier on the whole 256x256 picture",
    "full": "codec on the photo in its original size; each classifier prepares its own centre square",
}
#: photos judged uncompressed before anything is coded, to find wrong labels
TRIAL_PHOTOS = 64
#: layout of a row in the file of a run that is not finished
ROWS = 2
Row = dict[str, Any]


def prepare(record: Record, protocol: str) -> Photo:
    """The photo of a record under a protocol: upright sRGB, resized and cropped, its mask with it."""
    photo = record.decode()
    if protocol == "full":
        return photo
    pixels = np.asarray(centre_square(Image.fromarray(photo.pixels), 256))
    mask = None if photo.mask is None else np.asarray(centre_square(Image.fromarray(photo.mask), 256))
    return replace(photo, pixels=pixels, mask=mask)


@dataclass(frozen=True)
class Setup:
    """All that decides what is measured of a photo; picklable, so that every process can build it."""

    curves: tuple[Curve, ...]
    classifiers: tuple[str, ...]
    protocol: str = "icm-256"
    detector: str | None = None
    lpips: str | None = None
    model: str | None = None
    device: str = "cpu"


class Worker:
    """Codecs and judges of a ``Setup``, loaded once in a process."""

    def __init__(self, setup: Setup) -> None:
        if setup.protocol not in PROTOCOLS:
            raise SlimError(f"{setup.protocol!r} is no protocol; take one of {', '.join(PROTOCOLS)}")
        self.setup = setup
        self.classifiers = [load_classifier(source, setup.protocol) for source in setup.classifiers]
        names = [classifier.name for classifier in self.classifiers]
        if len(set(names)) < len(names):
            raise SlimError(f"two classifiers are called {max(names, key=names.count)}; rename one's file")
        self.detector = Detector(setup.detector) if setup.detector else None
        self.lpips = load_lpips(setup.lpips) if setup.lpips else None
        self.codecs = [(curve, curve.codec(setup.model, setup.device)) for curve in setup.curves]

    def describe(self) -> dict[str, Any]:
        """Protocol, judges and curves, as a result states them."""
        return {
            "protocol": {"name": self.setup.protocol, "description": PROTOCOLS[self.setup.protocol]},
            "classifiers": [classifier.describe() for classifier in self.classifiers],
            "detector": self.detector.describe() if self.detector else None,
            "lpips": self.setup.lpips is not None,
            "curves": [asdict(curve) | codec.describe() for curve, codec in self.codecs],
        }

    def try_out(self) -> None:
        """Codes a small picture with every codec; ``SlimError`` names the one that fails."""
        ramp = np.linspace(0, 255, 64)
        row = np.stack([ramp, ramp[::-1], np.full(64, 90)], 1)
        photo = Photo(np.tile(row.astype(np.uint8), (48, 1, 1)), id="probe", class_index=0)
        for curve, codec in self.codecs:
            for quality in {min(curve.qualities), max(curve.qualities)}:
                _coded(curve, codec, photo, quality)

    def row(self, record: Record) -> Row:
        """All that is measured of a photo, JSON-ready; a pure function of setup and record but for milliseconds.

        ``guess`` and ``rank`` of each classifier on the uncompressed photo; ``points``: for every curve and quality bytes,
        the same of the decoded one, fidelity and times; ``caption``: the control without a picture, if SLIM is measured.
        """
        photo = prepare(record, self.setup.protocol)
        height, width = photo.pixels.shape[:2]
        truth = self.detector(photo.pixels).above(TRUTH_SCORE) if self.detector else None
        slim = next((codec for _, codec in self.codecs if isinstance(codec, SlimCodec)), None)
        return {
            "id": record.id,
            "label": record.class_index,
            "pixels": width * height,
            **self._judged(photo.pixels, photo),
            "objects": truth.classes.tolist() if truth else None,
            "caption": slim and slim.caption_alone(photo),
            "points": [
                [self._point(curve, codec, photo, quality, truth) for quality in curve.qualities]
                for curve, codec in self.codecs
            ],
        }

    def _judged(self, pixels: Pixels, photo: Photo) -> dict[str, list[int]]:
        judged = [classifier.judge(pixels, photo.class_index) for classifier in self.classifiers]
        return {"guess": [guess for guess, _ in judged], "rank": [rank for _, rank in judged]}

    def _point(
        self, curve: Curve, codec: PictureCodec, photo: Photo, quality: int, truth: Boxes | None
    ) -> dict[str, Any]:
        data, decoded, encode_ms, decode_ms = _coded(curve, codec, photo, quality)
        roi = None if photo.mask is None else photo.mask >= 0.5
        measured = {
            "psnr": psnr(photo.pixels, decoded),
            "psnr_roi": None if roi is None else psnr(photo.pixels, decoded, roi),
            "psnr_background": None if roi is None else psnr(photo.pixels, decoded, ~roi),
            "ms_ssim": ms_ssim(photo.pixels, decoded),
            "lpips": self.lpips(photo.pixels, decoded) if self.lpips else None,
        }
        slim = codec if isinstance(codec, SlimCodec) else None
        return {
            "bytes": len(data),
            **self._judged(decoded, photo),
            **(slim.parts(data, photo) if slim else {}),
            **{name: value and round(value, FIDELITY[name][2]) for name, value in measured.items()},
            "detections": matched(self.detector(decoded), truth) if self.detector and truth else None,
            "grey": None if slim else _grey_bytes(curve, quality, photo.pixels.shape),
            "encode_ms": encode_ms,
            "decode_ms": decode_ms,
        }


@cache
def _grey_bytes(curve: Curve, quality: int, shape: tuple[int, ...]) -> int | None:
    """Bytes that a peer spends on a flat grey picture [H, W, 3], its container; None where it refuses one."""
    try:
        return len(curve.codec().encode(Photo(np.full(shape, 128, np.uint8)), quality))
    except Exception:  # noqa: BLE001  any codec's error: of the photo nothing is lost
        return None


def _coded(
    curve: Curve, codec: PictureCodec, photo: Photo, quality: int
) -> tuple[bytes, Pixels, float, float]:
    """File, decoded picture, and milliseconds of both; an error says which curve and photo."""
    where = f"{curve.name} at quality {quality}, photo {photo.id}"
    try:
        start = time.perf_counter()
        data = codec.encode(photo, quality)
        between = time.perf_counter()
        decoded = codec.decode(data)
        end = time.perf_counter()
    except Exception as error:
        raise SlimError(f"{where}: {error}") from error
    if decoded.shape != photo.pixels.shape:
        raise SlimError(f"{where}: decoded to {decoded.shape}, it was {photo.pixels.shape}")
    return data, decoded, 1000 * (between - start), 1000 * (end - between)


def run(
    worker: Worker,
    samples: LabelledPhotos,
    out: Path,
    *,
    jobs: int = 1,
    command: str = "",
    report: Callable[[str], None] | None = None,
    pool: Pool | None = None,
) -> dict[str, Any]:
    """Measures every photo and writes the result to ``out``; returns it.

    Each process works with one thread, so that the result does not depend on ``jobs``, times apart. Finished photos are kept
    in ``<out>.partial`` until the end: the same run started again goes on from there. ``report`` takes lines about progress,
    ``pool`` the place of ``run_pool``. Raises ``SlimError`` for labels that cannot be right, for a photo that cannot be coded,
    and where ``<out>.partial`` is from another run.
    """
    check(worker, samples)
    described = worker.describe()
    kept = out.with_name(out.name + ".partial")
    labels = dict(zip(samples.ids, samples.labels, strict=True))
    done = {row["id"]: row for row in _finished(kept, described) if row["label"] == labels.get(row["id"])}
    todo = [number for number, id_ in enumerate(samples.ids) if id_ not in done]
    if done and report is not None:
        report(f"{len(done)} of {len(samples)} photos are done already")
    rows = list(done.values())
    here = jobs == 1 and pool is None
    setup = (lambda: worker.row) if here else partial(_row_function, worker.setup)
    pool = pool or partial(run_pool, jobs=jobs, one_thread=True)
    with (
        progress(len(samples), "photos", len(rows), report) as bar,
        open(kept, "a", encoding="utf-8") as file,
        closing(pool(setup, map(samples.read, todo))) as measured,
    ):
        for row in measured:
            if isinstance(row, SlimError):
                raise row
            # on the disk at once
            print(json.dumps(row, separators=(",", ":")), file=file, flush=True)
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
    atomic_write(out, (to_text(body) + "\n").encode())
    kept.unlink()
    return body


def _row_function(setup: Setup) -> Callable[[Record], Row]:
    return Worker(setup).row


def _finished(kept: Path, described: Mapping[str, Any]) -> Iterable[Row]:
    """The photos of a run that was stopped: a JSON line each after a line that says which run; a cut line is dropped."""
    head = json.dumps({"rows": ROWS, **described}, sort_keys=True)
    first, *lines = (kept.read_text(encoding="utf-8") if kept.exists() else f"{head}\n").split("\n")
    if first != head:
        raise SlimError(
            f"{kept} is from a run with other codecs or settings; finish that run or delete the file"
        )
    whole = lines[:-1]
    atomic_write(kept, "\n".join([head, *whole, ""]).encode())
    return map(json.loads, whole)


def check(worker: Worker, samples: LabelledPhotos) -> None:
    """Raises ``SlimError`` where labels do not fit the classifiers, before hours are spent."""
    wrong_captions = any(curve.control for curve in worker.setup.curves)
    for classifier in worker.classifiers:
        check_labels(samples, classifier.classes, classifier.name)
        if wrong_captions and classifier.classes != IMAGENET_CLASSES:
            raise SlimError(
                f"{classifier.name} has {classifier.classes} classes: the controls of SLIM's captions need the "
                f"{IMAGENET_CLASSES} of ImageNet-1k; run SLIM with --steps 0"
            )
    trial = min(TRIAL_PHOTOS, len(samples))
    photos = [prepare(samples.read(row), worker.setup.protocol) for row in range(trial)]
    for classifier in worker.classifiers:
        shifts = [classifier.judge(p.pixels, p.class_index)[0] - p.class_index for p in photos]
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
