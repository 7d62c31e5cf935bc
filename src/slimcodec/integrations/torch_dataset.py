"""A folder of .slim files as a torch data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

if TYPE_CHECKING:
    from slimcodec.codec import Codec


class SlimFolder(Dataset[Any]):
    """The pictures, or the decompressed latents, of .slim files.

    ``root`` is a folder, searched recursively, or a list of files. If the folder's files all lie in
    subfolders, the first level of these are the classes, as in torchvision's ``ImageFolder``: sorted by
    name in ``classes`` and ``class_to_idx``, and an item is ``(image, class_index)``. Otherwise an item is
    the image.

    An image is an RGB PIL image of the original size, decoded with ``steps`` denoising steps (0: fastest,
    None: the bundle's default); with ``return_latent`` it is what ``Codec.decode_latent`` returns instead,
    a float tensor ``[C, h, w]``, and no picture is made. ``transform`` is applied to either. ``model`` and
    ``device`` are those of ``slimcodec.load``.

    The codec is loaded at the first item, once in each process, so that the workers of a ``DataLoader`` can
    be forked or spawned and the data set pickled. Raises ``FileNotFoundError`` if there is no file,
    ``ValueError`` if only some files lie in subfolders; an item raises what ``Codec.decode`` does.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        transform: Callable[[Any], Any] | None = None,
        return_latent: bool = False,
        steps: int | None = 0,
        model: str | None = None,
        device: str = "cpu",
    ) -> None:
        names: list[str] = []
        if isinstance(root, str | os.PathLike):
            self.files = _search(Path(root))
            names = _class_names(Path(root), self.files)
        else:
            self.files = [Path(file) for file in root]
        if not self.files:
            raise FileNotFoundError(f"no .slim file in {root}")
        self.classes = sorted(set(names))
        self.targets = [self.classes.index(name) for name in names]
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}
        self.transform, self.return_latent, self.steps = transform, return_latent, steps
        self.model, self.device = model, device
        self._codec: Codec | None = None
        self._codec_process = 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        codec, file = self._load(), self.files[index]
        item: Any = codec.decode_latent(file) if self.return_latent else codec.decode(file, steps=self.steps)
        if self.transform is not None:
            item = self.transform(item)
        return (item, self.targets[index]) if self.classes else item

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_codec": None}

    def _load(self) -> Codec:
        # A forked process inherits a codec whose threads and device handles stayed behind: it loads its own.
        if self._codec is None or self._codec_process != os.getpid():
            import slimcodec

            self._codec = slimcodec.load(self.model, device=self.device)
            self._codec_process = os.getpid()
        return self._codec


def _search(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder")
    return sorted(path for path in root.rglob("*") if path.suffix.lower() == ".slim" and path.is_file())


def _class_names(root: Path, files: Sequence[Path]) -> list[str]:
    """The class of every file, the folder below ``root`` that it lies in; [] where all lie in ``root`` itself."""
    parts = [file.relative_to(root).parts for file in files]
    lone = [file for file, names in zip(files, parts, strict=True) if len(names) == 1]
    if lone and len(lone) < len(files):
        raise ValueError(f"{lone[0]} lies beside class folders; move it into one, or pass a list of files")
    return [] if lone else [names[0] for names in parts]
