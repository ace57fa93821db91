"""Check the arguments of QMP commands as QEMU's generated visitors do, in their words.

A type is a function of (value, path, name): ``path`` is where the value is, such as
``channels[0].addr.offset``; ``name`` is its last member. It returns the value as the command gets
it and raises QmpError. Members are visited in the order of the schema, unknown ones reported last.

Source: QEMU's ``qapi/qobject-input-visitor.c`` and ``qapi/qapi-visit-core.c`` of 10.0, observed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mapsave.emulator.faults import QmpError

Type = Callable[[Any, str, str], Any]
U64 = 1 << 64


def _wrong(path: str, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{path or 'null'}', expected: {expected}")


def string(value: Any, path: str, name: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise _wrong(path, "string")
    return value


def boolean(value: Any, path: str, name: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _wrong(path, "boolean")
    return value


def string_or_null(value: Any, path: str, name: str) -> str:
    """A string, or null, which means the empty string."""
    if value is not None and not isinstance(value, str):
        raise _wrong(path, "StrOrNull")
    return value or ""


def anything(value: Any, path: str, name: str) -> Any:
    """Any value, unchecked."""
    return value


def integer(value: Any, path: str, name: str) -> int:
    """A signed integer of 64 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 63:
        raise _wrong(path, "integer")
    return value


def uint64(value: Any, path: str, name: str) -> int:
    """An unsigned integer of 64 bits; a negative one wraps around, as in QEMU."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < U64:
        raise QmpError(f"Parameter '{path}' expects uint64")
    return value % U64


def unsigned(bits: int) -> Type:
    """An unsigned integer of ``bits`` bits."""

    def check(value: Any, path: str, name: str) -> int:
        number = uint64(value, path, name)
        if number >= 1 << bits:
            raise QmpError(f"Parameter '{name}' expects uint{bits}_t")
        return number

    return check


def enum(*values: str) -> Type:
    """One of the strings ``values``."""

    def check(value: Any, path: str, name: str) -> str:
        text = string(value, path, name)
        if text not in values:
            raise QmpError(f"Parameter '{name or 'null'}' does not accept value '{text}'")
        return text

    return check


def array(item: Type) -> Type:
    """A list whose every element is an ``item``."""

    def check(value: Any, path: str, name: str) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(path, "array")
        return [item(element, f"{path}[{index}]", "") for index, element in enumerate(value)]

    return check


def struct(**members: Type) -> Type:
    """An object. ``a_b`` is the member ``a-b``; a name that ends in ``_`` is optional."""
    fields = {name.rstrip("_").replace("_", "-"): kind for name, kind in members.items()}
    optional = {name.rstrip("_").replace("_", "-") for name in members if name.endswith("_")}
    return _struct(fields, optional)


def _struct(fields: Mapping[str, Type], optional: set[str]) -> Type:
    def check(value: Any, path: str, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(path, "object")
        prefix = f"{path}." if path else ""
        result: dict[str, Any] = {}
        for field, kind in fields.items():
            if field in value:
                result[field] = kind(value[field], prefix + field, field)
            elif field not in optional:
                raise QmpError(f"Parameter '{prefix}{field}' is missing")
        for field in value:
            if field not in fields:
                raise QmpError(f"Parameter '{prefix}{field}' is unexpected")
        return result

    return check


def optional(fields: Mapping[str, Type]) -> Type:
    """An object whose members are all optional and named as they are on the wire."""
    return _struct(fields, set(fields))


def union(tag: str, variants: Mapping[str, Mapping[str, Type]]) -> Type:
    """An object whose member ``tag`` says which other members it has."""
    tags = enum(*variants)

    def check(value: Any, path: str, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(path, "object")
        if tag not in value:
            raise QmpError(f"Parameter '{path}.{tag}' is missing")
        chosen = tags(value[tag], f"{path}.{tag}", tag)
        fields: dict[str, Type] = {tag: tags, **variants[chosen]}
        result: dict[str, Any] = _struct(fields, set())(value, path, name)
        return result

    return check
