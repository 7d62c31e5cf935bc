"""References to pretrained parts: where they come from, what they must be, and how to find them on a machine.

A part is a folder as diffusers and transformers save it. It is known by a hash of its tensors, and of its configuration without
notes such as the release that wrote it: any mirror serves, and any copy is checked before it is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slimcodec.errors import ModelMismatchError, SlimError, needs
from slimcodec.files import hub_snapshot, inside, is_hub_id
from slimcodec.models.pretrained.part_files import fingerprint, has_part, licence_of, weight_files

#: folders, separated as in PATH, in which pretrained parts are looked for first
BASE_VARIABLE = "SLIMCODEC_BASE"
#: where a packed bundle keeps its parts
PACKED = "parts"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class PartReference:
    """A pretrained part that a bundle names and does not hold.

    ``sha256`` is over all that decoding depends on, ``encoder_sha256`` over what only encoding does (see ``fingerprint``).
    """

    name: str
    sha256: str
    #: hub id, or the folder that it was taken from
    source: str
    subfolder: str = ""
    #: commit at the hub
    revision: str = ""
    encoder_sha256: str = ""
    megabytes: float = 0.0
    licence: str = ""
    #: other hub ids or folders with the same part
    alternatives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """``SlimError`` for a name or subfolder that could lead out of the folder that it is looked for in."""
        if not NAME.fullmatch(self.name):
            raise SlimError(f"{self.name!r} is no name of a part; give letters, digits, '-' and '_'")
        if self.subfolder:
            inside(".", self.subfolder)


@dataclass(frozen=True)
class FoundPart:
    """A part on this machine, checked: its folder and the variant of its weights ("" or fp16)."""

    folder: Path
    variant: str
    #: "packed", "base", "folder" or "hub"
    place: str


def local_folder(source: str | Path, kind: str) -> Path | None:
    """The folder that a source is, None for a hub id; ``SlimError``, "no such {kind}", where it is neither."""
    if source == "" or not isinstance(source, str | os.PathLike):
        raise SlimError(f"{source!r} is no {kind}, or a hub id like owner/name")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(source):
        raise SlimError(f"{source}: no such {kind}, or a hub id like owner/name")
    return None


def hub_folder(
    source: str | Path, revision: str, patterns: Sequence[str], without: Sequence[str] = ()
) -> Path:
    """A snapshot of a Hugging Face hub id with the files that match ``patterns``, at a commit ("" = the newest).

    Raises ``SlimError`` where the hub does not give it and the cache does not have it.
    """
    with needs("torch", f"{source}, a hub id,"):
        from huggingface_hub import snapshot_download

    only, never = list(patterns), list(without)
    try:
        return Path(
            snapshot_download(
                str(source), revision=revision or None, allow_patterns=only, ignore_patterns=never
            )
        )
    except Exception as error:  # the hub client's errors have no common base
        at = f" at revision {revision}" if revision else ""
        reason = " ".join(str(error).split())
        raise SlimError(f"{source}{at}: no such folder, and the hub did not give it ({reason})") from error


def find_part(
    reference: PartReference, bundle: Path | None = None, base: str | Path | None = None
) -> FoundPart:
    """The part on this machine, from the first place that has it as it must be.

    Places in order: ``base`` (the user's argument, or the variable SLIMCODEC_BASE, several folders as in PATH), the folder
    ``bundle`` with its packed parts, the source, the alternatives. ``ModelMismatchError`` names the part, the hash and how to
    get it; a ``base`` with an altered part is an error at once.
    """
    given = os.environ.get(BASE_VARIABLE, "").split(os.pathsep) if base is None else [str(base)]
    reasons: list[str] = []
    for place in filter(None, given):
        if part := _match(Path(place).expanduser(), reference, "base", reasons):
            return part
    if reasons:
        raise _missing(reference, reasons)
    if base is not None:
        reasons.append(f"{base} has no such part")
    if bundle is not None and has_part(packed := bundle / PACKED / reference.name):
        for path in (packed, *packed.rglob("*")):
            inside(bundle, path.relative_to(bundle).as_posix())
        if part := _match(packed, reference, "packed", reasons):
            return part
    # who publishes a bundle knows no folders of this machine, and shall not name any
    published = bundle is not None and hub_snapshot(bundle) is not None
    for source in (reference.source, *reference.alternatives):
        if published and not is_hub_id(source):
            reasons.append(f"a bundle from the hub may not name the folder {source}")
        elif part := _match_source(source, reference, reasons):
            return part
    raise _missing(reference, reasons)


def _match_source(source: str, reference: PartReference, reasons: list[str]) -> FoundPart | None:
    """The part in a folder or a hub repository; None, and a reason more, where it is not there as it must be."""
    local, before, part = Path(source).expanduser(), len(reasons), None
    if local.is_dir():
        part = _match(local, reference, "folder", reasons)
    elif not is_hub_id(source):
        reasons.append(f"no folder {source}")
    else:
        # the commit belongs to the first source, a mirror has its own
        revision = reference.revision if source == reference.source else ""
        try:
            for variants in (False, True):
                root = part_from_hub(source, revision, reference.subfolder, variants=variants)
                part = _match(root, reference, "hub", reasons)
                if part is not None or len(reasons) == before:
                    break
        except SlimError as error:
            reasons.append(str(error))
    if part is None and len(reasons) == before:
        reasons.append(f"{source} has no such part")
    return part


def part_from_hub(source: str, revision: str, subfolder: str, *, variants: bool = False) -> Path:
    """The snapshot of a hub repository with one of its subfolders (or its top) on this machine; ``SlimError`` if it fails.

    Of its weights the plain ones are downloaded; ``variants``, or where there are none: those in half precision too.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    patterns = [f"{prefix}*.{kind}" for kind in ("safetensors", "json", "txt", "model", "jinja")]
    without = ["*.non_ema*", *([] if subfolder else ["*/*"]), *([] if variants else ["*.fp16*", "*.bf16*"])]
    snapshot = hub_folder(source, revision, ["README.md", *patterns], without)
    folder = snapshot / subfolder
    if not variants and (folder / "config.json").is_file() and not weight_files(folder):
        return part_from_hub(source, revision, subfolder, variants=True)
    return snapshot


def _match(root: Path, reference: PartReference, place: str, reasons: list[str]) -> FoundPart | None:
    """The part in a folder or its subfolder, with the variant of its weights; None, and reasons more, where none is right."""
    folders = (root / name for name in (reference.subfolder, reference.name, ""))
    folder = next(filter(has_part, folders), None)
    if folder is None:
        return None
    for variant in weight_files(folder) or {"": []}:
        try:
            sha256, encoder_sha256, _ = fingerprint(folder, variant)
        except SlimError as error:
            reasons.append(str(error))
            continue
        if (sha256, encoder_sha256) == (reference.sha256, reference.encoder_sha256):
            return FoundPart(folder, variant, place)
        digest = sha256 if sha256 != reference.sha256 else encoder_sha256
        reasons.append(f"{folder} is another or an altered one, its sha256 is {digest[:16]}")
    return None


def _missing(reference: PartReference, reasons: Sequence[str]) -> ModelMismatchError:
    at_revision = f" at revision {reference.revision}" if reference.revision else ""
    remedy = f"name a folder that has it in the variable {BASE_VARIABLE}"
    hub = next((source for source in (reference.source, *reference.alternatives) if is_hub_id(source)), None)
    if hub is not None:
        revision = f" --revision {reference.revision}" if at_revision and hub == reference.source else ""
        files = f"{reference.subfolder}/*" if reference.subfolder else "*"
        remedy = f"run `hf download {hub}{revision} --include '{files}'`, or {remedy}"
    return ModelMismatchError(
        f"the bundle needs the pretrained part {reference.name} of {reference.source}{at_revision}, expected sha256 "
        f"{reference.sha256}, and it is not there: {'; '.join(dict.fromkeys(reasons))}. To get it, {remedy}"
    )


def refer(
    name: str, top: Path, source: str, subfolder: str = "", alternatives: Sequence[str] = ()
) -> PartReference:
    """The reference to a part of a source that lies in the folder ``top``; of several variants of its weights the plain one."""
    folder, place = top / subfolder, Path(source).expanduser()
    # a path is written down so that it means the same from any working folder
    source = str(place.resolve()) if place.is_dir() else source
    if not has_part(folder):
        raise SlimError(
            f"{source}: has no {subfolder or 'config.json'}; give a folder or hub id that save_pretrained wrote"
        )
    sha256, encoder_sha256, size = fingerprint(folder, next(iter(weight_files(folder)), ""))
    return PartReference(
        name,
        sha256,
        source,
        subfolder,
        # snapshots in the hub's cache are named by their commits
        top.name if top.parent.name == "snapshots" else "",
        encoder_sha256,
        round(size / 1e6, 3),
        licence_of(top),
        tuple(alternatives),
    )
