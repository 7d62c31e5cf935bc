"""A column of pictures for Hugging Face ``datasets``, stored as .slim files.

import slimcodec.integrations.datasets      # makes the feature known; before load_dataset
photos = photos.cast_column("image", SlimImage())
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from slimcodec.codec import default_codec
from slimcodec.container import is_slim
from slimcodec.errors import needs, opening
from slimcodec.integrations.tensors import PictureReader

with needs("datasets", "SlimImage"):
    import datasets
    from datasets.features.features import register_feature


@dataclass
class SlimImage(datasets.Image):  # type: ignore[misc]
    """A feature whose pictures are stored as .slim files and decoded when a row is read.

    A picture that is put in (a PIL image, an [H, W, 3] uint8 array, or the bytes or path of a picture file) is encoded with
    ``quality`` and the embedded caption; a .slim file stays as it is, so that ``save_to_disk``, parquet and ``push_to_hub`` keep
    its bytes. ``cast_column`` encodes nothing: pictures of other formats in the column stay, and are read as they are.

    ``output``, ``steps``, ``model`` and ``device``: as of ``PictureReader``. With ``decode=False`` a row holds ``bytes`` and
    ``path``. Errors are those of ``Codec.encode`` and ``Codec.decode``.
    """

    quality: int = 50
    output: str = "pil"
    steps: int | None = 0
    model: str | None = None
    device: str | None = None
    dtype: ClassVar[str] = "PIL.Image.Image"
    _type: str = field(default="SlimImage", init=False, repr=False)

    def __post_init__(self) -> None:
        self._reader()  # an output that is unknown is an error here

    def encode_example(self, value: Any) -> dict[str, Any]:
        """The stored form of a picture, ``bytes`` and ``path``."""
        if isinstance(value, list):
            value = np.asarray(value)
            # numbers of Python have no type: those that are no pixel values are refused as an array of them is
            if value.dtype.kind in "iu" and 0 <= value.min(initial=0) <= value.max(initial=0) <= 255:
                value = value.astype(np.uint8)
        if isinstance(value, Image.Image | np.ndarray):
            return {"bytes": self._encoded(value), "path": None}
        stored: dict[str, Any] = super().encode_example(value)
        with opening():
            data = stored["bytes"] or Path(stored["path"]).read_bytes()
        if is_slim(data):
            return {**stored, "bytes": data}
        name = stored["path"] and Path(stored["path"]).with_suffix(".slim").name
        return {"bytes": self._encoded(data), "path": name}

    def decode_example(self, value: Any, token_per_repo_id: dict[str, Any] | None = None) -> Any:
        """The picture of a row, as ``output`` says."""
        if not isinstance(value, dict):
            return value
        return self._reader()(value["path"] if value["bytes"] is None else value["bytes"])

    def _encoded(self, picture: Any) -> bytes:
        return default_codec(self.model, self.device).encode(picture, self.quality)

    def _reader(self) -> PictureReader:
        return PictureReader(self.output, self.steps, self.model, self.device)


register_feature(SlimImage, "SlimImage")
