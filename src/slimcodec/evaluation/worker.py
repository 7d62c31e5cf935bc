"""What happens to one photo: coded by every curve at every quality, decoded from the bytes, judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from slimcodec.data.classifiers import centre_square, load_classifier
from slimcodec.data.photos import Photo, Record
from slimcodec.errors import SlimError
from slimcodec.evaluation.curves import Curve, SlimCodec, caption_alone, class_names, shared_codec
from slimcodec.evaluation.measures import TRUTH_SCORE, Boxes, Detector, load_lpips, matched, ms_ssim, psnr
from slimcodec.evaluation.peers import PictureCodec
from slimcodec.images import Pixels

#: what a codec is given and what a classifier sees, as docs/protocol.md describes it
PROTOCOLS = {
    "icm-256": "short side to 256 (antialiased bilinear), centre crop 256, codec, classifier on the whole 256x256 picture",
    "full": "codec on the photo in its original size; each classifier prepares its own centre square",
}


def prepare(record: Record, protocol: str) -> Photo:
    """The photo of a record under a protocol: upright sRGB, resized and cropped, its mask with it.

    Raises ``ImageError`` for a photo that cannot be read.
    """
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
        self.codecs = [curve.codec(setup.model, setup.device) for curve in setup.curves]
        self._grey: dict[tuple[str, int, tuple[int, ...]], int | None] = {}

    def describe(self) -> dict[str, Any]:
        """Protocol, judges and curves, as a result states them."""
        return {
            "protocol": {"name": self.setup.protocol, "description": PROTOCOLS[self.setup.protocol]},
            "classifiers": [classifier.describe() for classifier in self.classifiers],
            "detector": self.detector.describe() if self.detector else None,
            "lpips": self.setup.lpips is not None,
            "curves": [
                {
                    "name": curve.name,
                    "qualities": list(curve.qualities),
                    "template": curve.template,
                    "slim": asdict(curve.slim) if curve.slim else None,
                    **codec.describe(),
                }
                for curve, codec in zip(self.setup.curves, self.codecs, strict=True)
            ],
        }

    def try_out(self) -> None:
        """Codes a small picture with every codec; ``SlimError`` names the one that fails."""
        ramp = np.linspace(0, 255, 64).astype(np.uint8)
        pixels = np.stack([np.tile(ramp, (48, 1)), np.tile(ramp[::-1], (48, 1)), np.full((48, 64), 90)], 2)
        photo = Photo(np.ascontiguousarray(pixels, dtype=np.uint8), id="probe", class_index=0)
        for curve, codec in zip(self.setup.curves, self.codecs, strict=True):
            for quality in {min(curve.qualities), max(curve.qualities)}:
                _coded(curve, codec, photo, quality)

    def row(self, record: Record) -> dict[str, Any]:
        """All that is measured of a photo, JSON-ready; a pure function of setup and record but for milliseconds.

        ``reference`` [guess, rank] of each classifier on the uncompressed photo; ``points``: for every curve and quality
        bytes, judgements, fidelity and times; ``caption``: the control without a picture, where SLIM is among the codecs.
        """
        photo = prepare(record, self.setup.protocol)
        height, width = photo.pixels.shape[:2]
        truth = self.detector(photo.pixels).above(TRUTH_SCORE) if self.detector else None
        row: dict[str, Any] = {
            "id": record.id,
            "label": record.class_index,
            "pixels": width * height,
            "reference": [list(c.judge(photo.pixels, photo.class_index)) for c in self.classifiers],
        }
        if truth is not None:
            row["objects"] = truth.classes.tolist()
        if any(curve.slim for curve in self.setup.curves):
            codec = shared_codec(self.setup.model, self.setup.device)
            if class_names(codec.bundle.vocabulary):
                row["caption"] = caption_alone(codec, photo)
        row["points"] = [
            [self._point(curve, codec, photo, quality, truth) for quality in curve.qualities]
            for curve, codec in zip(self.setup.curves, self.codecs, strict=True)
        ]
        return row

    def _point(
        self, curve: Curve, codec: PictureCodec, photo: Photo, quality: int, truth: Boxes | None
    ) -> dict[str, Any]:
        data, decoded, encode_ms, decode_ms = _coded(curve, codec, photo, quality)
        point: dict[str, Any] = {
            "bytes": len(data),
            "judged": [list(c.judge(decoded, photo.class_index)) for c in self.classifiers],
            "psnr": _rounded(psnr(photo.pixels, decoded), 3),
            "ms_ssim": _rounded(ms_ssim(photo.pixels, decoded), 5),
            "encode_ms": round(encode_ms, 2),
            "decode_ms": round(decode_ms, 2),
        }
        if isinstance(codec, SlimCodec):
            point |= codec.parts(data)
            drawn = codec.drawn(photo)
            point |= {} if drawn is None else {"drawn": drawn}
        else:
            point["grey"] = self._grey_bytes(curve, codec, photo, quality)
        if photo.mask is not None:
            roi = photo.mask >= 0.5
            point["psnr_roi"] = _rounded(psnr(photo.pixels, decoded, roi), 3)
            point["psnr_background"] = _rounded(psnr(photo.pixels, decoded, ~roi), 3)
        if self.lpips is not None:
            point["lpips"] = _rounded(self.lpips(photo.pixels, decoded), 5)
        if self.detector is not None and truth is not None:
            point["detections"] = matched(self.detector(decoded), truth)
        return point

    def _grey_bytes(self, curve: Curve, codec: PictureCodec, photo: Photo, quality: int) -> int | None:
        """Bytes that the codec spends on a flat grey picture of the photo's size, its container; None where it refuses one."""
        key = (curve.name, quality, photo.pixels.shape)
        if key not in self._grey:
            try:
                self._grey[key] = len(codec.encode(Photo(np.full_like(photo.pixels, 128)), quality))
            except Exception:  # noqa: BLE001  any codec's error: of the photo nothing is lost
                self._grey[key] = None
        return self._grey[key]


def _coded(
    curve: Curve, codec: PictureCodec, photo: Photo, quality: int
) -> tuple[bytes, Pixels, float, float]:
    """File, decoded picture, and milliseconds of both; an error says which curve and photo."""
    try:
        data, encode_ms = _timed(lambda: codec.encode(photo, quality))
        decoded, decode_ms = _timed(lambda: codec.decode(data))
    except Exception as error:
        raise SlimError(f"{curve.name} at quality {quality}, photo {photo.id}: {error}") from error
    if decoded.shape != photo.pixels.shape:
        raise SlimError(
            f"{curve.name} at quality {quality}, photo {photo.id}: decoded to {decoded.shape}, it was {photo.pixels.shape}"
        )
    return data, decoded, encode_ms, decode_ms


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, (time.perf_counter() - start) * 1000


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
