"""slimcodec: image compression for machines, with an exact decoder and a picture that people can look at.

The public names are ``load``, ``encode``, ``decode``, ``inspect`` and ``Codec``, the functions for tensors and arrays
(``decode_image`` and its like), and ``slimcodec.integrations``; everything else may move.
Importing this package is cheap: numpy and Pillow come with the first codec, torch where its runtime or denoising needs it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from slimcodec.container import SlimInfo, inspect
from slimcodec.errors import FormatError, ImageError, ModelMismatchError, SlimError, VersionError

__version__ = "0.2.0"

# ONNX Runtime reports each session to its makers, and keeps an id of the machine, unless this is set before it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from slimcodec.codec import Codec, decode, encode, load
    from slimcodec.integrations.tensors import (
        decode_array,
        decode_arrays,
        decode_image,
        decode_images,
        encode_image,
    )

__all__ = [
    "Codec",
    "FormatError",
    "ImageError",
    "ModelMismatchError",
    "SlimError",
    "SlimInfo",
    "VersionError",
    "__version__",
    "decode",
    "decode_array",
    "decode_arrays",
    "decode_image",
    "decode_images",
    "encode",
    "encode_image",
    "inspect",
    "load",
]


def __getattr__(name: str) -> Any:
    # PEP 562: a codec's libraries take a while to import, and reading a header needs none of them
    if name in {"Codec", "decode", "encode", "load"}:
        from slimcodec import codec

        return getattr(codec, name)
    if name in __all__:
        from slimcodec.integrations import tensors

        return getattr(tensors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
