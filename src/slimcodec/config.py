"""Configurations: dataclasses to plain JSON or TOML values and back, strictly."""

from __future__ import annotations

import json
import math
import types
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from slimcodec.errors import SlimError

T = TypeVar("T")
#: largest whole number of a configuration that came with weights; what a number is called may lower or raise it
LARGEST = 1 << 16
#: by the last words of a setting's name: what is repeated, what grows with the square, and what counts words
LARGEST_OF = {
    "blocks": 64,
    "layers": 64,
    "layers_per_block": 64,
    "levels": 256,
    "patch": 64,
    "stride": 64,
    "side": 1024,
    "steps": 1000,
    "vocab_size": 1 << 20,
    "token_id": 1 << 20,
    "tags": 1 << 20,
}
#: entries of a list, and sections within sections
LONGEST, DEEPEST = 64, 16


def check_sizes(values: Any, where: str, name: str = "", depth: int = 0) -> None:
    """``SlimError`` for numbers that no configuration of a bundle needs: huge, negative beyond reason, or not finite.

    To be asked before anything is allocated for them. ``where`` says in which file and section they are.
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
    """A configuration dataclass as JSON values (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def from_plain(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Builds a configuration dataclass from plain values.

    An unknown key or a value of another type raises ``SlimError`` that names the key; ``where`` says in which file.
    """
    hints = get_type_hints(kind)
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise SlimError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    made = {name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    return kind(**made)


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (entry for entry in arguments if entry is not type(None))
        return _value(kind, value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        if isinstance(value, dict):
            return from_plain(kind, value, where)
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            variable = len(arguments) == 2 and arguments[1] is Ellipsis
            if variable or len(arguments) == len(value):
                kinds = arguments[:1] * len(value) if variable else arguments
                return tuple(_value(k, entry, where) for k, entry in zip(kinds, value, strict=True))
    elif origin is dict:
        if isinstance(value, dict):
            return value
    elif kind is float:
        # a whole number is a fine value for a float, True is not
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise SlimError(f"{where}: {value!r} is not of type {getattr(kind, '__name__', kind)}")
