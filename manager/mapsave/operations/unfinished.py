"""What the operations of this process have come to: for the report of a command that cannot wait.

It is kept in memory beside the step journals, for their storage may hang.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# By the path of its journal: the facts of an operation's steps so far, and its last ``step``.
_operations: dict[str, dict[str, object]] = {}


def note(journal: str | os.PathLike[str], step: str, data: Mapping[str, object]) -> None:
    """Note a step of the operation that has this journal."""
    facts = _operations.get(os.fspath(journal), {})
    _operations[os.fspath(journal)] = {**facts, **data, "step": step}


def forget(journal: str | os.PathLike[str]) -> None:
    """Forget an operation of which nothing is left; one that is not known is passed over."""
    _operations.pop(os.fspath(journal), None)


def listed() -> list[dict[str, object]]:
    """Return the operations under way, or with something left to recover. Safe in any thread."""
    return [
        {
            "operation": "hooks" if facts.get("kind") == "around" else facts.get("kind"),
            "guest": facts.get("guest"),
            "image": _image_path(facts),
            "step": facts.get("step"),
            "pid": facts.get("pid"),
            "journal": journal,
        }
        for journal, facts in list(_operations.items())
    ]


def _image_path(facts: Mapping[str, object]) -> object:
    """Return the path of the image that an operation is about, whether it is there or not."""
    if "directory" in facts and "name" in facts:
        return os.path.join(str(facts["directory"]), str(facts["name"]))
    return facts.get("image")
