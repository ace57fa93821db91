"""What is in the history: operations and their steps, as rows and as what is asked for.

Any ``str`` goes in and comes out as it was. A file name that is no UTF-8 holds surrogates, which
sqlite3 does not take as text, so texts are bound as bytes and cast.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mapsave import strict_json, units
from mapsave.errors import ErrorDict
from mapsave.history.states import State
from mapsave.strict_json import Facts

Row = tuple[Any, ...]  # what SQLite returns
Bound = bytes | float | None  # what SQLite is given

_NEWEST = 2**63 - 1  # the highest rowid there can be, sqlite.org/autoinc.html


@dataclass(frozen=True)
class Record:
    """One operation. Times are in seconds since the epoch; ``ended`` is None while under way.

    ``parent`` is the id of the operation it is part of.
    """

    id: str
    kind: str
    state: State
    guest: str | None
    job: str | None
    parent: str | None
    image: str | None
    user: str
    request: Facts
    created: float
    started: float | None = None
    ended: float | None = None
    step: str | None = None
    result: Facts | None = None
    error: ErrorDict | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the operation as the service's API shows one that is not under way there."""
        return {**vars(self), **self.times(), "progress": None, "revision": 0}

    def times(self) -> dict[str, str | None]:
        """Return its times as JSON has them."""
        found = {name: getattr(self, name) for name in sorted(_TIMES)}
        return {name: at if at is None else units.timestamp(at) for name, at in found.items()}


@dataclass(frozen=True)
class Step:
    """One step of an operation: when it was recorded (seconds since the epoch), its facts."""

    time: float
    step: str
    data: Facts

    def as_dict(self) -> dict[str, object]:
        """Return the step as the service's API shows it."""
        return {**vars(self), "time": units.timestamp(self.time)}


class Sample(NamedTuple):
    """How far an operation was at some time (seconds since the epoch); sizes in bytes."""

    time: float
    phase: str
    done_bytes: int
    total_bytes: int

    def as_dict(self) -> dict[str, object]:
        """Return the sample as the service's API shows it."""
        return {**self._asdict(), "time": units.timestamp(self.time)}


class Query(NamedTuple):
    """An SQL statement and the values of its question marks."""

    sql: str
    values: Sequence[Bound]


COLUMNS = tuple(field.name for field in dataclasses.fields(Record))
CHANGEABLE = frozenset({"state", "guest", "job", "image", "started", "step"})
_OBJECTS = frozenset({"request", "result", "error"})
_TIMES = frozenset({"created", "started", "ended"})
_TEXT = "CAST(? AS TEXT)"
_RECORDS = f"SELECT {', '.join(COLUMNS)} FROM operations"  # noqa: S608 (our own words)


def text(value: str) -> bytes:
    """Return what to bind where a statement casts to TEXT."""
    return value.encode("utf-8", "surrogatepass")


def from_text(value: bytes) -> str:
    """Return the text that SQLite has stored: the ``text_factory`` of our connections."""
    return value.decode("utf-8", "surrogatepass")


def record(row: Row) -> Record:
    """Return the operation in a row of ``COLUMNS``. Raises ValueError where it is damaged."""
    found = dict(zip(COLUMNS, row, strict=True))
    for column in _OBJECTS:
        if found[column] is not None:
            found[column] = strict_json.decoded(found[column])
    return Record(**{**found, "state": State(found["state"])})


def insertion(new: Record) -> Query:
    """Return how an operation is entered."""
    values = [_bound(column, getattr(new, column)) for column in COLUMNS]
    places = ", ".join(map(_place, COLUMNS))
    return Query(f"INSERT INTO operations ({', '.join(COLUMNS)}) VALUES ({places})", values)  # noqa: S608


def update(operation: str, fields: Mapping[str, object]) -> Query:
    """Return how fields of an operation under way are changed; an outcome stays as it is."""
    changes = ", ".join(f"{column} = {_place(column)}" for column in fields)
    values = [_bound(column, value) for column, value in fields.items()]
    sql = f"UPDATE operations SET {changes} WHERE id = {_TEXT} AND ended IS NULL"  # noqa: S608
    return Query(sql, [*values, text(operation)])


def get(operation: str) -> Query:
    """Return how one operation is asked for."""
    return Query(f"{_RECORDS} WHERE id = {_TEXT}", [text(operation)])


def number(operation: str) -> Query:
    """Return how the number of an operation is asked for: they count up as operations begin."""
    return Query(f"SELECT number FROM operations WHERE id = {_TEXT}", [text(operation)])  # noqa: S608


def named(prefix: str, limit: int) -> Query:
    """Return how the first ids that begin with ``prefix`` are asked for."""
    # A range, unlike LIKE and GLOB, has no wildcards; U+10FFFF sorts after all that may follow.
    sql = (
        f"SELECT id FROM operations WHERE id >= {_TEXT} AND id < {_TEXT}"  # noqa: S608
        " ORDER BY id LIMIT ?"
    )
    return Query(sql, [text(prefix), text(prefix + "\U0010ffff"), limit])


def find(wanted: Mapping[str, str | None], limit: int, below: int = _NEWEST) -> Query:
    """Return how operations are asked for, newest first; None wants any value of a column."""
    given = {column: text(value) for column, value in wanted.items() if value is not None}
    where = "".join(f"{column} = {_TEXT} AND " for column in given)
    sql = f"{_RECORDS} WHERE {where}number < ? ORDER BY number DESC LIMIT ?"
    return Query(sql, [*given.values(), below, limit])


def unfinished() -> Query:
    """Return how the operations that have no outcome are asked for, oldest first."""
    return Query(f"{_RECORDS} WHERE ended IS NULL ORDER BY number", [])


def last_successes() -> Query:
    """Return how guest, job and end of each last save that is done are asked for."""
    # Without statistics SQLite would take the index of the kinds, and sort.
    sql = (
        "SELECT guest, job, max(ended) FROM operations INDEXED BY operations_saved"
        " WHERE kind = 'save' AND state = 'done' AND guest IS NOT NULL GROUP BY guest, job"
    )
    return Query(sql, [])


def steps(operation: str) -> Query:
    """Return how the steps of an operation are asked for, in their order."""
    of = f"(SELECT number FROM operations WHERE id = {_TEXT})"  # noqa: S608
    sql = f"SELECT time, step, data FROM steps WHERE operation = {of} ORDER BY number"  # noqa: S608
    return Query(sql, [text(operation)])


def course(operation: str) -> Query:
    """Return how the samples of an operation's progress are asked for."""
    of = f"(SELECT number FROM operations WHERE id = {_TEXT})"  # noqa: S608
    return Query(f"SELECT samples FROM courses WHERE operation = {of}", [text(operation)])  # noqa: S608


def removal(before: float, limit: int) -> Query:
    """Return how ended operations are removed, their steps with them."""
    sql = (
        "DELETE FROM operations WHERE number IN"
        " (SELECT number FROM operations WHERE ended < ? LIMIT ?)"
    )
    return Query(sql, [before, limit])


def _place(column: str) -> str:
    return "?" if column in _TIMES else _TEXT


def _bound(column: str, value: object) -> Bound:
    match value:
        case None:
            return None
        case _ if column in _OBJECTS:
            return strict_json.encoded(value)
        case int() | float():
            return float(value)
    return text(str(value))
