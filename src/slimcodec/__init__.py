"""slimcodec: image compression for machines, with an exact decoder and a picture that people can look at.

The five public names are ``load``, ``encode``, ``decode``, ``inspect`` and ``Codec``; everything else may move.
Importing this package is cheap: torch is loaded when a codec is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slimcodec.container import SlimInfo, inspect
from slimcodec.errors import FormatError, ImageError, ModelMismatchError, SlimError, VersionError

__version__ = "0.2.0"

if TYPE_CHECKING:
    from slimcodec.codec import Codec, decode, encode, load

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
    "encode",
    "inspect",
    "load",
]


def __getattr__(name: str) -> Any:
    # PEP 562: torch takes a second to import, and reading a header needs none of it
    if name in {"Codec", "decode", "encode", "load"}:
        from slimcodec import codec

        return getattr(codec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
