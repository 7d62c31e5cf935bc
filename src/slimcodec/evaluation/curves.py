"""The curves of a run: a codec under fixed settings and the qualities at which it is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from slimcodec.errors import SlimError
from slimcodec.evaluation.peers import PEERS, CommandCodec, PictureCodec, load_peer
from slimcodec.evaluation.slim import (
    QUALITIES,
    SlimCodec,
    SlimSettings,
    class_names,
    shared_codec,
    slim_settings,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Curve:
    """A codec under fixed settings, and the qualities at which it is run.

    ``template``: of a command codec; ``slim``: how SLIM is run; neither: a name of ``peers.PEERS``.
    """

    name: str
    qualities: tuple[int, ...]
    template: str | None = None
    slim: SlimSettings | None = None

    def codec(self, model: str | None = None, device: str = "cpu") -> PictureCodec:
        """The codec, SLIM with a ``model`` on a ``device``; ``SlimError`` where it is not installed."""
        if self.slim is not None:
            return SlimCodec(self.slim, shared_codec(model, device))
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
) -> tuple[Curve, ...]:
    """The curves of codec ``names`` ("slim" stands for all of SLIM's) and command ``templates``.

    ``qualities``: "NAME=Q,Q", needed for commands; ``steps`` and ``guidance``: lists of numbers for SLIM, by default 0 steps
    and the bundle's. Raises ``SlimError`` for a codec that is unknown or not installed, and for an option that says nothing.
    """
    ladders = dict(_ladder(text) for text in qualities)
    curves: list[Curve] = []
    for name in dict.fromkeys(names):
        if name != "slim":
            load_peer(name)
            curves.append(Curve(name, ladders.pop(name, PEERS[name].qualities)))
            continue
        bundle = shared_codec(model, device).bundle
        default = sorted({0, bundle.config.steps if bundle.config.enhancer else 0})
        counts = default if steps is None else _numbers(steps, int, "--steps")
        strengths = (
            [bundle.config.guidance, bundle.config.machine_guidance]
            if guidance is None
            else _numbers(guidance, float, "--guidance")
        )
        ladder = ladders.pop("slim", QUALITIES)
        if not all(1 <= quality <= 100 for quality in ladder):
            raise SlimError("qualities of slim are whole numbers from 1 to 100")
        settings = slim_settings(counts, strengths)
        if any(chosen.caption == "wrong" for chosen in settings) and not class_names(bundle.vocabulary):
            raise SlimError(
                f"bundle {bundle.config.name} has {len(bundle.vocabulary)} tags: the control with wrong captions needs the "
                "names of the ImageNet-1k classes in front; run it with --steps 0"
            )
        curves += [Curve(chosen.name, ladder, slim=chosen) for chosen in settings]
    for template in templates:
        name = CommandCodec.parse(template).name
        if name in {curve.name for curve in curves} | {"slim"}:
            raise SlimError(f"there is another codec {name}; choose another name in --codec")
        if name not in ladders:
            raise SlimError(f"codec {name}: say at which qualities, as in --qualities {name}=20,40,60")
        curves.append(Curve(name, ladders.pop(name), template=template))
    if ladders:
        raise SlimError(f"--qualities {next(iter(ladders))}=...: no such codec in this run")
    if not curves:
        raise SlimError("no codec chosen; name some with --codecs")
    return tuple(curves)


def _ladder(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, numbers = text.partition("=")
    if not re.fullmatch(r"-?\d+(,-?\d+)*", numbers):
        raise SlimError(f"--qualities {text!r}: write NAME=Q,Q,Q with whole numbers, such as avif=10,30,50")
    return name, tuple(dict.fromkeys(map(int, numbers.split(","))))


def _numbers(text: str, kind: Callable[[str], T], option: str) -> list[T]:
    try:
        numbers = [kind(word) for word in text.split(",")]
        if any(not 0 <= float(number) < 1e6 for number in numbers):  # type: ignore[arg-type]
            raise ValueError
    except ValueError as error:
        raise SlimError(f"{option} {text!r}: write numbers from 0 up, separated by commas") from error
    return numbers
