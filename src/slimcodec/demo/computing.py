"""What the page shows of a photo or a file: bytes, where they went, what peers do with as many, what a classifier says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimcodec.codec import Codec
from slimcodec.container import SlimInfo, inspect
from slimcodec.data.classifiers import Classifier
from slimcodec.data.contact_sheet import heat_map
from slimcodec.data.photos import Photo
from slimcodec.encoder import Request
from slimcodec.errors import SlimError
from slimcodec.evaluation.curves import IMAGENET_CLASSES, class_names
from slimcodec.evaluation.peers import Peer, best_that_fits, load_peer
from slimcodec.images import Pixels, load_image

#: arguments of ``Codec.sampling``
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"steps": 0, "guidance": 0.0},
    "natural": {"preset": "natural"},
    "machine": {"preset": "machine"},
}
PEERS = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}
BEST_QUALITY = 95
TOP = 5


@dataclass(frozen=True, eq=False)
class Subject:
    """What was dropped: a photo with its latent [1, C, h, w], or the bytes of a .slim file.

    ``encoders``: quality to the photo's file, for each peer; files are kept, since the search for another size asks for most
    of them again.
    """

    name: str
    pixels: Pixels | None = None
    latent: NDArray[np.float32] | None = None
    caption: str | None = None
    file: bytes = b""
    note: str = ""
    encoders: Mapping[str, Callable[[int], bytes]] = field(default_factory=dict)


class Verdict(NamedTuple):
    """Names and shares of the classes that a classifier finds likeliest, first to last."""

    names: tuple[str, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Coded:
    """A file with its decoded picture [H, W, 3] uint8, ``heat`` alike, and what is to be said of them.

    ``most``: bits of the costliest coded position of ``cell`` pixels a side. ``region``: shares of the bits and of the picture
    that the region of interest has, or None.
    """

    data: bytes
    info: SlimInfo
    caption: str
    pixels: Pixels
    faithful: bool
    heat: Pixels
    most: float
    cell: int
    region: tuple[float, float] | None
    seconds: float


class Demo:
    """The codec, and a classifier for its verdicts: the bundle's own captioner unless one is given."""

    def __init__(
        self,
        codec: Codec,
        classifier: Classifier | None = None,
        side: int = 1024,
        max_pixels: int | None = None,
    ) -> None:
        """``side``: longest side of a photo in pixels, larger ones are reduced to it; 0: never."""
        self.codec, self.classifier, self.side, self.max_pixels = codec, classifier, side, max_pixels
        self.peers: dict[str, Peer] = {}
        for name, title in PEERS.items():
            with suppress(SlimError):  # a Pillow that lacks a format
                self.peers[title] = load_peer(name)

    def open(self, path: Path) -> Subject:
        """The photo or .slim file of a path; ``SlimError`` for what is neither, or damaged, or too large."""
        data = path.read_bytes()
        if path.suffix.lower() == ".slim":
            self.codec.read(data, max_pixels=self.max_pixels)
            return Subject(path.stem, file=data, note="A .slim file: nobody here has its original.")
        try:
            pixels = load_image(data, self.max_pixels)
        except SlimError as error:
            raise SlimError(f"{path.name}: {error}") from error
        height, width = pixels.shape[:2]
        note = ""
        if 0 < self.side < max(width, height):
            picture = Image.fromarray(pixels)
            picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
            pixels = np.asarray(picture)
            note = f"Reduced from {width}x{height} to {picture.width}x{picture.height} pixels."
        pixels = self.codec.open(pixels, self.max_pixels)
        (latent,) = self.codec.encoder.latents([pixels])
        (caption,) = self.codec.encoder.captions([pixels])
        photo = Photo(pixels)
        encoders = {name: cache(partial(peer.encode, photo)) for name, peer in self.peers.items()}
        return Subject(path.stem, pixels, latent, caption, note=note, encoders=encoders)

    def code(
        self,
        subject: Subject,
        preset: str,
        quality: int = 50,
        caption: str | None = "auto",
        target_bytes: int = 0,
    ) -> Coded:
        """Encodes a photo as ``Codec.encode`` does, a file is taken as it is, and decodes the bytes under a preset.

        ``target_bytes``: most bytes of the file, 0 where ``quality`` decides.
        """
        start = time.perf_counter()
        sampling, data = self.codec.sampling(**PRESETS[preset]), subject.file
        if subject.pixels is not None and subject.latent is not None:
            text = subject.caption if caption == "auto" else caption
            request = Request(quality, text, target_bytes or None)
            data = self.codec.encoder.file(subject.pixels, subject.latent, text, request)
        file = self.codec.decoder.decompress(data, self.max_pixels)
        pixels = np.asarray(self.codec.decoder.pictures([file], sampling)[0])
        seconds = time.perf_counter() - start

        coder, (_, symbols) = self.codec.coder, self.codec.read(data, max_pixels=self.max_pixels)
        bits, region = coder.bit_map(symbols), coder.region(symbols)
        below = pixels if subject.pixels is None else subject.pixels
        guided = sampling.guidance and file.caption_index is not None
        return Coded(
            data,
            inspect(data),
            file.caption or "",
            pixels,
            not (sampling.steps or guided),
            heat_map(below, bits, self.codec.cell, region),
            float(bits.max()),
            self.codec.cell,
            None if region is None else (float(bits[region].sum() / bits.sum()), float(region.mean())),
            seconds,
        )

    def spend(self, subject: Subject, name: str, size: int) -> tuple[bytes, Pixels]:
        """The peer ``name``'s best file of at most ``size`` bytes, else its smallest, and the picture decoded from it."""
        qualities = (min(self.peers[name].qualities), BEST_QUALITY)
        _, data = best_that_fits(subject.encoders[name], qualities, size)
        return data, self.peers[name].decode(data)

    def verdict(self, pixels: Pixels) -> Verdict | None:
        """What the classifier says of a picture; None for a bundle without a captioner."""
        names: Sequence[str] = self.codec.bundle.vocabulary
        if self.classifier is not None:
            scores = self.classifier.scores(pixels)
            known = class_names(self.codec) if self.classifier.classes == IMAGENET_CLASSES else ()
            names = known or [f"class {number}" for number in range(self.classifier.classes)]
        elif self.codec.bundle.config.captioners:
            scores = self.codec.encoder.tag(pixels)[0][0]
        else:
            return None
        # a network may give probabilities already
        if not (scores.min() >= 0 and abs(float(scores.sum()) - 1) < 1e-3):
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        numbers = np.argsort(-scores)[:TOP].tolist()
        return Verdict(tuple(names[number] for number in numbers), tuple(scores[numbers].tolist()))
