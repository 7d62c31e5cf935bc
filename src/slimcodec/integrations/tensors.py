"""Pictures as tensors and arrays, in the layouts of torchvision and numpy.

A tensor is uint8, [3, H, W], RGB; an array is uint8, [H, W, 3], RGB; both are contiguous, and 0 to 255. Every function may be
called from several threads: the codec is loaded once in each process and holds no state between calls. ``slimcodec.encode`` is
the encoder for arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slimcodec.batches import decode_many
from slimcodec.codec import Codec, default_codec
from slimcodec.container import Source, is_slim
from slimcodec.errors import ImageError, SlimError, needs, opening
from slimcodec.files import as_path, bytes_or_name
from slimcodec.images import Pixels, load_image

if TYPE_CHECKING:
    from torch import Tensor

#: what a ``PictureReader`` gives
OUTPUTS = ("pil", "numpy", "tensor", "latent")


def decode_image(
    src: Source | Tensor, device: str | None = None, *, codec: Codec | None = None, **options: Any
) -> Tensor:
    """The picture of a ``.slim`` file as a uint8 tensor [3, H, W] on ``device``.

    ``src``: path, URL, bytes, open binary file, or a uint8 tensor [N] of the file's bytes. ``device``: where the networks run and
    the tensor lies (default: that of ``codec``, else the CPU). ``codec``: by default the embedded one. ``options`` and errors are
    those of ``Codec.decode``; options equal to those of ``slimcodec.decode`` give the same pixels.
    """
    return decode_images([src], device, codec=codec, **options)[0]


def decode_images(
    srcs: Iterable[Source | Tensor], device: str | None = None, *, codec: Codec | None = None, **options: Any
) -> list[Tensor]:
    """``decode_image`` of many files, in order; those of one size pass the networks together.

    ``options`` are those of ``slimcodec.batches.decode_many``: ``batch_size`` is 8. Raises the first file's error.
    """
    codec = codec or default_codec(device=device)
    with needs("torch", "decode_image"):
        target = device or codec.bundle.parts.device
    return [as_tensor(array).to(target) for array in _decoded(srcs, codec, options)]


def decode_array(src: Source, *, codec: Codec | None = None, **options: Any) -> Pixels:
    """The picture of a ``.slim`` file as a uint8 array [H, W, 3]; arguments are those of ``decode_image``."""
    return decode_arrays([src], codec=codec, **options)[0]


def decode_arrays(srcs: Iterable[Source], *, codec: Codec | None = None, **options: Any) -> list[Pixels]:
    """The pictures of many ``.slim`` files as uint8 arrays [H, W, 3]; arguments are those of ``decode_images``."""
    return list(_decoded(srcs, codec or default_codec(), options))


def encode_image(picture: Tensor, *, codec: Codec | None = None, **options: Any) -> Tensor:
    """The bytes of a ``.slim`` file, a uint8 tensor [N] on the CPU, of a picture on any device.

    ``picture``: uint8 [3, H, W], or [1, H, W] of grey values. ``options`` are those of ``Codec.encode``. Raises ``ImageError``
    for a tensor of another type or shape.
    """
    with needs("torch", "encode_image"):
        import torch
    if not isinstance(picture, torch.Tensor):
        raise ImageError(f"{type(picture).__name__} is no tensor; slimcodec.encode takes arrays and files")
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] not in (1, 3):
        raise ImageError(
            f"a tensor of {picture.dtype} and shape {tuple(picture.shape)} is not a picture; pass uint8 [3, H, W], for instance "
            "(x * 255).round().clamp(0, 255).to(torch.uint8) where x is 0..1"
        )
    array = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()
    data = (codec or default_codec()).encode(array, **options)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _decoded(srcs: Iterable[Source | Tensor], codec: Codec, options: dict[str, Any]) -> Iterator[Pixels]:
    for picture in decode_many(codec, map(_source, srcs), **options):
        if isinstance(picture, Exception):
            raise picture
        yield np.array(picture)


def _source(src: Any) -> Source:
    # whoever has a tensor has imported torch
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(src, torch.Tensor):
        return src
    if str(src.dtype) != "torch.uint8" or src.ndim != 1:
        raise SlimError(
            f"a tensor of {src.dtype} and shape {tuple(src.shape)} is no file; pass its bytes, uint8 [N]"
        )
    return src.cpu().numpy().tobytes()


def _read(source: Source) -> bytes:
    source = bytes_or_name(source, SlimError)
    if isinstance(source, bytes):
        return source
    with opening():
        return as_path(source).read_bytes()


def as_tensor(pixels: Pixels) -> Tensor:
    """The tensor [3, H, W] of an array [H, W, 3]."""
    with needs("torch", "a tensor"):
        import torch
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class PictureReader:
    """Files to what a training loop takes: the same settings in every integration; picklable.

    ``output``: "pil", "numpy" [H, W, 3] uint8, "tensor" [3, H, W] uint8, or "latent" [C, h, w] float32, the decompressed latent
    without a picture made of it; a tensor where torch runs the networks. ``steps``: denoising steps, 0 is fastest, None the bundle's default. ``model`` and ``device``:
    as of ``slimcodec.load``; the codec is loaded at the first file, once in each process.

    A file of another format is read as ``slimcodec.images.load_image`` does; its latent is the one before compression.
    """

    output: str = "pil"
    steps: int | None = 0
    model: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise SlimError(f"output is {self.output!r}; give one of {', '.join(OUTPUTS)}")

    def __call__(self, source: Source) -> Any:
        """What the file holds. Raises as ``Codec.decode`` and ``load_image`` do."""
        return self.many([source])[0]

    def many(self, sources: Sequence[Source]) -> list[Any]:
        """What each file holds, in order; pictures of one size pass the networks together."""
        codec = default_codec(self.model, self.device)
        files = list(map(_read, sources))
        if self.output == "latent":
            return [codec.decode_latent(file) if is_slim(file) else codec.latents(file) for file in files]
        coded = iter(_decoded([file for file in files if is_slim(file)], codec, {"steps": self.steps}))
        return [self._as_output(next(coded) if is_slim(file) else load_image(file)) for file in files]

    def _as_output(self, pixels: Pixels) -> Any:
        if self.output == "pil":
            from PIL import Image

            return Image.fromarray(pixels)
        return pixels if self.output == "numpy" else as_tensor(pixels)
