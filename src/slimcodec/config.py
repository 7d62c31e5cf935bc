"""Configurations: dataclasses to plain JSON or TOML values and back, strictly."""

from __future__ import annotations

import json
import math
import types
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from slimcodec.errors import SlimError

T = TypeVar("T")
#: largest whole number of a configuration that came with weights, where LARGEST_OF has no other for its name
LARGEST = 1 << 16
#: by the last words of a setting's name: what is repeated, what grows with the square, and what counts words
LARGEST_OF = (
    dict.fromkeys(("blocks", "layers", "layers_per_block", "patch", "stride"), 64)
    | {"levels": 256, "steps": 1000, "side": 1024}
    | dict.fromkeys(("vocab_size", "token_id", "tags"), 1 << 20)
)
#: most entries of a list, and most sections within sections
LONGEST, DEEPEST = 64, 16


def check_sizes(values: Any, where: str, name: str = "", depth: int = 0) -> None:
    """Raise ``SlimError`` for numbers that no configuration of a bundle needs, before anything is allocated for them.

    ``where``: file and section, for the message.
    """
    if depth > DEEPEST:
        raise SlimError(f"{where}: nested too deeply")
    if isinstance(values, dict):
        for key, value in values.items():
            check_sizes(value, f"{where}: {key}", key, depth + 1)
    elif isinstance(values, list):
        if len(values) > LONGEST:
            raise SlimError(f"{where}: a list of {len(values)}; at most {LONGEST} entries are allowed")
        for value in values:
            check_sizes(value, where, name, depth + 1)
    elif isinstance(values, int):
        largest = next((most for end, most in LARGEST_OF.items() if f"_{name}".endswith(f"_{end}")), LARGEST)
        if abs(values) > largest:
            raise SlimError(f"{where}: {values} is out of range; at most {largest} is allowed")
    elif isinstance(values, float) and not math.isfinite(values):
        raise SlimError(f"{where}: {values} is not a finite number")


def to_plain(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as JSON values (tuples become lists)."""
    return json.loads(json.dumps(asdict(config)))


def from_plain(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Build a configuration dataclass; ``SlimError`` names an unknown key or one of another type in file ``where``."""
    hints = get_type_hints(kind)
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise SlimError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def remove_setting(settings: Any, path: list[str]) -> None:
    """Take a setting out of nested sections; of a list of sections, out of each."""
    if isinstance(settings, list):
        for entry in settings:
            remove_setting(entry, path)
    elif isinstance(settings, dict):
        if len(path) > 1:
            remove_setting(settings.get(path[0]), path[1:])
        else:
            settings.pop(path[0], None)


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # of one type and None
        return None if value is None else _value(arguments[0], value, where)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        return from_plain(kind, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_value(entry, item, where) for entry, item in zip(kinds, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    # not isinstance: True is no number
    if kind is Any or type(value) is (dict if origin is dict else kind):
        return value
    raise SlimError(f"{where}: {value!r} is not of type {getattr(kind, '__name__', kind)}")
