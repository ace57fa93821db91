"""What recovery has made of operations of the service, for the service that comes next.

Its history does not know how far an operation was whose service died, and once its journal is gone
nothing else does. So the outcome is noted in the state directory before that, by the operation's
id, until a service has it in its history.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypedDict

import msgspec

from mapsave import typed
from mapsave.errors import ErrorDict
from mapsave.operations import locks

_PART = "recovered"
_MOST = 1000  # of services whose history is gone


class Line(TypedDict):
    """What became of one operation; ``interrupted_at`` is the last step that is known."""

    operation: str | None
    id: str | None
    guest: str | None
    image: str | None
    monitor: str | None
    interrupted_at: str | None
    outcome: str | None
    warnings: list[str]
    error: ErrorDict | None


def note(state: Path, line: Line) -> None:
    """Note the outcome of an operation; of one without an id nothing.

    Raises OSError, NotPermitted, ConfigMissing.
    """
    if line["id"] is None or not line["id"].isalnum():
        return
    directory = locks.state_directory(state, _PART)
    locks.make_room(directory, _MOST)
    locks.replace(directory / line["id"], msgspec.json.encode(line))
    locks.sync_directory(directory)


def read(state: Path, operation: str) -> Line | None:
    """Return what was noted of an operation; None where that is nothing. Raises OSError."""
    try:
        return typed.decode((state / _PART / operation).read_bytes(), Line)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def remove(state: Path, operation: str) -> None:
    """Forget an operation, if it was noted; what cannot be removed makes room later."""
    with contextlib.suppress(OSError):
        (state / _PART / operation).unlink()
