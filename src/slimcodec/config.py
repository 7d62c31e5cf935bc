"""Configurations: dataclasses to plain JSON or TOML values and back, strictly."""

from __future__ import annotations

import json
import types
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from slimcodec.errors import SlimError

T = TypeVar("T")


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
