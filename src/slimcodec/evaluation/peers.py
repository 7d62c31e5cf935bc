"""The codecs beside SLIM, through one small interface: Pillow's own, its plugins, and any command."""

from __future__ import annotations

import importlib
import io
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from slimcodec.data.photos import Photo
from slimcodec.encoder import largest_that_fits
from slimcodec.errors import SlimError
from slimcodec.images import Pixels, as_file

#: seconds after which a command counts as stuck
PATIENCE = 600


@dataclass(frozen=True)
class Peer:
    """A format that Pillow writes, by itself or with a plugin.

    ``settings``: arguments of ``Image.save`` beside the quality; ``qualities`` cover about 0.05 to 1 bpp; ``library``: its name
    in ``PIL.features``; ``plugin``: module and package.
    """

    format: str
    settings: dict[str, Any]
    qualities: tuple[int, ...]
    library: str
    plugin: tuple[str, str] | None = None

    def encode(self, photo: Photo, quality: int) -> bytes:
        options = {"quality_layers": [quality]} if self.format == "JPEG2000" else {"quality": quality}
        return as_file(photo.pixels, self.format, **options, **self.settings)

    def decode(self, data: bytes) -> Pixels:
        with Image.open(io.BytesIO(data), formats=[self.format]) as picture:
            return np.asarray(picture.convert("RGB"))

    def describe(self) -> dict[str, Any]:
        """Library's version and the arguments of ``Image.save``, q standing for the quality."""
        if self.plugin is None:
            library = f"Pillow, {self.library} {features.version(self.library)}"
        else:
            module, package = self.plugin
            library = f"{package} {version(package)}"
            if module == "pillow_heif":
                info = importlib.import_module(module).libheif_info()
                library += f", libheif {info['libheif']}, {info['HEIF']}"
        quality = "quality_layers" if self.format == "JPEG2000" else "quality"
        return {"version": library, "settings": {quality: "q", **self.settings}}


JPEG = {"optimize": True, "progressive": True, "subsampling": "4:2:0"}
#: bare codestreams of JPEG 2000: the JP2 boxes around them are 85 bytes that no decoder needs
JPEG2000 = {"quality_mode": "rates", "irreversible": True, "mct": 1, "no_jp2": True}
AVIF, AVIF_444 = ({"speed": 6, "max_threads": 1, "subsampling": chroma} for chroma in ("4:2:0", "4:4:4"))
JXL = {"effort": 7, "num_threads": 1}
#: quality of JPEG 2000 is the compression ratio, of the others what the library calls quality, 0 or 1..100
PEERS = {
    "jpeg": Peer("JPEG", JPEG, (1, 5, 10, 15, 25, 45), "jpg"),
    "jpeg2000": Peer("JPEG2000", JPEG2000, (800, 400, 200, 100, 50, 25), "jpg_2000"),
    "webp": Peer("WEBP", {"method": 6}, (0, 2, 7, 20, 40, 60), "webp"),
    "avif": Peer("AVIF", AVIF, (0, 10, 20, 30, 40, 52), "avif"),
    "avif-444": Peer("AVIF", AVIF_444, (0, 10, 20, 30, 40, 52), "avif"),
    "jxl": Peer("JXL", JXL, (1, 7, 20, 35, 50, 65), "", ("pillow_jxl", "pillow-jxl-plugin")),
    "heic": Peer("HEIF", {"chroma": 420}, (1, 10, 20, 25, 31, 41), "", ("pillow_heif", "pillow-heif")),
}


def load_peer(name: str) -> Peer:
    """A codec of ``PEERS``; ``SlimError`` where it is unknown or not installed, with what to install."""
    if name not in PEERS:
        raise SlimError(
            f"{name!r} is no codec of the benchmark; take slim, {', '.join(PEERS)}, or use --codec"
        )
    peer = PEERS[name]
    if peer.plugin is None:
        if not features.check(peer.library):
            raise SlimError(f"{name}: this Pillow has no {peer.format}; install the wheel from PyPI")
        return peer
    module, package = peer.plugin
    try:
        plugin = importlib.import_module(module)
    except ImportError as error:
        raise SlimError(f"{name}: needs {package}: pip install 'slimcodec[peers]'") from error
    if module == "pillow_heif":
        plugin.register_heif_opener()
    return peer


@dataclass(frozen=True)
class CommandCodec:
    """A codec run by two commands, each in a folder of its own: the decoder sees nothing but the encoder's file.

    ``{in}`` and ``{out}`` stand for files and ``{q}`` for the quality. Pictures are PNG files; the encoder's file ends in the
    codec's ``name``, for tools that look at the suffix.
    """

    name: str
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]

    @classmethod
    def parse(cls, template: str) -> CommandCodec:
        """The codec of ``name: enc COMMAND : dec COMMAND``; ``SlimError`` for another form or a missing program."""
        match = re.fullmatch(r"\s*([\w.+-]+)\s*:\s*enc\s+(.+?)\s+:\s*dec\s+(.+?)\s*", template, re.DOTALL)
        if not match:
            raise SlimError(
                f"{template!r} is no codec; write 'name: enc PROGRAM {{in}} {{out}} -q {{q}} : dec PROGRAM {{in}} {{out}}'"
            )
        name, *commands = match.groups()
        try:
            encoder, decoder = (tuple(shlex.split(command)) for command in commands)
        except ValueError as error:
            raise SlimError(f"codec {name}: {error} in its command") from error
        for command, marks in ((encoder, ("{in}", "{out}", "{q}")), (decoder, ("{in}", "{out}"))):
            missing = [mark for mark in marks if not any(mark in word for word in command)]
            if missing:
                raise SlimError(f"codec {name}: {' and '.join(missing)} missing in {shlex.join(command)!r}")
            if shutil.which(command[0]) is None:
                raise SlimError(f"codec {name}: no program {command[0]!r}; install it, or give its path")
        return cls(name, encoder, decoder)

    def encode(self, photo: Photo, quality: int) -> bytes:
        return self._run(self.encoder, as_file(photo.pixels), "photo.png", f"file.{self.name}", quality)

    def decode(self, data: bytes) -> Pixels:
        decoded = self._run(self.decoder, data, f"file.{self.name}", "decoded.png")
        with Image.open(io.BytesIO(decoded)) as picture:
            return np.asarray(picture.convert("RGB"))

    def describe(self) -> dict[str, Any]:
        """The commands; a program's version is whatever was installed."""
        return {"version": "", "settings": {"enc": shlex.join(self.encoder), "dec": shlex.join(self.decoder)}}

    def _run(
        self, command: tuple[str, ...], data: bytes, source: str, target: str, quality: int | None = None
    ) -> bytes:
        """The file ``target`` that a command writes for the file ``source`` with ``data``."""
        with tempfile.TemporaryDirectory() as folder:
            paths = Path(folder, source), Path(folder, target)
            paths[0].write_bytes(data)
            marks = {"{in}": str(paths[0]), "{out}": str(paths[1]), "{q}": str(quality)}
            words = [re.sub(r"\{(in|out|q)\}", lambda match: marks[match[0]], word) for word in command]
            try:
                done = subprocess.run(words, capture_output=True, timeout=PATIENCE, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise SlimError(f"codec {self.name}: {error}") from error
            if done.returncode or not paths[1].is_file():
                lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
                raise SlimError(
                    f"codec {self.name}: {command[0]} ended with status {done.returncode} "
                    f"and {'a' if paths[1].is_file() else 'no'} file: {lines[-1] if lines else 'no message'}"
                )
            return paths[1].read_bytes()


def best_that_fits(
    encode: Callable[[int], bytes], qualities: Sequence[int], target: int
) -> tuple[int, bytes]:
    """The best quality whose file has at most ``target`` bytes, else that of the smallest file, and the file.

    All whole numbers between the least and the greatest of ``qualities`` count, best being the end with the larger file.
    """
    low, high = min(qualities), max(qualities)
    smallest, largest = sorted((low, high), key=lambda quality: len(encode(quality)))
    if len(data := encode(smallest)) > target:
        return smallest, data
    # JPEG 2000's qualities are ratios: its files shrink as they grow
    sign = 1 if smallest <= largest else -1
    quality, data = largest_that_fits(
        lambda number: encode(sign * number), target, (sign * smallest, sign * largest)
    )
    return sign * quality, data
