"""Operations for a history, and a history that makes writers wait."""

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapsave.history import history
from mapsave.history.history import Record

_count = itertools.count(1)


def record(**fields: Any) -> Record:
    """Return an operation that waits for its turn, under an id of its own."""
    plain: dict[str, Any] = {
        "id": f"{next(_count):012x}",
        "kind": "save",
        "state": "pending",
        "guest": "web01",
        "job": None,
        "parent": None,
        "image": None,
        "user": "root",
        "request": {"then": "resume"},
        "created": 1000.0,
    }
    return history.Record(**{**plain, **fields})


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep writers waiting, as a disk that syncs does."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()
