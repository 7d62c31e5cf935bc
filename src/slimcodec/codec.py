"""Picture to bytes to picture: the one place that knows the whole pipeline."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from slimcodec.container import Container, Source, pack, read_source, unpack
from slimcodec.entropy.caption import decode_caption, encode_caption
from slimcodec.entropy.coder import MAX_SYMBOL_BYTES
from slimcodec.errors import FormatError, ImageError, ModelMismatchError, SlimError
from slimcodec.images import ImageLike, load_image, pixel_limit
from slimcodec.models.bundle import Bundle
from slimcodec.models.latent_model import TILE, blended, tiled

if TYPE_CHECKING:
    from slimcodec.models.latent_codec import CodedLatent

#: latent positions up to which caption guidance is applied: its gradient needs the whole picture in memory
GUIDED_POSITIONS = 4096
#: padded pixels that are allowed however small the limit on pixels is
SMALL_AREA = 1 << 20
#: most denoising steps that a caller may ask for
MAX_STEPS = 1000
#: what a decoded picture is for
PRESETS = ("natural", "machine")
Pixels = NDArray[np.uint8]
#: where the bits should go: "auto", None, or a mask in [0, 1]
Roi = str | NDArray[Any] | None


@dataclass(frozen=True)
class Rough:
    """A decompressed picture before enhancement: its latent, and what the file says beside it."""

    latents: Tensor
    container: Container
    caption: str | None
    tag: int | None


@dataclass(frozen=True)
class Request:
    """What is wanted of a file, as ``Codec.encode`` takes it; raises ``SlimError`` for what is out of range."""

    quality: int = 50
    caption: str | None = "auto"
    target_bytes: int | None = None
    target_bpp: float | None = None
    roi: Roi = "auto"

    def __post_init__(self) -> None:
        if self.target_bytes is not None and self.target_bpp is not None:
            raise SlimError("give target_bytes or target_bpp, not both")
        object.__setattr__(self, "quality", _whole_number("quality", self.quality, 1, 100))
        if not (self.caption is None or isinstance(self.caption, str)):
            raise SlimError(f"caption is {self.caption!r}; give 'auto', None or a text")
        for name in ("target_bytes", "target_bpp"):
            target = getattr(self, name)
            if target is not None and not 0 < target < float("inf"):
                raise SlimError(f"{name} is {target!r}; give a number above 0")
        if isinstance(self.roi, str) and self.roi != "auto":
            raise SlimError(f"roi is {self.roi!r}; give 'auto', None or a mask")


class Codec:
    """Encodes and decodes pictures with one bundle; create it with ``slimcodec.load``.

    A codec holds no state between calls and may be used from several threads.
    """

    def __init__(self, bundle: Bundle, tile: int = TILE) -> None:
        """``tile``: side, in latent positions, of the pieces in which a large picture is worked on."""
        if tile < 2:
            raise SlimError(f"tile is {tile}; give at least 2 latent positions")
        self.bundle, self.tile = bundle, tile

    # ---- encoding ----------------------------------------------------------------------------------------------

    def encode(
        self,
        image: ImageLike,
        quality: int = 50,
        caption: str | None = "auto",
        *,
        roi: Roi = "auto",
        target_bytes: int | None = None,
        target_bpp: float | None = None,
        max_pixels: int | None = None,
    ) -> bytes:
        """The bytes of a ``.slim`` file.

        ``image``: a PIL image, an [H, W, 3] uint8 array, a path, or the bytes of a picture file; see
        ``slimcodec.images.load_image`` for how each kind becomes sRGB. ``quality``: 1 (smallest) to 100. ``caption``:
        "auto" (the bundle's captioner), None, or a text of at most 1024 bytes. ``roi``: where the bits should go: "auto" (as the
        bundle's captioner sees it), None (everywhere alike), or a mask of any resolution over the whole picture, in [0, 1]. ``target_bytes`` or ``target_bpp`` (bits per
        pixel of the original size) take the largest quality whose whole file fits, in place of ``quality``; it is found by
        bisection, since sizes grow with quality but for a few bytes.

        Raises ``ImageError`` for a picture that cannot be coded, ``SlimError`` for an argument out of range and for a target
        that no quality meets.
        """
        request = Request(quality, caption, target_bytes, target_bpp, roi)
        pixels = self.open(image, max_pixels)
        return self._file(pixels, self._latents(pixels), request)

    def open(self, image: ImageLike, max_pixels: int | None = None) -> Pixels:
        """The pixels of a picture that can be encoded; raises ``ImageError`` for one that cannot."""
        pixels = load_image(image, max_pixels)
        self._check_area(pixels.shape[1], pixels.shape[0], max_pixels)
        return pixels

    def _file(self, pixels: Pixels, latents: Tensor, request: Request) -> bytes:
        """The file of a picture by its latents [1, C, h, w]: what is coded for each picture alone."""
        height, width = pixels.shape[:2]
        caption, target_bytes = request.caption, request.target_bytes
        found, interest = self._look(pixels, latents, named=caption == "auto", roi=request.roi)
        section = self._caption_section(found if caption == "auto" else caption)

        def file(quality: int) -> bytes:
            payload = self.bundle.coder.write(self._quantise(latents, quality, interest))
            bundle_id = bytes.fromhex(self.bundle.bundle_id)
            return pack(Container(width, height, quality, bundle_id, section, payload))

        if request.target_bpp is not None:
            target_bytes = math.floor(request.target_bpp * width * height / 8)
        return file(request.quality) if target_bytes is None else _largest_that_fits(file, target_bytes)

    @torch.inference_mode()
    def quantise(self, image: ImageLike, quality: int = 50, *, roi: Roi = "auto") -> CodedLatent:
        """The symbols of a picture, their table indices and decoded values, as ``encode`` codes them."""
        return next(self.quantise_each(image, (quality,), roi=roi))

    @torch.inference_mode()
    def quantise_each(
        self, image: ImageLike, qualities: Iterable[int], *, roi: Roi = "auto"
    ) -> Iterator[CodedLatent]:
        """``quantise`` at several qualities; the picture's latent is computed once."""
        pixels = load_image(image)
        latents = self._latents(pixels)
        interest = self._look(pixels, latents, named=False, roi=roi)[1]
        for quality in qualities:
            yield self._quantise(latents, quality, interest)

    def latents(self, image: ImageLike) -> Tensor:
        """The latent of a picture before compression, [C, h, w], float32: what ``decode_latent`` comes near to."""
        return self._latents(load_image(image))[0]

    def bit_map(self, image: ImageLike, quality: int = 50, *, roi: Roi = "auto") -> NDArray[np.float32]:
        """Ideal bits at every latent position, [ceil(H/16), ceil(W/16)] for slim-tiny; their sum is about the payload."""
        return self.bundle.coder.bit_map(self.quantise(image, quality, roi=roi))

    @torch.inference_mode()
    def _latents(self, *pictures: Pixels) -> Tensor:
        """The latents [B, C, h, w] of pictures of one padded size."""
        model = self.bundle.latent_model

        def padded(pixels: Pixels) -> Tensor:
            below, right = -pixels.shape[0] % self.cell, -pixels.shape[1] % self.cell
            if below or right:
                # repeating the border costs fewer bits than black, and works from 1x1 up
                pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")
            return self._as_tensor(pixels)

        tensors = [padded(pixels) for pixels in pictures]
        return tiled(
            # as numbers with a point a large picture takes four times the memory, so only tiles become that
            lambda x: model.encode(_normalised(x)),
            # a large picture comes alone, and is not copied
            tensors[0] if len(tensors) == 1 else torch.cat(tensors),
            tile=self.tile,
            margin=model.encoder_radius,
            cell_in=model.stride,
        )

    @torch.inference_mode()
    def _quantise(self, latents: Tensor, quality: int, roi: Tensor | None = None) -> CodedLatent:
        compressor = self.bundle.compressor
        level = compressor.level(torch.tensor([quality], device=latents.device))
        channels = latents.shape[1]
        values = tiled(
            lambda x: compressor.analyse(x[:, :channels], level, None if roi is None else x[:, channels:]),
            latents if roi is None else torch.cat([latents, roi], dim=1),
            tile=self.tile,
            margin=compressor.analysis_radius,
            cell_in=compressor.config.patch,
        )
        return self.bundle.coder.quantise(values, compressor.hyper_analyse(values, level), quality)

    @torch.inference_mode()
    def _look(
        self, pixels: Pixels, latents: Tensor, named: bool, roi: Roi = "auto"
    ) -> tuple[str | None, Tensor | None]:
        """What the captioner names, and the interest [1, 1, h, w] in [0, 1] of every latent position, None for all alike."""
        if roi is None or isinstance(roi, str):
            return self._seen(pixels, latents, named, located=roi is not None)
        if not self.bundle.config.compressor.step_octaves:
            raise SlimError(f"the bundle {self.bundle.config.name} has one step everywhere: it takes no roi")
        mask = np.asarray(roi, np.float32)
        if mask.ndim != 2 or not mask.size or not (mask.min() >= 0 and mask.max() <= 1):
            raise SlimError(
                f"roi is an array of shape {mask.shape}; give a mask of two axes with values in [0, 1]"
            )
        height, width = pixels.shape[:2]
        if mask.shape != (height, width):
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))
        rows, columns = latents.shape[2:]
        stride = self.bundle.latent_model.stride
        x = torch.tensor(mask, device=latents.device)[None, None]
        padding = (0, columns * stride - width, 0, rows * stride - height)
        interest = F.avg_pool2d(F.pad(x, padding, mode="replicate"), stride)
        return self._seen(pixels, latents, named, located=False)[0], interest

    def _seen(
        self, pixels: Pixels, latents: Tensor, named: bool, located: bool
    ) -> tuple[str | None, Tensor | None]:
        """What the captioner names, and where it sees it, where that is wanted and the bundle can tell."""
        config = self.bundle.config
        model = self.bundle.caption_model if named else None
        if model is not None:
            with self.bundle.parts.lock:
                return model(pixels), None
        located = bool(
            located and config.compressor.step_octaves and config.captioners and config.captioners[0].roi
        )
        if not (config.captioners and (named or located)):
            return None, None
        tagger = self.bundle.captioners[0]
        side = tagger.config.side
        # a whole factor of the reduction by averages: five times as fast, and as good for a tagger
        square = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, reducing_gap=1.0)
        logits, roi = tagger.look(_normalised(self._as_tensor(np.asarray(square))))
        if located and roi is not None:
            roi = F.interpolate(roi, latents.shape[2:], mode="bilinear").sigmoid()
        caption = tagger.name(logits, self.bundle.vocabulary)[0] if named else None
        return caption, roi if located else None

    @torch.inference_mode()
    def _caption_section(self, caption: str | None) -> bytes:
        return b"" if caption is None else encode_caption(caption, self.bundle.vocabulary)

    def _as_tensor(self, pixels: Pixels) -> Tensor:
        # the array's own order is channels-last, which the convolutions like best
        return torch.tensor(pixels).permute(2, 0, 1)[None].to(self.bundle.device)

    # ---- decoding ----------------------------------------------------------------------------------------------

    def decode(
        self,
        data: Source,
        steps: int | None = None,
        guidance: float | None = None,
        *,
        preset: str = "natural",
        max_pixels: int | None = None,
    ) -> Image.Image:
        """The picture of a ``.slim`` file (bytes or path), RGB, exactly of the original size.

        ``steps``: denoising steps, 0 = no diffusion (fastest), None = the bundle's default. ``guidance``: strength of caption
        guidance, 0 = off, None = the preset's; it acts only with ``steps`` > 0, a caption from the vocabulary, and up to a
        million pixels. ``preset``: "natural", for people and quick, or "machine", which lets the caption guide the picture
        towards what a classifier knows it by, at ten times the time.

        Raises ``FormatError``, ``VersionError``, ``ModelMismatchError`` (names the bundle that the file needs), or
        ``ImageError`` for a picture of more than ``max_pixels`` (default: Pillow's limit).
        """
        sampling = self.sampling(steps, guidance, preset)
        return self._pictures([self.decompress(data, max_pixels=max_pixels)], *sampling)[0]

    def sampling(
        self, steps: int | None = None, guidance: float | None = None, preset: str = "natural"
    ) -> tuple[int, float]:
        """Denoising steps and strength of caption guidance, the preset's where None; ``SlimError`` for what cannot be."""
        config = self.bundle.config
        if preset not in PRESETS:
            raise SlimError(f"preset is {preset!r}; give {' or '.join(PRESETS)}")
        steps = _whole_number("steps", config.steps if steps is None else steps, 0, MAX_STEPS)
        if guidance is None:
            guidance = config.machine_guidance if preset == "machine" else config.guidance
        if not (isinstance(guidance, (int, float)) and 0 <= guidance < float("inf")):
            raise SlimError(f"guidance is {guidance!r}; give a number from 0 up")
        if guidance and (reason := self.bundle.latent_model.guidance_unavailable):
            raise SlimError(
                f"guidance is {guidance}, but {reason}, text_scale, {config.text_scale:g} in {config.name}: leave guidance "
                "out, and set --text-scale of `slim bundle create` or text_scale in the bundle's config.json"
            )
        return (steps if config.enhancer is not None else 0), guidance

    def decode_latent(self, data: Source, *, max_pixels: int | None = None) -> Tensor:
        """The decompressed latent [C, h, w] of a ``.slim`` file, float32, without making a picture of it."""
        return self.decompress(data, max_pixels=max_pixels).latents[0]

    @torch.no_grad()
    def decompress(self, data: Source, *, max_pixels: int | None = None) -> Rough:
        """The decompressed latent of a ``.slim`` file with its header and caption: what enhancement starts from."""
        container, coded = self.read(data, max_pixels=max_pixels)
        latents = self.synthesise(coded, container.quality)
        caption = decode_caption(container.caption, self.bundle.vocabulary) if container.caption else None
        return Rough(
            latents, container, caption.text if caption else None, caption.index if caption else None
        )

    @torch.no_grad()
    def synthesise(self, coded: CodedLatent, quality: int) -> Tensor:
        """The decompressed latent [1, C, h, w], float32, of symbols that were quantised at a quality."""
        compressor = self.bundle.compressor
        level = compressor.level(torch.tensor([quality], device=self.bundle.device))
        return tiled(
            lambda x: compressor.synthesise(x, level),
            coded.values,
            tile=self.tile,
            margin=compressor.synthesis_radius,
            cell_out=compressor.config.patch,
        )

    @torch.inference_mode()
    def read(self, data: Source, *, max_pixels: int | None = None) -> tuple[Container, CodedLatent]:
        """Header and exact symbols of a ``.slim`` file, no network with floating point run."""
        container = unpack(read_source(data))
        if container.bundle_id.hex() != self.bundle.bundle_id:
            needed = container.bundle_id.hex()
            raise ModelMismatchError(
                f"the file was made with bundle {needed}, this codec holds {self.bundle.config.name} "
                f"({self.bundle.bundle_id}); load the bundle that made it",
                needed,
            )
        if container.caption:
            # an unknown tag is an error before any work
            decode_caption(container.caption, self.bundle.vocabulary)
        rows, columns = self._check_area(container.width, container.height, max_pixels)
        prior = self.bundle.config.compressor.prior
        longest = rows * columns * (prior.channels + prior.hyper_channels) * MAX_SYMBOL_BYTES
        if len(container.payload) > longest:
            raise FormatError(
                f"corrupt .slim file: {len(container.payload)} bytes of payload, a picture of "
                f"{container.width}x{container.height} has at most {longest}"
            )
        return container, self.bundle.coder.read(container.payload, rows, columns, container.quality)

    @property
    def cell(self) -> int:
        """Pixels a side of a coded position: 16 for slim-tiny."""
        return self.bundle.latent_model.stride * self.bundle.config.compressor.patch

    def _check_area(self, width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
        """Rows and columns of coded positions of a picture, or ``ImageError`` where they would be too many."""
        limit = pixel_limit(max_pixels)
        rows, columns = -(-height // self.cell), -(-width // self.cell)
        # a picture of a pixel's height costs as much as one of a cell's: memory follows the padded area
        padded = rows * columns * self.cell**2
        if limit is not None and (width * height > limit or padded > max(limit, SMALL_AREA)):
            raise ImageError(
                f"a picture of {width}x{height} pixels, {padded} with padding, is more than max_pixels={limit}; "
                "pass a larger max_pixels to allow it"
            )
        return rows, columns

    def _enhance(self, roughs: Sequence[Rough], steps: int, guidance: float) -> Tensor:
        """Enhanced latents [B, C, h, w] of decompressed ones of one size and quality."""
        from slimcodec.models.enhancer import guide_by_caption, seeded_noise

        model = self.bundle.latent_model
        quality = roughs[0].container.quality
        scale = self.bundle.config.text_scale
        text = model.embed_captions([rough.caption for rough in roughs])
        empty = model.embed_captions([None] * len(roughs)) if scale != 1.0 else text
        # the noise is part of the file's meaning: a file gives the same picture each time
        seeds = [zlib.crc32(rough.container.payload) for rough in roughs]
        noises = [seeded_noise(rough.latents.shape, seed) for rough, seed in zip(roughs, seeds, strict=True)]
        latents = blended(
            lambda latents, noise: model.enhance(latents, quality, steps, noise, text, empty, scale),
            torch.cat([rough.latents for rough in roughs]),
            torch.cat(noises).to(self.bundle.device),
            tile=model.enhancer_tile or self.tile,
        )
        small = latents.shape[2] * latents.shape[3] <= GUIDED_POSITIONS
        if not (guidance and small and self.bundle.captioners):
            return latents
        lost = model.error_scale(quality)

        def guided(latents: Tensor, tag: int | None, seed: int) -> Tensor:
            if tag is None:
                return latents
            return guide_by_caption(latents, tag, model.decode, self.bundle.captioners, lost, guidance, seed)

        tags = [rough.tag for rough in roughs]
        return torch.cat([guided(*one) for one in zip(latents.split(1), tags, seeds, strict=True)])

    def _pictures(self, roughs: Sequence[Rough], steps: int, guidance: float) -> list[Image.Image]:
        """The pictures of decompressed latents of one size, and with steps of one quality."""
        latents = (
            self._enhance(roughs, steps, guidance)
            if steps
            else torch.cat([rough.latents for rough in roughs])
        )
        return self._decoded(latents, [(rough.container.width, rough.container.height) for rough in roughs])

    def picture(self, latent: Tensor, size: tuple[int, int]) -> Image.Image:
        """The picture of a latent [C, h, w], as ``latents`` and ``decode_latent`` give it, of a size (width, height).

        Raises ``SlimError`` for a size beyond what the latent covers.
        """
        width, height = size
        most = (
            latent.shape[2] * self.bundle.latent_model.stride,
            latent.shape[1] * self.bundle.latent_model.stride,
        )
        if not (0 < width <= most[0] and 0 < height <= most[1]):
            raise SlimError(
                f"size is {width}x{height}; the latent covers {most[0]}x{most[1]} pixels (width x height)"
            )
        return self._decoded(latent[None].to(self.bundle.device), [size])[0]

    @torch.inference_mode()
    def _decoded(self, latents: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
        model = self.bundle.latent_model

        def pixels(x: Tensor) -> Tensor:
            return model.decode(x).add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)

        decoded = tiled(pixels, latents, tile=self.tile, margin=model.decoder_radius, cell_out=model.stride)
        arrays = decoded.permute(0, 2, 3, 1).cpu()
        return [
            Image.fromarray(array[:height, :width].contiguous().numpy())
            for array, (width, height) in zip(arrays, sizes, strict=True)
        ]


def _normalised(x: Tensor) -> Tensor:
    """Pixels 0..255 as -1..1, float32."""
    return x.float().div_(127.5).sub_(1)


def _whole_number(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= value <= high:
        return int(value)
    raise SlimError(f"{name} is {value!r}; give a whole number from {low} to {high}")


def _largest_that_fits(file: Callable[[int], bytes], limit: int) -> bytes:
    """The file of the largest quality with at most ``limit`` bytes, by bisection (sizes grow with quality)."""
    best = file(1)
    if len(best) > limit:
        raise SlimError(
            f"no quality fits in {limit} bytes: quality 1 takes {len(best)}; allow more, or shrink the picture"
        )
    low, high = 1, 101
    while high - low > 1:
        middle = (low + high) // 2
        made = file(middle)
        if len(made) <= limit:
            low, best = middle, made
        else:
            high = middle
    return best


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The type that the networks run fastest in: bfloat16 where the processor multiplies it natively, else float32."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if torch.device(device).type == "cpu":
        capability: Any = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if capability.get("avx512_bf16") or capability.get("amx_bf16"):
            return torch.bfloat16
    return torch.float32


def load(
    source: str | Path | None = None,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    base: str | Path | None = None,
    offload: bool = False,
) -> Codec:
    """A codec with a bundle: the embedded slim-tiny (None), a bundle folder, or a Hugging Face hub id.

    ``base``: a folder in which the pretrained model that a bundle names is looked for first (also: variable SLIMCODEC_BASE).

    ``device``: "cpu" (default), "cuda", ...; ``dtype``: of the convolutional networks, by default the fastest on the device.
    The entropy stage is exact in every one of them: files are portable between devices and types.

    ``offload``: pretrained parts lie in the computer's memory and come to the device one at a time, for a GPU that does not hold
    them all; needs Accelerate, and the codec then serves one thread at a time.
    """
    device = device or "cpu"
    try:
        # the exact prior needs float64, which not every device has
        torch.zeros(1, dtype=torch.float64, device=device).sum().item()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise SlimError(
            f"device {device!r} cannot be used ({reason}); give cpu, or cuda on a machine with one"
        ) from error
    named = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype or fast_dtype(device)
    if not (isinstance(named, torch.dtype) and named.is_floating_point):
        raise SlimError(f"dtype is {dtype!r}; give float32, bfloat16 or float16")
    bundle = Bundle.from_pretrained(source, device, named, base)
    if offload:
        bundle.latent_model.offload()
    return Codec(bundle)


@lru_cache(maxsize=1)
def default_codec() -> Codec:
    """The embedded codec on the CPU, loaded once."""
    return load()


def encode(image: ImageLike, quality: int = 50, caption: str | None = "auto", **options: Any) -> bytes:
    """``Codec.encode`` with the embedded bundle."""
    return default_codec().encode(image, quality, caption, **options)


def decode(
    data: Source, steps: int | None = None, guidance: float | None = None, **options: Any
) -> Image.Image:
    """``Codec.decode`` with the embedded bundle."""
    return default_codec().decode(data, steps, guidance, **options)
