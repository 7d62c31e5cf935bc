"""SLIM as the benchmark runs it: settings of its curves, and the controls that belong to them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

import slimcodec
from slimcodec.codec import Codec
from slimcodec.container import unpack
from slimcodec.data.photos import Photo
from slimcodec.entropy.caption import decode_caption, tag_phrase
from slimcodec.images import Pixels

#: the first tags of a vocabulary are the classes of ImageNet-1k, in its order
IMAGENET_CLASSES = 1000
QUALITIES = (1, 15, 30, 45, 60, 75, 90)


@dataclass(frozen=True)
class SlimSettings:
    """One way to run SLIM: denoising ``steps``, ``caption`` "none", "auto" or "wrong", strength of ``guidance``."""

    steps: int
    caption: str
    guidance: float = 0.0

    @property
    def enhanced(self) -> bool:
        """Whether the caption acts on the picture, so that controls are due."""
        return self.steps > 0 and self.caption == "auto"

    @property
    def name(self) -> str:
        """The curve's name."""
        captions = {"none": "", "auto": " + caption", "wrong": " + wrong caption"}
        guided = f" + guidance {self.guidance:g}" if self.guidance else ""
        return f"slim steps {self.steps}{captions[self.caption]}{guided}"

    def controls(self) -> tuple[SlimSettings, SlimSettings]:
        """The curves that an enhanced one is shown with: no caption, which guidance needs, and a wrong one."""
        return SlimSettings(self.steps, "none"), SlimSettings(self.steps, "wrong", self.guidance)


def slim_settings(steps: Sequence[int], guidances: Sequence[float]) -> list[SlimSettings]:
    """All curves for these steps and strengths of guidance, each enhanced one followed by its controls, none twice."""
    settings: list[SlimSettings] = []
    for count in steps:
        settings.append(SlimSettings(count, "none"))
        for guidance in guidances if count else (0.0,):
            captioned = SlimSettings(count, "auto", guidance)
            settings += [captioned, *(captioned.controls() if captioned.enhanced else ())]
    return list(dict.fromkeys(settings))


def class_names(vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Names of the ImageNet-1k classes, as the vocabulary has them; () for a vocabulary without them."""
    return tuple(vocabulary[:IMAGENET_CLASSES]) if len(vocabulary) >= IMAGENET_CLASSES else ()


def wrong_class(photo_id: str, label: int, names: Sequence[str]) -> int:
    """A class with another name than ``label``'s, drawn by the photo's id: the same in every run and order."""
    rng = np.random.default_rng(zlib.crc32(photo_id.encode()))
    while True:
        drawn = int(rng.integers(len(names)))
        # a few names stand for two classes, such as crane
        if names[drawn] != names[label]:
            return drawn


@lru_cache(maxsize=1)
def shared_codec(model: str | None, device: str) -> Codec:
    """One loaded codec for all curves of a process."""
    return slimcodec.load(model, device=device)


class SlimCodec:
    """SLIM under one ``SlimSettings``; its bytes are whole ``.slim`` files."""

    def __init__(self, settings: SlimSettings, codec: Codec) -> None:
        self.settings, self._codec = settings, codec
        self._names = class_names(codec.bundle.vocabulary)

    def encode(self, photo: Photo, quality: int) -> bytes:
        """The ``.slim`` file of a photo."""
        return self._codec.encode(photo.pixels, quality, self._caption(photo))

    def decode(self, data: bytes) -> Pixels:
        """The picture of a ``.slim`` file."""
        picture = self._codec.decode(data, steps=self.settings.steps, guidance=self.settings.guidance)
        return np.asarray(picture)

    def describe(self) -> dict[str, Any]:
        """Release, bundle, and how files are made and read."""
        bundle = self._codec.bundle
        return {
            "version": slimcodec.__version__,
            "settings": asdict(self.settings),
            "bundle": {
                "name": bundle.config.name,
                "id": bundle.bundle_id,
                "sha256": bundle.sha256,
                "weights_sha256": bundle.weights_sha256,
                "dtype": str(bundle.dtype).removeprefix("torch."),
            },
        }

    def parts(self, data: bytes) -> dict[str, int]:
        """Bytes of header and caption of a file; the payload is the rest."""
        info = slimcodec.inspect(data)
        return {"header": info.header_bytes, "caption": info.caption_bytes}

    def drawn(self, photo: Photo) -> int | None:
        """The class that this curve's wrong caption names, None for the other curves."""
        if self.settings.caption != "wrong":
            return None
        return wrong_class(photo.id, photo.class_index, self._names)

    def _caption(self, photo: Photo) -> str | None:
        drawn = self.drawn(photo)
        if drawn is not None:
            return tag_phrase(self._names[drawn])
        return "auto" if self.settings.caption == "auto" else None


def caption_alone(codec: Codec, photo: Photo) -> dict[str, Any]:
    """What the caption says without any picture: the class it names (None for no class), whether that is the photo's, its bytes.

    A name that stands for two classes is right for both: the control is not made weaker than it is.
    """
    section = unpack(codec.encode(photo.pixels, 1, "auto")).caption
    names = class_names(codec.bundle.vocabulary)
    tag = decode_caption(section, codec.bundle.vocabulary).index if section else None
    named = tag if tag is not None and tag < len(names) else None
    return {
        "class": named,
        "right": named is not None and names[named] == names[photo.class_index],
        "bytes": len(section),
    }
