"""Licences of all that an installation of slimcodec brings with it, and of its extras where they are installed.

    python tools/licences.py [EXTRA,EXTRA...]

Prints a table, and fails (exit status 1) where a licence is not on the list of those that may be used beside Apache-2.0 code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: names of licences, as words in lower case, that are allowed: free to use and to pass on beside code of any licence
ALLOWED = re.compile(
    r"\b(apache|mit|bsd|0bsd|isc|psf|python software foundation|python-2\.0|mpl|mozilla public license|zlib|unlicense|"
    r"public domain|hpnd|historical permission|cc0|bsl-1\.0|boost|cnri)\b"
)
#: packages of other licences, or whose metadata name none, and why they may be there
EXCEPTIONS = {
    "nvidia-": "NVIDIA's terms; installed by torch for CUDA, not passed on by us",
    "cuda-": "NVIDIA's terms; installed by torch for CUDA, not passed on by us",
    "pillow-jxl-plugin": "GPL-3.0; in the extra peers alone: imported by nothing but the benchmark, when it is asked for JPEG XL",
}


@dataclass(frozen=True)
class Entry:
    """An installed package, its licence as its metadata name it, and what is wrong with that, "" for nothing."""

    name: str
    version: str
    licence: str
    problem: str


def licence_of(metadata: Distribution) -> str:
    """The licence of a package by its metadata: SPDX expression, classifiers, or the first line of the free text."""
    fields: Any = metadata.metadata
    if expression := fields.get("License-Expression"):
        return str(expression)
    classifiers = [str(value) for value in fields.get_all("Classifier") or []]
    named = [value.rpartition(" :: ")[2] for value in classifiers if value.startswith("License ::")]
    named = [name for name in named if name != "OSI Approved"]
    text = str(fields.get("License") or "").strip().splitlines()
    return " OR ".join(named) or (text[0][:80] if text else "")


def problem_of(name: str, licence: str) -> str:
    """Why a package of this licence may not be used, "" where it may: one of several by OR, all of several by AND."""
    if any(name.startswith(prefix) for prefix in EXCEPTIONS):
        return ""
    if not licence:
        return "its metadata name no licence"
    choices = re.split(r"\s+or\s+|;", licence.lower())
    allowed = any(all(ALLOWED.search(part) for part in re.split(r"\s+and\s+", choice)) for choice in choices)
    return "" if allowed else "not on the list of allowed licences"


def installed(wanted: str) -> Iterator[Distribution]:
    """The installed packages that a requirement leads to, each once; what is not installed is left out."""
    pending, seen, given = [Requirement(wanted)], set[tuple[str, frozenset[str]]](), set[str]()
    while pending:
        requirement = pending.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        if name not in given:
            given.add(name)
            yield found
        for text in found.requires or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in ("", *extras)):
                pending.append(inner)


def licences(extras: str = "") -> list[Entry]:
    """All packages of slimcodec and some of its extras ("train,eval"), by name."""
    entries = []
    for found in installed(f"slimcodec[{extras}]"):
        name, licence = canonicalize_name(found.metadata["Name"]), licence_of(found)
        entries.append(Entry(name, found.version, licence, problem_of(name, licence)))
    return sorted(entries, key=lambda entry: entry.name)


def main() -> None:
    """Prints the table; exit status 1 where there is a problem."""
    entries = licences(*sys.argv[1:2])
    for entry in entries:
        print(f"{entry.name:28} {entry.version:20} {entry.licence or '-'}")
    problems = [
        f"{entry.name}: {entry.licence or '-'}: {entry.problem}" for entry in entries if entry.problem
    ]
    print(f"{len(entries)} packages, {len(problems)} with a licence that is not allowed")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
