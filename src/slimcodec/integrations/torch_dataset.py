"""A folder of .slim files as a torch data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slimcodec.errors import needs

with needs("torch", "SlimFolder"):
    from torch.utils.data import Dataset

from slimcodec.codec import default_codec
from slimcodec.files import visible_files


class SlimFolder(Dataset[Any]):
    """The pictures, or the decompressed latents, of .slim files.

    ``root`` is a folder, searched recursively through links, or a list of files. Names that begin with a dot are left out.
    If the folder's files all lie in subfolders, an item is ``(image, class_index)``, and ``classes``, ``class_to_idx``,
    ``targets`` and ``samples`` are those of torchvision's ``ImageFolder``: every subfolder is a class, in order of names. A
    class without a file is an error, as one split would else count otherwise than the next; with ``allow_empty`` it keeps its
    index. Override ``find_classes`` to choose classes. Otherwise an item is the image.

    An image is an RGB PIL image of the original size, decoded with ``steps`` denoising steps (0: fastest,
    None: the bundle's default); with ``return_latent`` it is what ``Codec.decode_latent`` returns instead,
    a float tensor ``[C, h, w]``, and no picture is made. ``transform`` is applied to either. ``model`` and
    ``device`` are those of ``slimcodec.load``.

    The codec is loaded at the first item, once in each process, so that the workers of a ``DataLoader`` can
    be forked or spawned and the data set pickled. Raises ``FileNotFoundError`` if there is no file or an empty
    class, ``ValueError`` if only some files lie in subfolders; an item raises what ``Codec.decode`` does.
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
        allow_empty: bool = False,
    ) -> None:
        self.classes: list[str] = []
        self.class_to_idx: dict[str, int] = {}
        self.targets: list[int] = []
        if isinstance(root, str | os.PathLike):
            self.files = self._search(Path(root), allow_empty)
        else:
            self.files = [Path(file) for file in root]
        if not self.files:
            raise FileNotFoundError(f"no .slim file in {root}")
        self.transform, self.return_latent, self.steps = transform, return_latent, steps
        self.model, self.device = model, device

    @property
    def samples(self) -> list[tuple[str, int]]:
        """Path and class index of every item."""
        return [(str(file), target) for file, target in zip(self.files, self.targets, strict=False)]

    def find_classes(self, directory: str | os.PathLike[str]) -> tuple[list[str], dict[str, int]]:
        """The names of the classes of a folder, and the index of each; a class is a subfolder."""
        with os.scandir(directory) as entries:
            classes = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
        return classes, {name: index for index, name in enumerate(classes)}

    def _search(self, root: Path, allow_empty: bool) -> list[Path]:
        """The files of a folder; sets classes and targets where they lie in subfolders."""
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is no folder")
        files = [path for path in visible_files(root) if path.suffix.lower() == ".slim"]
        lone = [file for file in files if file.parent == root]
        if lone and len(lone) < len(files):
            raise ValueError(
                f"{lone[0]} lies beside class folders; move it into one, or pass a list of files"
            )
        classes, indices = ([], {}) if lone else self.find_classes(root)
        if not classes:
            return files
        of_class: dict[str, list[Path]] = {name: [] for name in sorted(indices)}
        for file in files:
            of_class.get(file.relative_to(root).parts[0], []).append(file)
        empty = [name for name, members in of_class.items() if not members]
        if empty and files and not allow_empty:
            raise FileNotFoundError(
                f"no .slim file in class {', '.join(empty)} of {root}; remove the folder, or pass allow_empty=True, which "
                "keeps its index"
            )
        self.classes, self.class_to_idx = classes, indices
        self.targets = [indices[name] for name, members in of_class.items() for _ in members]
        return [file for members in of_class.values() for file in members]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        codec, file = default_codec(self.model, self.device, "torch"), self.files[index]
        item: Any = codec.decode_latent(file) if self.return_latent else codec.decode(file, steps=self.steps)
        if self.transform is not None:
            item = self.transform(item)
        return (item, self.targets[index]) if self.classes else item
