"""The tables of keys in the documentation, made from the typed definitions.

``python -m tests.kit.key_tables`` writes them anew between their marks.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from mapsave import key_text, keys

from tests.kit import tree

DOCUMENTS = ("checkpoints.md", "configuration.md", "fleet.md", "jobs.md", "labels.md")
_TABLE = re.compile(r"(<!-- keys of (?P<kind>[\w.]+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
_HEAD = "| key | value | default | meaning |\n|---|---|---|---|\n"


def rewritten(text: str) -> str:
    """Return the text of a document with each of its tables made from the definitions."""
    return _TABLE.sub(lambda match: match[1] + table(_kind(match["kind"])) + match[3], text)


def kinds(text: str) -> set[type[Any]]:
    """Return the classes whose keys a document has tables of."""
    return {_kind(match["kind"]) for match in _TABLE.finditer(text)}


def table(kind: type[Any]) -> str:
    """Return the table of the keys of a class: its own, not those of a class it extends."""
    return _HEAD + "".join(
        f"| `{name}` | {key_text.value(each.type)} | {key_text.default(each)} | "
        f"{keys.described(each.type, 'description')} |\n"
        for name, each in key_text.own(kind).items()
    )


def _kind(path: str) -> type[Any]:
    module, _, name = path.rpartition(".")
    found: type[Any] = getattr(importlib.import_module(f"mapsave.{module}"), name)
    return found


def main() -> None:
    for name in DOCUMENTS:
        path = Path(tree.ROOT / "docs" / name)
        path.write_text(rewritten(path.read_text()))


if __name__ == "__main__":
    main()
