"""The codec: pictures to ``.slim`` files and back with one bundle."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimcodec.container import Container, Source
from slimcodec.decoder import GUIDANCE_STEPS, Decoder, Sampling, crop
from slimcodec.encoder import EFFORT, Encoder, Request, Roi, whole_number
from slimcodec.errors import SlimError, needs
from slimcodec.images import ImageLike, Pixels, check_size, load_image
from slimcodec.models.bundle import Bundle
from slimcodec.models.latent_codec import CodedLatent, LatentCodec
from slimcodec.models.tiles import TILE

if TYPE_CHECKING:
    import torch

    from slimcodec.models.runtime import Runtime

#: most denoising steps that a caller may ask for
MAX_STEPS = 1000
#: what runs the networks
RUNTIMES = ("auto", "onnx", "torch")
#: what a decoded picture is for
PRESETS = ("natural", "machine")


class Codec:
    """Encodes and decodes pictures with one bundle; create it with ``slimcodec.load``.

    A codec holds no state between calls and may be used from several threads.
    """

    def __init__(self, bundle: Bundle, tile: int = TILE, runtime: Runtime | None = None) -> None:
        """``tile``: side, in latent positions, of the pieces in which a large picture is worked on.

        ``runtime``: torch by default.
        """
        if tile < 2:
            raise SlimError(f"tile is {tile}; give at least 2 latent positions")
        self.bundle, config = bundle, bundle.config.compressor
        if runtime is None:
            with needs("torch", "the runtime torch"):
                from slimcodec.models.networks import TorchRuntime

            runtime = TorchRuntime(bundle)
        self.runtime = runtime
        try:
            #: the exact entropy stage
            self.coder = LatentCodec(
                runtime.run, bundle.stored["prior"], config.prior, steps=bool(config.step_octaves)
            )
        except (KeyError, ValueError) as error:
            raise SlimError(f"the bundle's part prior does not fit its configuration: {error}") from error
        self.decoder = Decoder(bundle, self.runtime, self.coder, tile)
        self.encoder = Encoder(bundle, self.runtime, self.decoder)

    @property
    def cell(self) -> int:
        """Pixels a side of a coded position: 16 for slim-tiny."""
        return self.bundle.config.cell

    # ---- encoding ----------------------------------------------------------------------------------------------

    def encode(
        self,
        image: ImageLike,
        quality: int = 50,
        caption: str | None = "auto",
        *,
        roi: Roi = "auto",
        effort: int = EFFORT,
        target_bytes: int | None = None,
        target_bpp: float | None = None,
        max_pixels: int | None = None,
    ) -> bytes:
        """The bytes of a ``.slim`` file.

        ``image``: a PIL image, an [H, W, 3] uint8 array, a path, or the bytes of a picture file (see
        ``slimcodec.images.load_image``). ``quality``: 1 (smallest) to 100. ``caption``: "auto" (the bundle's captioner),
        None, or a text of at most 1024 bytes. ``roi``: the region of interest. "auto" is what the bundle's captioner
        sees, from quality 32 on. None is everywhere alike. A mask in [0, 1] covers the whole picture at any resolution.
        ``effort``: gradient steps by which rounding keeps what a classifier knows the picture by, 0 to 32; 0 is fastest,
        more keep more. ``target_bytes`` or ``target_bpp`` (bits per pixel of the original size) take the largest quality
        whose whole file fits, in place of ``quality``. It is found by bisection, since sizes grow with quality but for a few
        bytes.

        Raises ``ImageError`` for a picture that cannot be coded, ``SlimError`` for an argument out of range and for a target
        that no quality meets.
        """
        request = Request(quality, caption, target_bytes, target_bpp, roi, effort)
        pictures = [self.open(image, max_pixels)]
        (latent,) = self.encoder.latents(pictures)
        (text,) = self.encoder.captions(pictures, caption)
        return self.encoder.file(pictures[0], latent, text, request)

    def open(self, image: ImageLike, max_pixels: int | None = None) -> Pixels:
        """The pixels of a picture that can be encoded; raises ``ImageError`` for one that cannot."""
        pixels = load_image(image, max_pixels)
        check_size(pixels.shape[0], pixels.shape[1], self.cell, max_pixels)
        return pixels

    def quantise(
        self, image: ImageLike, quality: int = 50, *, roi: Roi = "auto", effort: int = EFFORT
    ) -> CodedLatent:
        """The symbols of a picture, their table indices and decoded values, as ``encode`` codes them."""
        return next(self.quantise_each(image, (quality,), roi=roi, effort=effort))

    def quantise_each(
        self, image: ImageLike, qualities: Iterable[int], *, roi: Roi = "auto", effort: int = EFFORT
    ) -> Iterator[CodedLatent]:
        """``quantise`` at several qualities; the picture's latent is computed once."""
        requests = [Request(quality, roi=roi, effort=effort) for quality in qualities]
        pixels = load_image(image)
        (latent,) = self.encoder.latents([pixels])
        tagged = self.encoder.tagged(pixels, effort)
        interest = self.encoder.interest(pixels, roi, tagged)
        evidence = self.encoder.evidence(pixels, effort, tagged)
        for request in requests:
            yield self.encoder.quantise(latent, request.quality, interest, evidence)

    def latents(self, image: ImageLike) -> Any:
        """The latent of a picture before compression, [C, h, w], float32: what ``decode_latent`` comes near to."""
        return self.runtime.own(self.encoder.latents([load_image(image)])[0][0])

    def bit_map(
        self, image: ImageLike, quality: int = 50, *, roi: Roi = "auto", effort: int = EFFORT
    ) -> NDArray[np.float32]:
        """Ideal bits at every coded position, [ceil(H/16), ceil(W/16)] for slim-tiny; their sum is about the payload."""
        return self.coder.bit_map(self.quantise(image, quality, roi=roi, effort=effort))

    # ---- decoding ----------------------------------------------------------------------------------------------

    def decode(
        self,
        data: Source,
        steps: int | None = None,
        guidance: float | None = None,
        *,
        preset: str = "natural",
        guidance_steps: int | None = None,
        max_pixels: int | None = None,
    ) -> Image.Image:
        """The picture of a ``.slim`` file (bytes or path), RGB, exactly of the original size.

        ``steps``: denoising steps, 0 = no diffusion (fastest), None = the bundle's default. ``guidance``: strength of caption
        guidance, 0 = off, None = the preset's, up to 1: more damages pictures. It acts where the file has a caption from the
        vocabulary. ``preset``: "natural", or "machine", which lets the caption guide the picture towards what a classifier knows
        it by: guided pixels follow the caption. ``guidance_steps``: gradient steps of that, 4 by default; more are better and
        slower.

        Raises ``FormatError``, ``VersionError``, ``ModelMismatchError`` (names the bundle that the file needs), or
        ``ImageError`` for a picture of more than ``max_pixels`` (default: Pillow's limit), and for a file that cannot be
        opened a ``SlimError`` that is the ``OSError`` of ``open`` too, such as ``FileNotFoundError``.
        """
        sampling = self.sampling(steps, guidance, preset, guidance_steps)
        return self.decoder.pictures([self.decoder.decompress(data, max_pixels)], sampling)[0]

    def sampling(
        self,
        steps: int | None = None,
        guidance: float | None = None,
        preset: str = "natural",
        guidance_steps: int | None = None,
    ) -> Sampling:
        """The preset's settings where an argument is None; ``SlimError`` for what cannot be."""
        config = self.bundle.config
        if preset not in PRESETS:
            raise SlimError(f"preset is {preset!r}; give {' or '.join(PRESETS)}")
        steps = whole_number("steps", config.steps if steps is None else steps, 0, MAX_STEPS)
        if guidance is None:
            guidance = config.machine_guidance if preset == "machine" else config.guidance
            if guidance_steps is not None and preset == "natural" and not guidance:
                raise SlimError(
                    f"guidance_steps is {guidance_steps}, but nothing guides: give guidance too, or the preset machine"
                )
        if not (isinstance(guidance, Real) and 0 <= guidance < float("inf")):
            raise SlimError(f"guidance is {guidance!r}; give a number from 0 up")
        if guidance and config.ldm and not self.bundle.can_guide:
            raise SlimError(
                f"guidance is {guidance}, but {config.name} holds no tagger with a linear map of its latents: leave it out, or make "
                "the bundle again with slim-tiny's captioner. What acts here is classifier-free guidance, text_scale, "
                f"{config.text_scale:g} in {config.name}: set --text-scale of `slim bundle create` or text_scale in config.json"
            )
        if steps and config.ldm and config.enhancer is None:
            raise SlimError(
                f"steps is {steps}, but {config.name} stands on an autoencoder without a denoiser: give steps 0"
            )
        guidance_steps = GUIDANCE_STEPS if guidance_steps is None else guidance_steps
        count = whole_number("guidance_steps", guidance_steps, 1, MAX_STEPS)
        steps = steps if config.enhancer else 0
        return Sampling(steps, float(guidance) if self.bundle.can_guide else 0.0, count)

    def decode_latent(self, data: Source, *, max_pixels: int | None = None) -> Any:
        """The decompressed latent [C, h, w] of a ``.slim`` file, float32, without making a picture of it.

        A tensor on the codec's device where torch is the runtime, else an array.
        """
        return self.runtime.own(self.decoder.decompress(data, max_pixels).latents[0])

    def read(self, data: Source, *, max_pixels: int | None = None) -> tuple[Container, CodedLatent]:
        """Header and exact symbols of a ``.slim`` file, no network with floating point run."""
        container, _, coded = self.decoder.read(data, max_pixels)
        return container, coded

    def picture(self, latent: Any, size: tuple[int, int]) -> Image.Image:
        """The picture of a latent [C, h, w], as ``latents`` and ``decode_latent`` give it, of a size (width, height).

        Raises ``SlimError`` for a size beyond what the latent covers.
        """
        width, height = size
        stride = self.bundle.config.stride
        most_width, most_height = latent.shape[2] * stride, latent.shape[1] * stride
        if not (0 < width <= most_width and 0 < height <= most_height):
            raise SlimError(
                f"size is {width}x{height}; the latent covers {most_width}x{most_height} pixels (width x height)"
            )
        array = np.asarray(latent.detach().float().cpu() if hasattr(latent, "cpu") else latent, np.float32)
        return crop(self.decoder.pixels(array[None]), [size])[0]


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The type that the networks run fastest in: bfloat16 on GPUs that have it and on processors with AMX, else float32."""
    import torch

    kind, fast = torch.device(device).type, False
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported()
    elif kind == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities: Any = torch.cpu.get_capabilities()
        # with AVX-512 alone it is slower than float32: docs/decisions.md
        fast = bool(capabilities.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def load(
    source: str | Path | None = None,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    base: str | Path | None = None,
    offload: bool = False,
    runtime: str = "auto",
) -> Codec:
    """A codec with a bundle: the embedded slim-tiny (None), a bundle folder, or a Hugging Face hub id.

    ``device``: "cpu" (default), "cuda", ...; ``dtype``: of the convolutional networks, by default the fastest on the device.
    Files are portable between devices, types and runtimes. ``base``: a folder in which the pretrained model that a bundle names is
    looked for first (also: variable SLIMCODEC_BASE). ``offload``: pretrained parts come to the device one at a time, for a GPU that
    does not hold them all; needs Accelerate, and the codec then serves one thread at a time.

    ``runtime``: "onnx" (ONNX Runtime on the processor, float32, no torch), "torch", or "auto": torch where a device, a type,
    ``offload`` or a pretrained model asks for it, where it is imported already, and where a bundle holds no graphs.
    """
    if runtime not in RUNTIMES:
        raise SlimError(f"runtime is {runtime!r}; give {', '.join(RUNTIMES)}")
    bundle = Bundle.from_pretrained(source, base=base)
    plain = (device or "cpu") == "cpu" and dtype in (None, "float32") and not (offload or bundle.references())
    if runtime == "onnx" and not plain:
        raise SlimError(
            "the runtime onnx runs bundles of our own networks on the processor in float32: leave out device, dtype and "
            "offload, or give the runtime torch"
        )
    quick = plain and dtype is None and sys.modules.get("torch") is None and bundle.graphs
    if runtime == "onnx" or (runtime == "auto" and quick):
        return Codec(bundle, runtime=bundle.onnx)
    with needs("torch", "the runtime torch"):
        bundle.place(device or "cpu", usable_dtype(device or "cpu", dtype))
    if offload:
        bundle.latent_model.offload()
    return Codec(bundle)


def usable_dtype(device: str, dtype: torch.dtype | str | None) -> torch.dtype:
    """The type to run in on a device, by default the fastest; ``SlimError`` where either cannot be."""
    import torch

    try:
        # the exact prior needs float64, which not every device has: Apple's mps has none
        torch.zeros(1, dtype=torch.float64, device=device).sum().item()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise SlimError(
            f"device {device!r} cannot be used ({reason}); give cpu, or cuda on a machine with one"
        ) from error
    named = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype or fast_dtype(device)
    if not (isinstance(named, torch.dtype) and named.is_floating_point):
        raise SlimError(f"dtype is {dtype!r}; give float32, bfloat16 or float16")
    return named


_loaded: dict[tuple[Any, ...], Codec] = {}
_loading = threading.RLock()


def default_codec(
    source: str | Path | None = None, device: str | None = None, runtime: str = "auto"
) -> Codec:
    """The codec of ``load``, by default the embedded one on the CPU, loaded once in a process, whatever the thread."""
    # a forked process inherits codecs whose threads and device handles stayed behind: it loads its own
    key = (os.getpid(), source, device, runtime)
    with _loading:
        if key not in _loaded:
            _loaded[key] = load(source, device, runtime=runtime)
        return _loaded[key]


def _renew_lock() -> None:
    # another thread of the parent may have held it
    global _loading
    _loading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def encode(image: ImageLike, quality: int = 50, caption: str | None = "auto", **options: Any) -> bytes:
    """``Codec.encode`` with the embedded bundle."""
    return default_codec().encode(image, quality, caption, **options)


def decode(
    data: Source, steps: int | None = None, guidance: float | None = None, **options: Any
) -> Image.Image:
    """``Codec.decode`` with the embedded bundle."""
    return default_codec().decode(data, steps, guidance, **options)
