"""Many pictures through one codec: those of equal size go through the networks together, as a GPU wants it.

Symbols are coded for each picture alone, since that stage is exact and sequential. A batch changes the order of a network's sums:
a file equals that of ``Codec.encode`` but for symbols on the edge of rounding. A failure is given in its place as the exception
that it raised, and the rest goes on; so is an exception that is given in place of a picture or file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from slimcodec.codec import Codec
from slimcodec.container import Source
from slimcodec.decoder import Decompressed
from slimcodec.encoder import EFFORT, Request, Roi, whole_number
from slimcodec.errors import SlimError
from slimcodec.images import ImageLike, Pixels, padded_size

#: padded pixels of a picture up to which it shares a pass: a larger one fills a device alone
SHARED_AREA = 1 << 20
T = TypeVar("T")
R = TypeVar("R")


def encode_many(
    codec: Codec,
    images: Iterable[ImageLike | Exception],
    quality: int = 50,
    caption: str | None = "auto",
    *,
    batch_size: int = 8,
    roi: Roi = "auto",
    effort: int = EFFORT,
    target_bytes: int | None = None,
    target_bpp: float | None = None,
    max_pixels: int | None = None,
) -> Iterator[bytes | Exception]:
    """The ``.slim`` file of every picture, in order, or what was wrong with it; at most ``batch_size`` are held at a time.

    Arguments are those of ``Codec.encode``. Pictures of a batch whose sizes are equal once padded to whole coded positions
    share a pass; those of more than a million pixels go alone. Raises ``SlimError`` for an argument out of range.
    """
    request = Request(quality, caption, target_bytes, target_bpp, roi, effort)
    encoder = codec.encoder

    def encoded(chunk: list[ImageLike | Exception]) -> Iterator[bytes | Exception]:
        pictures = [attempt(codec.open, image, max_pixels) for image in chunk]

        def size(pixels: Pixels) -> Hashable:
            return _shared(codec, pixels.shape[0], pixels.shape[1])

        latents = _together(encoder.latents, pictures, size)
        captions = _together(lambda group: encoder.captions(group, caption), pictures, size)
        for pixels, latent, text in zip(pictures, latents, captions, strict=True):
            yield attempt(encoder.file, pixels, latent, text, request)

    return (file for chunk in chunks(images, batch_size) for file in encoded(chunk))


def decode_many(
    codec: Codec,
    files: Iterable[Source | Exception],
    steps: int | None = None,
    guidance: float | None = None,
    *,
    preset: str = "natural",
    guidance_steps: int | None = None,
    batch_size: int = 8,
    max_pixels: int | None = None,
) -> Iterator[Image.Image | Exception]:
    """The picture of every ``.slim`` file, in order, or what was wrong with it; at most ``batch_size`` are held at a time.

    Arguments are those of ``Codec.decode``. Files of a batch share a pass as in ``encode_many``, with denoising steps where
    their quality is equal too. Raises ``SlimError`` for an argument out of range.
    """
    sampling = codec.sampling(steps, guidance, preset, guidance_steps)
    decoder = codec.decoder

    def decoded(chunk: list[Source | Exception]) -> list[Image.Image | Exception]:
        def kind(file: Decompressed) -> Hashable:
            header = file.container
            # the noise schedule follows the quality
            return _shared(codec, header.height, header.width), header.quality if sampling.steps else None

        opened = [attempt(decoder.decompress, file, max_pixels) for file in chunk]
        return _together(lambda group: decoder.pictures(group, sampling), opened, kind)

    return (picture for chunk in chunks(files, batch_size) for picture in decoded(chunk))


def attempt(function: Callable[..., T], *arguments: Any) -> T | Exception:
    """What a function returns or raises; of an argument that is an exception already, that one, and no call."""
    for argument in arguments:
        if isinstance(argument, Exception):
            return argument
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001  whatever is wrong with this one, the next may be fine
        return error


def _shared(codec: Codec, height: int, width: int) -> Hashable:
    """What pictures must have in common to share a pass: the padded size, or a key of its own where that is large."""
    padded = padded_size(height, width, codec.cell)
    return object() if padded[0] * padded[1] > SHARED_AREA else padded


def _together(
    function: Callable[[list[T]], Sequence[R]], items: Sequence[T | Exception], key: Callable[[T], Hashable]
) -> list[R | Exception]:
    """``function`` of the items of equal ``key`` at once; where it fails, of each alone, so that one does not lose the others."""
    results: list[Any] = list(items)
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        if not isinstance(item, Exception):
            groups.setdefault(key(item), []).append(index)
    for indices in groups.values():
        group: Any = attempt(function, [results[index] for index in indices])
        if isinstance(group, Exception):
            alone = (attempt(lambda item: function([item])[0], results[index]) for index in indices)
            group = alone if len(indices) > 1 else [group]
        for index, result in zip(indices, group, strict=True):
            results[index] = result
    return results


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter. Raises ``SlimError`` for a size below 1, and for one item alone."""
    size = whole_number("batch_size", size, 1, 1 << 30)
    # the parts of a name, of bytes, or of an H x W x 3 array would be taken for items
    pixels = isinstance(items, np.ndarray) and items.ndim == 3 and items.shape[2] in (3, 4)
    if pixels or isinstance(items, str | bytes | bytearray | os.PathLike | Image.Image):
        raise SlimError(f"one {type(items).__name__} is no list of pictures or files; put it in a list")
    remaining = iter(items)
    return iter(lambda: list(islice(remaining, size)), [])
