"""Bundles that leave this machine: their pretrained parts, copies that hold them all, and their model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimcodec.errors import SlimError
from slimcodec.files import is_hub_id
from slimcodec.models.pretrained.part_files import OTHER_FILES, weight_files
from slimcodec.models.pretrained.references import PACKED, FoundPart

if TYPE_CHECKING:
    from slimcodec.models.bundle import Bundle


CARD = """\
# {name}

A bundle of slimcodec, an image codec for machines (`pip install slimcodec`). Its files name bundle `{id}` (SHA-256 `{sha256}`).

```python
import slimcodec
codec = slimcodec.load("{repository}")
data = codec.encode("photo.jpg", quality=30)
picture = codec.decode(data)
```
"""


def save(bundle: Bundle, folder: str | Path, *, packed: bool = False) -> None:
    """Writes a bundle to a new folder, ``packed``: with a copy of every pretrained part.

    The folder appears whole or not at all. Raises ``SlimError`` where it exists, and where a part is missing.
    """
    target = Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise SlimError(f"{target} exists; choose another folder or remove it")
    references = bundle.references() if packed else ()
    parts = {part.name: bundle.pretrained_part(part.name) for part in references}
    target.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that the last step is a rename
    temporary = Path(tempfile.mkdtemp(prefix=".slim-", dir=target.parent))
    try:
        for name, part in parts.items():
            _copy(part, temporary / PACKED / name)
        bundle.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _copy(part: FoundPart, folder: Path) -> None:
    folder.mkdir(parents=True)
    weights = set(weight_files(part.folder).get(part.variant, []))
    for path in sorted(part.folder.iterdir()):
        if path in weights or path.suffix == ".json" or path.name in OTHER_FILES:
            shutil.copyfile(path, folder / path.name)


def model_card(bundle: Bundle, repository: str, curve: Sequence[dict[str, Any]] = ()) -> str:
    """A README.md for ``repository``: front matter, use, parts with their licences, recipe, and the rows of ``curve``."""
    name, training, references = bundle.config.name, bundle.config.training, bundle.references()
    bases = sorted({part.source for part in references if is_hub_id(part.source)})
    lines = ["---", "library_name: slimcodec", "tags: [image-compression, slimcodec]"]
    lines += [f"base_model: [{', '.join(bases)}]"] if bases else []
    lines += ["---", CARD.format(name=name, id=bundle.bundle_id, sha256=bundle.sha256, repository=repository)]
    if references:
        lines += ["## Pretrained parts", ""]
        lines += ["Each is checked by its hash when it is loaded, and has terms of its own.", ""]
        lines += _table(
            [
                {
                    "part": part.name,
                    "from": part.source if part.source in bases else "a folder",
                    "revision": part.revision or "-",
                    "licence": part.licence or "see its source",
                    "SHA-256": f"`{part.sha256}`",
                }
                for part in references
            ]
        )
    lines += ["## How it was made", ""]
    if training:
        lines += ["```", *training.get("commands", []), "```", ""]
        lines += ["<details><summary>Recipe and stages</summary>", "", "```json"]
        lines += [json.dumps(training, indent=2), "```", "", "</details>", ""]
    else:
        lines += ["Its compressor is untrained: a transform code.", ""]
    if curve:
        lines += ["## Measured", "", *_table(curve)]
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a table of Markdown whose head is the keys of the first row, and an empty line."""
    names = list(rows[0])
    cells = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    return [*(f"| {' | '.join(map(str, line))} |" for line in cells), ""]
