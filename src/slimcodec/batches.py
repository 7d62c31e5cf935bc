"""Many pictures through one codec: those of equal size go through the networks together, as a GPU wants it.

Latents, captions by a pretrained model, enhancement and decoding are computed for a batch at once; symbols are coded for each
picture alone, since that stage is exact and sequential. A batch changes the order of a network's sums, no more: a file made
in a batch is a valid file, the same as ``Codec.encode`` makes but for symbols that lay on the edge of rounding, and a file
has the same symbols and, nearly, the same picture however it is decoded.

What fails is given in its place as the exception that it raised, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from PIL import Image

from slimcodec.codec import Codec, Pixels, Request, Roi, Rough
from slimcodec.container import Source
from slimcodec.errors import SlimError
from slimcodec.images import ImageLike

#: padded pixels of a picture up to which it shares a pass: a larger one fills a device alone
SHARED_AREA = 1 << 20
T = TypeVar("T")
R = TypeVar("R")


def encode_many(
    codec: Codec,
    images: Iterable[ImageLike],
    quality: int = 50,
    caption: str | None = "auto",
    *,
    batch_size: int = 8,
    roi: Roi = "auto",
    target_bytes: int | None = None,
    target_bpp: float | None = None,
    max_pixels: int | None = None,
) -> Iterator[bytes | Exception]:
    """The ``.slim`` file of every picture, in order, or what was wrong with it; at most ``batch_size`` are held at a time.

    Arguments are those of ``Codec.encode``. Pictures of a batch whose sizes are equal once padded to whole coded positions
    share a pass; those of more than a million pixels go alone. Raises ``SlimError`` for an
    argument out of range.
    """
    request = Request(quality, caption, target_bytes, target_bpp, roi)
    chunks = _chunks(images, batch_size)
    return (file for chunk in chunks for file in _encoded(codec, chunk, request, max_pixels))


def decode_many(
    codec: Codec,
    files: Iterable[Source],
    steps: int | None = None,
    guidance: float | None = None,
    *,
    preset: str = "natural",
    batch_size: int = 8,
    max_pixels: int | None = None,
) -> Iterator[Image.Image | Exception]:
    """The picture of every ``.slim`` file, in order, or what was wrong with it; at most ``batch_size`` are held at a time.

    Arguments are those of ``Codec.decode``. Files of a batch share a pass as in ``encode_many``, with denoising steps where
    their quality is equal too. Raises ``SlimError`` for an argument out of range.
    """
    sampling = codec.sampling(steps, guidance, preset)
    chunks = _chunks(files, batch_size)
    return (picture for chunk in chunks for picture in _decoded(codec, chunk, *sampling, max_pixels))


def attempt(function: Callable[..., T], *arguments: Any) -> T | Exception:
    """What a function returns or raises; of an argument that is an exception already, that one, and no call."""
    for argument in arguments:
        if isinstance(argument, Exception):
            return argument
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001  whatever is wrong with this one, the next may be fine
        return error


def _encoded(
    codec: Codec, images: Sequence[ImageLike], request: Request, max_pixels: int | None
) -> Iterator[bytes | Exception]:
    opened = [attempt(codec.open, image, max_pixels) for image in images]

    def key(pixels: Pixels) -> Hashable:
        height, width = pixels.shape[:2]
        return _key(codec, -(-height // codec.cell), -(-width // codec.cell))

    latents = _together(lambda group: list(codec._latents(*group).split(1)), opened, key)
    wanted: list[Request | Exception] = [request] * len(opened)
    model = codec.bundle.caption_model if request.caption == "auto" else None
    if model is not None:
        with codec.bundle.parts.lock:
            captions = _together(model.captions, opened, key)
        wanted = [attempt(_captioned, request, caption) for caption in captions]
    for arguments in zip(opened, latents, wanted, strict=True):
        yield attempt(codec._file, *arguments)


def _captioned(request: Request, caption: str | None) -> Request:
    return replace(request, caption=caption)


def _decoded(
    codec: Codec, files: Sequence[Source], steps: int, guidance: float, max_pixels: int | None
) -> list[Image.Image | Exception]:
    def read(file: Source) -> Rough:
        return codec.decompress(file, max_pixels=max_pixels)

    def key(rough: Rough) -> Hashable:
        patch = codec.bundle.config.compressor.patch
        rows, columns = (length // patch for length in rough.latents.shape[2:])
        # the schedule follows the quality
        return _key(codec, rows, columns), rough.container.quality if steps else None

    roughs = [attempt(read, file) for file in files]
    return _together(lambda group: codec._pictures(group, steps, guidance), roughs, key)


def _key(codec: Codec, rows: int, columns: int) -> Hashable:
    """What pictures of ``rows`` x ``columns`` coded positions must share to go together: themselves alone where large."""
    large = rows * columns * codec.cell**2 > SHARED_AREA
    return object() if large else (rows, columns)


def _together(
    function: Callable[[list[T]], Sequence[R]], items: Sequence[T | Exception], key: Callable[[T], Hashable]
) -> list[R | Exception]:
    """``function`` of the items of equal ``key`` at once; where it fails, of each alone, so that one does not lose the others."""
    results: list[Any] = list(items)
    groups: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        if not isinstance(item, Exception):
            groups.setdefault(key(item), []).append(place)
    for places in groups.values():
        made: Any = attempt(function, [results[place] for place in places])
        if isinstance(made, Exception):
            alone = (attempt(lambda one: function([one])[0], results[place]) for place in places)
            made = alone if len(places) > 1 else [made]
        for place, result in zip(places, made, strict=True):
            results[place] = result
    return results


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    if size < 1:
        raise SlimError(f"batch_size is {size}; give at least 1")
    remaining = iter(items)
    return iter(lambda: list(islice(remaining, size)), [])
