"""What is reported of an operation: how it went, and nothing of what the host holds."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mapsave import errors
from mapsave.client.exchange import Answer
from mapsave.strict_json import Facts

_TEXT = 2000  # characters of a message
_RESULT = (
    *("guest", "then", "ram_bytes", "data_bytes", "file_bytes", "bytes_per_s", "duration_s"),
    *("downtime_s", "run_state", "instant", "recovered"),
)
_OPERATION = ("id", "kind", "state", "guest", "created", "started", "ended")


def progress(found: Answer) -> Facts | None:
    """Return how far an operation is, as the service answers; None where that is unknown."""
    known = found["progress"]
    state = {"state": found["state"], "step": found["step"]}
    return state if known is None else {**state, **known}


def ended(found: Answer, steps: Sequence[Facts]) -> Facts:
    """Return what became of an operation that has ended, with the ``steps`` that it took."""
    result = found["result"] or {}
    return {
        "operation": {key: found[key] for key in _OPERATION},
        "image": _name(result),
        "result": {key: result[key] for key in _RESULT if _is_plain(result.get(key))},
        "warnings": [str(each)[:_TEXT] for each in result.get("warnings") or ()],
        "error": None if found["error"] is None else _error(found["error"]),
        "steps": list(steps),
    }


def _name(result: Mapping[str, Any]) -> str | None:
    """Return the image's name in the image directory; None where it is not there."""
    path = result.get("image")
    return None if path is None or result.get("managed") else os.path.basename(path)


def failed(operation: str, error: errors.MapsaveError) -> Facts:
    """Return the outcome of a task that came to its end without one of its operation."""
    return {"operation": {"id": operation}, "error": _error(error.as_dict())}


def _error(error: Mapping[str, Any]) -> Facts:
    """Return an error without its data, which may have paths and the like."""
    return {
        "id": error["id"],
        "exit_code": error["exit_code"],
        "message": str(error["message"])[:_TEXT],
        "hint": None if error["hint"] is None else str(error["hint"])[:_TEXT],
    }


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def clean(value: Any) -> Any:
    """Return JSON that PostgreSQL takes: no NUL, and no bytes of file names that are no text."""
    if isinstance(value, str):
        return value.replace("\0", "�").encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [clean(each) for each in value]
    return value
