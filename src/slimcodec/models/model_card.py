"""The model card of a bundle: what it stands on, under which licences, what made it, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slimcodec.models.pretrained.hub import is_hub_id

if TYPE_CHECKING:
    from slimcodec.models.bundle import Bundle


def model_card(bundle: Bundle, repository: str, curve: Sequence[dict[str, Any]] = ()) -> str:
    """A README.md for ``repository``: front matter, use, parts with their licences, recipe, and the rows of ``curve``."""
    config, references = bundle.config, bundle.references()
    bases = sorted({part.source for part in references if is_hub_id(part.source)})
    lines = ["---", "library_name: slimcodec", "tags: [image-compression, slimcodec]"]
    if bases:
        lines.append(f"base_model: [{', '.join(bases)}]")
    lines += ["---", f"# {config.name}", ""]
    lines += [
        (
            "A bundle of slimcodec, an image codec for machines (`pip install slimcodec`). Its files name bundle "
            f"`{bundle.bundle_id}` (SHA-256 `{bundle.sha256}`)."
        ),
        "",
        "```python",
        "import slimcodec",
        f'codec = slimcodec.load("{repository}")',
        'data = codec.encode("photo.jpg", quality=30)',
        "picture = codec.decode(data)",
        "```",
        "",
    ]
    if references:
        lines += [
            "## Pretrained parts",
            "",
            "They are not in this repository; each is checked by its hash when it is loaded, and has terms of its own.",
            "",
            "| part | from | revision | licence | SHA-256 |",
            "|---|---|---|---|---|",
        ]
        for part in references:
            where = part.source if is_hub_id(part.source) else "a folder"
            licence = part.licence or "see its source"
            lines.append(f"| {part.name} | {where} | {part.revision or '-'} | {licence} | `{part.sha256}` |")
        lines.append("")
    lines += ["## How it was made", ""]
    training = config.training
    if not training:
        lines += ["Its compressor is untrained: a transform code.", ""]
    else:
        lines += ["```", *training.get("commands", []), "```", ""]
        lines += ["<details><summary>Recipe and stages</summary>", "", "```json"]
        lines += [json.dumps(training, indent=2), "```", "", "</details>", ""]
    if curve:
        names = list(curve[0])
        lines += ["## Measured", "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        lines += [f"| {' | '.join(str(row[name]) for name in names)} |" for row in curve] + [""]
    return "\n".join(lines)
