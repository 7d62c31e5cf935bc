"""Bundles that name pretrained parts: which of them are on this machine, and a copy that holds them all."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from slimcodec.errors import SlimError
from slimcodec.models.bundle import Bundle
from slimcodec.models.pretrained.references import (
    OTHER_FILES,
    PACKED,
    FoundPart,
    PartReference,
    find_part,
    weight_files,
)


@dataclass(frozen=True)
class PartState:
    """A referenced part and where it is on this machine, or why it is not."""

    reference: PartReference
    found: FoundPart | None
    problem: str = ""


def part_states(bundle: Bundle) -> list[PartState]:
    """Every pretrained part that a bundle names, looked for and hashed; [] for a bundle that stands alone."""
    states = []
    for reference in bundle.references():
        try:
            states.append(PartState(reference, find_part(reference, bundle.folder, bundle.base)))
        except SlimError as error:
            states.append(PartState(reference, None, str(error)))
    return states


def save(bundle: Bundle, folder: str | Path, *, packed: bool = False) -> None:
    """Writes a bundle to a new folder, ``packed``: with a copy of every pretrained part.

    The folder appears whole or not at all. Raises ``SlimError`` where it exists, and where a part is missing.
    """
    target = Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise SlimError(f"{target} exists; choose another folder or remove it")
    found = [
        (reference, find_part(reference, bundle.folder, bundle.base))
        for reference in bundle.references()
        if packed
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that the last step is a rename
    temporary = Path(tempfile.mkdtemp(prefix=".slim-", dir=target.parent))
    try:
        for reference, part in found:
            _copy(part, temporary / PACKED / reference.name)
        bundle.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _copy(part: FoundPart, folder: Path) -> None:
    folder.mkdir(parents=True)
    wanted = set(weight_files(part.folder).get(part.variant, []))
    for path in sorted(part.folder.iterdir()):
        if path in wanted or path.suffix == ".json" or path.name in OTHER_FILES:
            shutil.copyfile(path, folder / path.name)
