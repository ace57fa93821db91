"""What documents say of a key: its value and its default, in Markdown."""

import re
import typing
from typing import Any

import msgspec

from mapsave import keys

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def own(kind: type) -> dict[str, msgspec.structs.FieldInfo]:
    """Return the keys of a class by their names, without those of a class it extends."""
    return {name: each for name, each in keys.fields(kind).items() if _is_own(kind, each.name)}


def _is_own(kind: type, name: str) -> bool:
    base = kind.__base__
    return base is None or name not in getattr(base, "__struct_fields__", ())


def value(kind: Any) -> str:
    """Return what people write for a value of that type."""
    core, _ = keys.peel(kind)
    if typing.get_origin(core) is tuple:
        item = value(typing.get_args(core)[0])
        return f"a list of {item[2:]}s" if item.startswith("a ") else f"a list of {item}"
    return re.sub(r"'([\w-]+)'", r"`\1`", keys.expected(kind))


def default(field: msgspec.structs.FieldInfo) -> str:
    """Return the default of a key, ``required`` without one; nothing where it says nothing."""
    if field.required:
        return "required"
    made = field.default_factory is not msgspec.NODEFAULT
    found = field.default_factory() if made else field.default
    least = keys.described(field.type, "ge")
    is_none = found is None or found in ((), {}) or isinstance(found, keys.Keys)
    if is_none or (isinstance(least, int) and found == 0 < least):
        return ""
    if isinstance(found, float):
        units = (f"`{found // by:.0f}{unit}`" for by, unit in _UNITS if found % by == 0)
        return next(units, f"`{found * 1000:g}ms`") if found else ""
    if isinstance(found, tuple):
        return "" if isinstance(found[0], keys.Keys) else f"`[{', '.join(found)}]`"
    return f"`{str(found).lower() if isinstance(found, bool) else found}`"
