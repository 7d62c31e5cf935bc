"""Pictures to files: latents, captions, the region of interest, symbols, and the quality that fits a size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimcodec.container import Container, pack
from slimcodec.entropy.caption import encode_caption
from slimcodec.errors import SlimError
from slimcodec.images import Pixels, padded_size
from slimcodec.models.bundle import Bundle
from slimcodec.models.config import BLOCK_RADIUS
from slimcodec.models.guidance import CaptionGuide, at_quality, mixed, resized, unit, unshuffled
from slimcodec.models.latent_codec import CodedLatent
from slimcodec.models.runtime import unpacked
from slimcodec.models.tiles import tiled
from slimcodec.models.trials import Trials

if TYPE_CHECKING:
    from slimcodec.decoder import Decoder
    from slimcodec.models.runtime import Runtime

#: where the bits should go: "auto", None, or a mask in [0, 1]
Roi = str | NDArray[Any] | None
Floats = NDArray[np.float32]
#: gradient steps by which the encoder looks for evidence, by default and at most
EFFORT, MAX_EFFORT = 3, 32
#: below this quality the map of a region that the bundle sees costs a classifier more than it gives (docs/decisions.md)
MAP_FROM = 32
#: by how many qualities a target in bytes may sink to pay for evidence
EVIDENCE_QUALITIES = 8
#: root mean square of what values move by to keep evidence, in steps of quantisation
PULL = 0.05
#: no value moves further: a zero stays one, and flat areas stay flat
FURTHEST = 0.25


@dataclass(frozen=True)
class Interest:
    """The interest [1, 1, h, w] in [0, 1] of every latent position, and the quality from which on files hold a map of it."""

    weights: Floats
    lowest: int = 1


@dataclass(frozen=True)
class Evidence:
    """What rounding keeps of a picture for a classifier: the first of its tags, by a number of gradient steps."""

    tag: int
    steps: int


@dataclass(frozen=True)
class Request:
    """The arguments of ``Codec.encode``; raises ``SlimError`` for what is out of range."""

    quality: int = 50
    caption: str | None = "auto"
    target_bytes: int | None = None
    target_bpp: float | None = None
    roi: Roi = "auto"
    effort: int = EFFORT

    def __post_init__(self) -> None:
        if self.target_bytes is not None and self.target_bpp is not None:
            raise SlimError("give target_bytes or target_bpp, not both")
        object.__setattr__(self, "quality", whole_number("quality", self.quality, 1, 100))
        object.__setattr__(self, "effort", whole_number("effort", self.effort, 0, MAX_EFFORT))
        if not (self.caption is None or isinstance(self.caption, str)):
            raise SlimError(f"caption is {self.caption!r}; give 'auto', None or a text")
        for name in ("target_bytes", "target_bpp"):
            target = getattr(self, name)
            if target is not None and not (isinstance(target, Real) and 0 < float(target) < float("inf")):
                raise SlimError(f"{name} is {target!r}; give a number above 0")
        if isinstance(self.roi, str) and self.roi != "auto":
            raise SlimError(f"roi is {self.roi!r}; give 'auto', None or a mask")


class Encoder:
    """The steps from pictures to files. Those that take several pictures run one pass for all of them."""

    def __init__(self, bundle: Bundle, runtime: Runtime, decoder: Decoder) -> None:
        """``decoder``: the codec's, to see what a file will give."""
        self.bundle, self.runtime, self.decoder = bundle, runtime, decoder
        self.coder, self.tile = decoder.coder, decoder.tile

    def latents(self, pictures: Sequence[Pixels]) -> list[Floats]:
        """The latent [1, C, h, w] of every picture; their sizes are equal once padded to whole coded positions."""
        config = self.bundle.config
        padded = [np.pad(pixels, (*self._margins(pixels), (0, 0)), "edge") for pixels in pictures]
        latents = tiled(
            # in floating point a large picture takes four times the memory, so only tiles become that
            lambda x: self.runtime.run("encode", x)[0],
            # a large picture comes alone, and is not copied
            _batch(padded[0][None] if len(padded) == 1 else np.stack(padded)),
            tile=self.bundle.autoencoder_tile or self.tile,
            margin=None if config.ldm else config.autoencoder.encoder_radius,
            cell_in=config.stride,
        )
        return np.split(latents, len(latents))

    def captions(self, pictures: Sequence[Pixels], caption: str | None = "auto") -> list[str | None]:
        """The caption of every picture where the user or a pretrained captioner says it; "auto" is left to the tagger."""
        model = self.bundle.caption_model if caption == "auto" else None
        if model is None:
            return [caption] * len(pictures)
        from slimcodec.models.surroundings import undisturbed

        with self.bundle.parts.lock:
            return undisturbed(model.captions)(pictures)

    def file(self, pixels: Pixels, latent: Floats, caption: str | None, request: Request) -> bytes:
        """The file of a picture by its latent [1, C, h, w] and its caption ("auto": the tagger's)."""
        bundle = self.bundle
        taggers = bundle.config.captioners
        tagged = self.tag(pixels) if taggers and caption == "auto" else self.tagged(pixels, request.effort)
        if caption == "auto":
            caption = taggers[0].caption(tagged[0][0], bundle.vocabulary) if tagged else None
        interest = self.interest(pixels, request.roi, tagged)
        evidence = self.evidence(pixels, request.effort, tagged)
        section = b"" if caption is None else encode_caption(caption, bundle.vocabulary)
        height, width = pixels.shape[:2]

        def file(quality: int, evidence: Evidence | None = None) -> bytes:
            payload = self.coder.write(self.quantise(latent, quality, interest, evidence))
            return pack(Container(width, height, quality, bytes.fromhex(bundle.bundle_id), section, payload))

        limit = request.target_bytes
        if request.target_bpp is not None:
            limit = math.floor(request.target_bpp * width * height / 8)
        if limit is None:
            return file(request.quality, evidence)
        quality, data = largest_that_fits(file, limit)
        if interest and quality < interest.lowest and len(file(interest.lowest)) <= limit:
            # with the map of steps sizes are smaller again, and grow from there on
            quality, data = largest_that_fits(file, limit, (interest.lowest, 100))
        # evidence takes some per cent of the bytes, that of a quality or two
        for lower in range(quality, max(0, quality - EVIDENCE_QUALITIES), -1) if evidence else ():
            if len(kept := file(lower, evidence)) <= limit:
                return kept
        return data

    def interest(
        self, pixels: Pixels, roi: Roi = "auto", tagged: tuple[Floats, ...] | None = None
    ) -> Interest | None:
        """The region of interest; None: every position alike.

        ``tagged``: what the tagger predicts for the picture, where it has run already.
        """
        config = self.bundle.config
        if not isinstance(roi, str | None):
            return Interest(self._masked(pixels, roi))
        if not (roi and config.compressor.step_octaves and config.captioners and config.captioners[0].roi):
            return None
        _, logits = tagged or self.tag(pixels)
        height, width = pixels.shape[:2]
        rows, columns = (side // config.stride for side in padded_size(height, width, config.cell))
        # a sigmoid that no large number makes overflow
        wide = resized(logits, (rows, columns), smooth=False)
        return Interest(((np.tanh(wide / 2) + 1) / 2).astype(np.float32), MAP_FROM)

    @property
    def sees_evidence(self) -> bool:
        """Whether the bundle has a tagger, and a linear path from its latents to pixels."""
        return bool(self.bundle.config.captioners) and self.bundle.linear_path is not None

    def tagged(self, pixels: Pixels, effort: int) -> tuple[Floats, ...] | None:
        """What the tagger predicts for a picture, where an effort makes use of it."""
        return self.tag(pixels) if effort and self.sees_evidence else None

    def evidence(
        self, pixels: Pixels, effort: int = EFFORT, tagged: tuple[Floats, ...] | None = None
    ) -> Evidence | None:
        """What rounding is to keep of a picture, None for nothing; ``tagged`` as in ``interest``."""
        if not (effort and self.sees_evidence):
            return None
        logits, *_ = tagged or self.tag(pixels)
        return Evidence(int(logits[0].argmax()), effort)

    def quantise(
        self, latent: Floats, quality: int, interest: Interest | None = None, evidence: Evidence | None = None
    ) -> CodedLatent:
        """The symbols of a latent [1, C, h, w], finer in its region of interest; rounding keeps ``evidence`` of the picture."""
        config, level = self.bundle.config.compressor, np.array([quality])
        weights = np.ones_like(latent[:, :1])
        if interest is not None and quality >= interest.lowest:
            weights = interest.weights
        values = tiled(
            lambda x, weights: self.runtime.run("analyse", x, level, weights)[0],
            latent,
            weights,
            tile=self.tile,
            margin=BLOCK_RADIUS * config.analysis_blocks,
            cell_in=config.patch,
        )
        values = Trials(self.runtime.run, self.coder, config, quality).bounded(latent, values, weights)
        (hyper,) = self.runtime.run("hyper_analyse", values, level)
        if evidence is not None:
            return self._kept(values, hyper, quality, evidence)
        return self.coder.quantise(values, hyper, quality)

    def _kept(self, values: Floats, hyper: Floats, quality: int, evidence: Evidence) -> CodedLatent:
        """The symbols of values [1, channels, h, w] that move before they are rounded, to keep evidence.

        Plain rounding is best for squared error. But a value near the middle of two steps costs the same on either side, and a
        classifier does care: over a picture, thousands of such choices decide what it sees. So every value moves by a few hundredths
        of a step along the gradient of log p(tag) at the picture that the symbols give, by the linear path. Of a pretrained
        model, whose pixels that path hardly knows, the picture is the decoder's.
        The format and the decoder know nothing of it.
        """
        config = self.bundle.config.compressor
        size = [side * self.bundle.config.cell for side in values.shape[2:]]
        assert self.bundle.linear_path is not None
        guide = CaptionGuide(
            self.runtime.run, self.bundle, self.bundle.linear_path, size, evidence.tag, seed=0
        )
        # outside the region of interest a step is larger
        scale = 2.0 ** (config.step_octaves * values[:, -1:]) if config.step_octaves else np.float32(1)
        transform, pulls = self.transform(quality), np.zeros_like(values)
        coded = self.coder.quantise(values, hyper, quality)
        for step in range(evidence.steps):
            latent = self.decoder.synthesise(coded, quality)
            if self.bundle.config.ldm:
                picture = guide.view(self.decoder.pixels(latent))
            else:
                picture = guide.picture(unshuffled(latent, config.patch))
            pulls += unit(scale * mixed(transform, guide.pull(step, picture)))
            moved = values + (PULL * unit(pulls)).clip(-FURTHEST, FURTHEST)
            coded = self.coder.quantise(moved, hyper, quality)
        return coded

    def transform(self, quality: int) -> Floats:
        """From the gradient of a coded position's latents to that of its decoded values [channels, C * patch^2], by the linear path."""
        config, stored = self.bundle.config.compressor, self.bundle.stored["compressor"]
        transform = np.eye(config.prior.channels, dtype=np.float32)
        if any(name.startswith("leave.") for name in stored):
            # patches of latents have a transform of their own
            transform = unpacked(stored, {"leave.weight": "float32"})["leave.weight"][:, :, 0, 0].T
        gain = at_quality(unpacked(stored, {"log_inverse_gain": "float32"})["log_inverse_gain"], quality)
        transform = np.exp(gain)[:, None] * transform
        if config.step_octaves:
            # the last channel is the map of steps
            transform[-1] = 0
        return transform

    def _margins(self, pixels: Pixels) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels before and after each side of a picture, up to whole coded positions.

        Repeating the border in them costs fewer bits than black, and works from 1x1 up.
        """
        height, width = pixels.shape[:2]
        padded_height, padded_width = padded_size(height, width, self.bundle.config.cell)
        return (0, padded_height - height), (0, padded_width - width)

    def tag(self, pixels: Pixels) -> tuple[Floats, ...]:
        """What the bundle's tagger predicts: logits of the tags, and of the region of interest if it has one."""
        side = self.bundle.config.captioners[0].side
        # a whole factor of the reduction by averages: five times as fast, and as good for a tagger
        square = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, reducing_gap=1.0)
        return self.runtime.run("tag", _batch(np.asarray(square)[None]))

    def _masked(self, pixels: Pixels, roi: NDArray[Any]) -> Floats:
        """The interest that a mask of any resolution over the picture means; ``SlimError`` for what is no mask."""
        if not self.bundle.config.compressor.step_octaves:
            raise SlimError(f"the bundle {self.bundle.config.name} has one step everywhere: it takes no roi")
        try:
            mask = np.asarray(roi, np.float32)
        except (TypeError, ValueError) as error:
            raise SlimError(
                f"roi is a {type(roi).__name__}; give 'auto', None or a mask as an array"
            ) from error
        if mask.ndim != 2 or not mask.size:
            raise SlimError(f"roi is an array of shape {mask.shape}; give a mask of two axes")
        if not (mask.min() >= 0 and mask.max() <= 1):
            raise SlimError(
                f"roi has values from {mask.min():g} to {mask.max():g}; give a mask with values in [0, 1], or booleans: mask > 127"
            )
        height, width = pixels.shape[:2]
        if mask.shape != (height, width):
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))
        padded, stride = np.pad(mask, self._margins(pixels), "edge"), self.bundle.config.stride
        rows, columns = (side // stride for side in padded.shape)
        return padded.reshape(1, 1, rows, stride, columns, stride).mean((3, 5))


def _batch(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures [B, H, W, 3] as [B, 3, H, W]; memory keeps its order, channels-last, which torch's convolutions like best."""
    return pixels.transpose(0, 3, 1, 2)


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """``value`` where it is a whole number from ``low`` to ``high``, else ``SlimError``."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= value <= high:
        return int(value)
    raise SlimError(f"{name} is {value!r}; give a whole number from {low} to {high}")


def largest_that_fits(
    encode: Callable[[int], bytes], limit: int, qualities: tuple[int, int] = (1, 100)
) -> tuple[int, bytes]:
    """The largest quality whose file has at most ``limit`` bytes, and the file, by bisection (sizes grow with quality).

    The largest of all comes first: where it fits, no other does better. Raises ``SlimError`` where that of the lowest
    quality has more.
    """
    low, high = qualities[0] - 1, qualities[1]
    best, data = b"", encode(high)
    if len(data) <= limit:
        return high, data
    while high - low > 1:
        middle = (low + high) // 2
        data = encode(middle)
        if len(data) <= limit:
            low, best = middle, data
        else:
            high = middle
    if low < qualities[0]:
        # the bisection ended at the lowest quality
        raise SlimError(
            f"no quality fits in {limit} bytes: quality {high} takes {len(data)}; allow more, or shrink the picture"
        )
    return low, best
