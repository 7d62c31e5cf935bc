"""The curves of a run: a codec under fixed settings, SLIM with its controls among them, and the qualities."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

import slimcodec
from slimcodec.codec import Codec, default_codec
from slimcodec.container import unpack
from slimcodec.data.photos import Photo
from slimcodec.encoder import EFFORT
from slimcodec.entropy.caption import decode_caption, tag_phrase
from slimcodec.errors import SlimError
from slimcodec.evaluation.peers import CommandCodec, Peer, load_peer
from slimcodec.images import Pixels

T = TypeVar("T")
#: the first tags of a vocabulary are the classes of ImageNet-1k, in its order
IMAGENET_CLASSES = 1000
QUALITIES = (1, 15, 30, 45, 60, 75, 90)


@dataclass(frozen=True)
class SlimSettings:
    """One way to run SLIM: denoising ``steps``, ``caption`` "none", "auto" or "wrong", strength of ``guidance``.

    ``effort`` is the encoder's, 0 in results of the releases that had none.
    """

    steps: int
    caption: str
    guidance: float = 0.0
    effort: int = 0

    @property
    def enhanced(self) -> bool:
        """Whether the caption acts on the picture, so that controls are due."""
        return bool(self.steps or self.guidance) and self.caption == "auto"

    @property
    def name(self) -> str:
        """The curve's name."""
        caption = {"none": "", "auto": " + caption", "wrong": " + wrong caption"}[self.caption]
        guidance = f" + guidance {self.guidance:g}" if self.guidance else ""
        effort = "" if self.effort == EFFORT else f" + effort {self.effort}"
        return f"slim steps {self.steps}{caption}{guidance}{effort}"

    def controls(self) -> tuple[SlimSettings, SlimSettings]:
        """The curves that an enhanced one is shown with: no caption, which guidance needs, and a wrong one."""
        without = replace(self, caption="none", guidance=0.0)
        return without, replace(self, caption="wrong")


def slim_settings(
    steps: Sequence[int], guidances: Sequence[float], effort: int = EFFORT
) -> list[SlimSettings]:
    """All curves for these steps and strengths of guidance, each enhanced one followed by its controls, none twice."""
    settings: list[SlimSettings] = []
    for count in steps:
        settings.append(SlimSettings(count, "none", effort=effort))
        for guidance in guidances:
            captioned = SlimSettings(count, "auto", guidance, effort)
            settings += [captioned, *(captioned.controls() if captioned.enhanced else ())]
    return list(dict.fromkeys(settings))


def class_names(codec: Codec) -> tuple[str, ...]:
    """Names of the ImageNet-1k classes, as the bundle's vocabulary has them; () for one without them."""
    names = tuple(codec.bundle.vocabulary[:IMAGENET_CLASSES])
    return names if len(names) == IMAGENET_CLASSES else ()


def wrong_class(photo_id: str, label: int, names: Sequence[str]) -> int:
    """A class with another name than ``label``'s, drawn by the photo's id: the same in every run and order."""
    rng = np.random.default_rng(zlib.crc32(photo_id.encode()))
    while True:
        drawn = int(rng.integers(len(names)))
        # a few names stand for two classes, such as crane
        if names[drawn] != names[label]:
            return drawn


class SlimCodec:
    """SLIM under one ``SlimSettings``; its bytes are whole ``.slim`` files."""

    def __init__(self, settings: SlimSettings, codec: Codec) -> None:
        self.settings, self._codec, self._names = settings, codec, class_names(codec)

    def encode(self, photo: Photo, quality: int) -> bytes:
        caption = "auto" if self.settings.caption == "auto" else None
        if (drawn := self.drawn(photo)) is not None:
            caption = tag_phrase(self._names[drawn])
        return self._codec.encode(photo.pixels, quality, caption, effort=self.settings.effort)

    def decode(self, data: bytes) -> Pixels:
        settings = self.settings
        return np.asarray(self._codec.decode(data, steps=settings.steps, guidance=settings.guidance))

    def describe(self) -> dict[str, Any]:
        """Release, bundle, and how files are made and read."""
        bundle = self._codec.bundle
        identity = {
            "name": bundle.config.name,
            "id": bundle.bundle_id,
            "sha256": bundle.sha256,
            "weights_sha256": bundle.weights_sha256,
            "dtype": self._codec.runtime.dtype,
        }
        return {"version": slimcodec.__version__, "settings": asdict(self.settings), "bundle": identity}

    def parts(self, data: bytes, photo: Photo) -> dict[str, int]:
        """Bytes of header and caption of a file, the payload is the rest; and the class of a wrong caption."""
        info = slimcodec.inspect(data)
        parts = {"header": info.header_bytes, "caption": info.caption_bytes}
        drawn = self.drawn(photo)
        return parts if drawn is None else parts | {"drawn": drawn}

    def drawn(self, photo: Photo) -> int | None:
        """The class that this curve's wrong caption names, None for the other curves."""
        if self.settings.caption != "wrong":
            return None
        return wrong_class(photo.id, photo.class_index, self._names)

    def caption_alone(self, photo: Photo) -> dict[str, Any] | None:
        """What the caption says without any picture: the class it names (None for no class), whether that is the photo's, its bytes.

        A name that stands for two classes is right for both: the control is not made weaker than it is. None where the bundle
        does not name the classes.
        """
        names, vocabulary = self._names, self._codec.bundle.vocabulary
        if not names:
            return None
        section = unpack(self._codec.encode(photo.pixels, 1, "auto", effort=0)).caption
        tag = decode_caption(section, vocabulary).index if section else None
        named = tag if tag is not None and tag < len(names) else None
        right = named is not None and names[named] == names[photo.class_index]
        return {"class": named, "right": right, "bytes": len(section)}


#: a codec makes the whole file of ``photo.pixels``, without EXIF data or colour profile, decodes such bytes to the picture
#: [H, W, 3] uint8 in the size that was encoded, and describes its version and settings for the result
PictureCodec = SlimCodec | CommandCodec | Peer


@dataclass(frozen=True)
class Curve:
    """A codec under fixed settings, and the qualities at which it is run.

    ``template``: of a command codec; ``slim``: how SLIM is run; neither: a name of ``PEERS``.
    """

    name: str
    qualities: tuple[int, ...]
    template: str | None = None
    slim: SlimSettings | None = None

    def codec(self, model: str | None = None, device: str = "cpu") -> PictureCodec:
        """The codec, SLIM with a ``model`` on a ``device``; ``SlimError`` where it is not installed."""
        if self.slim is not None:
            return SlimCodec(self.slim, default_codec(model, device))
        return CommandCodec.parse(self.template) if self.template is not None else load_peer(self.name)

    @property
    def control(self) -> bool:
        """Whether the curve is only there to judge another: its caption is wrong."""
        return self.slim is not None and self.slim.caption == "wrong"

    @property
    def headline(self) -> bool:
        """Whether the curve is shown where there is little room: SLIM without steps or caption, and as a caption enhances it."""
        slim = self.slim
        return slim is None or slim.enhanced or (not slim.steps and slim.caption == "none")


def chosen_curves(
    names: Sequence[str],
    templates: Sequence[str] = (),
    qualities: Sequence[str] = (),
    steps: str | None = None,
    guidance: str | None = None,
    model: str | None = None,
    device: str = "cpu",
    effort: int = EFFORT,
) -> tuple[Curve, ...]:
    """The curves of codec ``names`` ("slim" stands for all of SLIM's) and command ``templates``.

    ``qualities``: "NAME=Q,Q", needed for commands; ``steps`` and ``guidance``: lists of numbers for SLIM, by default 0 steps
    and the bundle's, guidance "none" for no curve with a caption; ``effort``: of its encoder. Raises ``SlimError`` for a codec
    that is unknown or not installed, and for an option that says nothing.
    """
    ladders = dict(_ladder(text) for text in qualities)
    curves: list[Curve] = []
    for name in dict.fromkeys(names):
        if name == "slim":
            settings = _chosen_settings(default_codec(model, device), steps, guidance, effort)
            ladder = ladders.pop(name, QUALITIES)
            if not all(1 <= quality <= 100 for quality in ladder):
                raise SlimError("qualities of slim are whole numbers from 1 to 100")
            curves += [Curve(chosen.name, ladder, slim=chosen) for chosen in settings]
        else:
            curves.append(Curve(name, ladders.pop(name, load_peer(name).qualities)))
    for template in templates:
        name = CommandCodec.parse(template).name
        if name in {curve.name for curve in curves} | {"slim"}:
            raise SlimError(f"there is another codec {name}; choose another name in --codec")
        if name not in ladders:
            raise SlimError(f"codec {name}: say at which qualities, as in --qualities {name}=20,40,60")
        curves.append(Curve(name, ladders.pop(name), template))
    if ladders:
        raise SlimError(f"--qualities {next(iter(ladders))}=...: no such codec in this run")
    if not curves:
        raise SlimError("no codec chosen; name some with --codecs")
    return tuple(curves)


def _chosen_settings(
    codec: Codec, steps: str | None, guidance: str | None, effort: int
) -> list[SlimSettings]:
    config = codec.bundle.config
    counts = sorted({0, config.steps if config.enhancer else 0})
    chosen_steps = counts if steps is None else _numbers(steps, int, "--steps")
    # steps 0 asked for alone is SLIM without help from a caption
    strengths = [config.guidance, config.machine_guidance] if steps is None or any(chosen_steps) else [0.0]
    if guidance is not None:
        strengths = [] if guidance == "none" else _numbers(guidance, float, "--guidance")
    settings = slim_settings(chosen_steps, strengths, effort)
    if any(chosen.caption == "wrong" for chosen in settings) and not class_names(codec):
        raise SlimError(
            f"bundle {config.name} has {len(codec.bundle.vocabulary)} tags: the control with wrong captions needs the "
            "names of the ImageNet-1k classes in front; run it with --steps 0"
        )
    return settings


def _ladder(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, numbers = text.partition("=")
    if not re.fullmatch(r"-?\d+(,-?\d+)*", numbers):
        raise SlimError(f"--qualities {text!r}: write NAME=Q,Q,Q with whole numbers, such as avif=10,30,50")
    return name, tuple(dict.fromkeys(map(int, numbers.split(","))))


def _numbers(text: str, kind: Callable[[str], T], option: str) -> list[T]:
    with suppress(ValueError):
        if all(0 <= float(number) < 1e6 for number in text.split(",")):
            return [kind(number) for number in text.split(",")]
    raise SlimError(f"{option} {text!r}: write numbers from 0 up, separated by commas")
