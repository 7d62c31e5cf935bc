"""What made a bundle, for the record that travels in it: release, revision, commands, recipe."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slimcodec.config import to_plain
from slimcodec.training.recipe import Recipe
from slimcodec.version import __version__


def history(
    recipe: Recipe,
    source: str,
    settings: Sequence[str],
    stages: dict[str, dict[str, str]],
    teachers: Sequence[str],
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """What made the bundle, and the commands that make it again.

    ``source`` and ``settings``: the recipe's name and the ``key=value`` changes that made it; ``stages``: what is noted beside
    each stage's weights; ``teachers``: their hashes; ``also``: ids of the bundles whose captioners are packed too.
    """
    # where the data lay on the machine that trained says nothing to others
    keys = ("out", "data", "data.photos", "data.thumbnails", "teachers.models", "captioner.also")
    private = tuple(f"{key}=" for key in keys)
    kept = [setting for setting in settings if not setting.startswith(private)]
    command = ["slim train all", f"--config {source}", "--set data=PHOTOS"]
    if recipe.data.thumbnails:
        command.append("--set data.thumbnails=THUMBNAILS")
    if recipe.teachers.models:
        command.append("--set teachers.models=CLASSIFIERS")
    if also:
        command += ["--set", shlex.quote(f"captioner.also={json.dumps(list(also), separators=(',', ':'))}")]
    public = replace(recipe, data=replace(recipe.data, photos=(), thumbnails=()), out="")
    public = replace(public, teachers=replace(public.teachers, models=()))
    public = replace(public, captioner=replace(public.captioner, also=tuple(also)))
    made_by = revision()
    return {
        "slimcodec": __version__,
        "revision": made_by,
        "commands": [
            f"git checkout {made_by or 'v' + __version__}",
            " ".join(command + [f"--set {shlex.quote(setting)}" for setting in kept]),
        ],
        "stages": stages,
        "teachers": list(teachers),
        "recipe": to_plain(public),
    }


def revision() -> str | None:
    """The git revision of the source tree, "-changed" added where it was edited, or None in an installed package."""
    command = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        edited = subprocess.run(
            [*command, "status", "--porcelain", "--untracked-files=no", "--", ".."],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("-changed" if edited.stdout.strip() else "")
