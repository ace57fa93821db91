"""The tables of keys in the documentation, made from the typed definitions.

``python -m tests.kit.key_tables`` writes them anew between their marks.
"""

import importlib
import re
import typing
from pathlib import Path
from typing import Any

import msgspec
from mapsave import keys

from tests.kit import tree

DOCUMENTS = ("configuration.md", "jobs.md", "labels.md")
_TABLE = re.compile(r"(<!-- keys of (?P<kind>[\w.]+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
_HEAD = "| key | value | default | meaning |\n|---|---|---|---|\n"
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def rewritten(text: str) -> str:
    """Return the text of a document with each of its tables made from the definitions."""
    return _TABLE.sub(lambda match: match[1] + table(_kind(match["kind"])) + match[3], text)


def kinds(text: str) -> set[type[Any]]:
    """Return the classes whose keys a document has tables of."""
    return {_kind(match["kind"]) for match in _TABLE.finditer(text)}


def table(kind: type[Any]) -> str:
    """Return the table of the keys of a class: its own, not those of a class it extends."""
    own = {name: each for name, each in keys.fields(kind).items() if _is_own(kind, each.name)}
    return _HEAD + "".join(
        f"| `{name}` | {_value(each.type)} | {_default(each)} | "
        f"{keys.described(each.type, 'description')} |\n"
        for name, each in own.items()
    )


def _is_own(kind: type[Any], name: str) -> bool:
    base = kind.__base__
    return base is None or name not in getattr(base, "__struct_fields__", ())


def _kind(path: str) -> type[Any]:
    module, _, name = path.rpartition(".")
    found: type[Any] = getattr(importlib.import_module(f"mapsave.{module}"), name)
    return found


def _value(kind: Any) -> str:
    core, _ = keys.peel(kind)
    if typing.get_origin(core) is tuple:
        item = _value(typing.get_args(core)[0])
        return f"a list of {item[2:]}s" if item.startswith("a ") else f"a list of {item}"
    return re.sub(r"'(\w+)'", r"`\1`", keys.expected(kind))


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    made = field.default_factory is not msgspec.NODEFAULT
    value = field.default_factory() if made else field.default
    least = keys.described(field.type, "ge")
    is_none = value is None or value in ((), {}) or isinstance(value, keys.Keys)
    if is_none or (least is not None and value == 0 < least):
        return ""
    if isinstance(value, float):
        units = (f"`{value // by:.0f}{unit}`" for by, unit in _UNITS if value % by == 0)
        return next(units) if value else ""
    if isinstance(value, tuple):
        return "" if isinstance(value[0], keys.Keys) else f"`[{', '.join(value)}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> None:
    for name in DOCUMENTS:
        path = Path(tree.ROOT / "docs" / name)
        path.write_text(rewritten(path.read_text()))


if __name__ == "__main__":
    main()
