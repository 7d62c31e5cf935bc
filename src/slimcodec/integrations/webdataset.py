"""Pictures in WebDataset shards: a handler that decodes ``.slim`` members, and an encoder for ``TarWriter``.

photos = wds.WebDataset("shards-{000..009}.tar").decode(slimcodec_handler)
wds.TarWriter("out.tar", encoder=slimcodec_encoder(quality=40)).write({"__key__": "1", "slim": image, "cls": 7})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from slimcodec.codec import default_codec
from slimcodec.errors import needs
from slimcodec.integrations.tensors import PictureReader

with needs("webdataset", "a tar shard"):
    from webdataset.writer import default_handlers, encode_based_on_extension


def slimcodec_handler(key: str, data: bytes) -> Any:
    """A member as WebDataset's decoder asks for it: the PIL image of a ``.slim`` file, None for any other member."""
    return _decode(PictureReader(), key, data)


def handler(**reading: Any) -> Callable[[str, bytes], Any]:
    """``slimcodec_handler`` with the settings of ``PictureReader``: ``handler(output="latent")``."""
    return partial(_decode, PictureReader(**reading))


def _decode(reader: PictureReader, key: str, data: bytes) -> Any:
    return reader(data) if key.lower().endswith(".slim") else None


def slimcodec_encoder(
    *, model: str | None = None, device: str | None = None, **options: Any
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """An encoder for ``webdataset.TarWriter``: pictures at keys ``slim`` and ``*.slim``, all else as WebDataset encodes it.

    A picture is anything that ``Codec.encode`` takes but the bytes of a file: those are stored as they are. ``options`` are those
    of ``Codec.encode``, ``model`` and ``device`` those of ``slimcodec.load``.
    """

    def encode(picture: Any) -> bytes:
        return default_codec(model, device).encode(picture, **options)

    handlers = {**default_handlers, "slim": encode}

    def encoded(sample: Mapping[str, Any]) -> dict[str, Any]:
        # WebDataset stores text as it is, so the name of a picture too
        texts = ((key, value) for key, value in sample.items() if isinstance(value, str))
        named = {key: encode(value) for key, value in texts if f".{key}".lower().endswith(".slim")}
        return encode_based_on_extension({**sample, **named}, handlers)

    return encoded
