"""Check the arguments of QMP commands as QEMU's generated visitors do, in their words.

A type is a function of (value, path, name): ``path`` is where the value is, such as
``channels[0].addr.offset``; ``name`` is its last member. It returns the value as the command gets
it and raises QmpError. Members are visited in the order of the schema, unknown ones reported last.

Source: QEMU's ``qapi/qobject-input-visitor.c`` and ``qapi/qapi-visit-core.c`` of 10.0, observed.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from mapsave.emulator.faults import QmpError

T = TypeVar("T")
Checked = Callable[[object, str, str], T]
Type = Checked[object]
U64 = 1 << 64


def _wrong(path: str, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{path or 'null'}', expected: {expected}")


def _of(kind: type[T], expected: str) -> Checked[T]:
    def check(value: object, path: str, name: str) -> T:
        if not isinstance(value, kind):
            raise _wrong(path, expected)
        return value

    return check


string = _of(str, "string")
boolean = _of(bool, "boolean")
anything = _of(object, "any")
_object = _of(dict, "object")
_array = _of(list, "array")


def string_or_null(value: object, path: str, name: str) -> str:
    """A string, or null, which means the empty string."""
    if value is not None and not isinstance(value, str):
        raise _wrong(path, "StrOrNull")
    return value or ""


def integer(value: object, path: str, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 63:
        raise _wrong(path, "integer")
    return value


def uint64(value: object, path: str, name: str) -> int:
    """An unsigned integer of 64 bits; a negative one wraps around, as in QEMU."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < U64:
        raise QmpError(f"Parameter '{path}' expects uint64")
    return value % U64


def unsigned(bits: int) -> Checked[int]:
    def check(value: object, path: str, name: str) -> int:
        number = uint64(value, path, name)
        if number >= 1 << bits:
            raise QmpError(f"Parameter '{name}' expects uint{bits}_t")
        return number

    return check


def enum(*values: str) -> Checked[str]:
    def check(value: object, path: str, name: str) -> str:
        text = string(value, path, name)
        if text not in values:
            raise QmpError(f"Parameter '{name or 'null'}' does not accept value '{text}'")
        return text

    return check


def array(item: Checked[T]) -> Checked[list[T]]:
    def check(value: object, path: str, name: str) -> list[T]:
        elements = enumerate(_array(value, path, name))
        return [item(element, f"{path}[{index}]", "") for index, element in elements]

    return check


def struct(**members: Type) -> Checked[dict[str, object]]:
    """An object. ``a_b`` is the member ``a-b``; a name that ends in ``_`` is optional."""
    fields = {name.rstrip("_").replace("_", "-"): kind for name, kind in members.items()}
    needed = {name.replace("_", "-") for name in members if not name.endswith("_")}
    return _struct(fields, needed)


def _struct(fields: Mapping[str, Type], needed: set[str]) -> Checked[dict[str, object]]:
    def check(value: object, path: str, name: str) -> dict[str, object]:
        members = _object(value, path, name)
        prefix = f"{path}." if path else ""
        result: dict[str, object] = {}
        for field, kind in fields.items():
            if field in members:
                result[field] = kind(members[field], prefix + field, field)
            elif field in needed:
                raise QmpError(f"Parameter '{prefix}{field}' is missing")
        for field in members:
            if field not in fields:
                raise QmpError(f"Parameter '{prefix}{field}' is unexpected")
        return result

    return check


def optional(fields: Mapping[str, Type]) -> Checked[dict[str, object]]:
    """An object whose members are all optional and named as they are on the wire."""
    return _struct(fields, set())


def union(tag: str, variants: Mapping[str, Mapping[str, Type]]) -> Type:
    """An object whose member ``tag`` says which other members it has."""
    tags = enum(*variants)

    def check(value: object, path: str, name: str) -> dict[str, object]:
        members = _object(value, path, name)
        if tag not in members:
            raise QmpError(f"Parameter '{path}.{tag}' is missing")
        fields = {tag: tags, **variants[tags(members[tag], f"{path}.{tag}", tag)]}
        return _struct(fields, set(fields))(value, path, name)

    return check
