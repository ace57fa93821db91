"""Looking up what is in the history, by a thread and a connection of their own."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import TypeVar

from mapsave import errors, strict_json
from mapsave.history import rows, schema
from mapsave.history.rows import Record, Sample, Step

T = TypeVar("T")

_NAMED = 10  # ids: more are no help to a user who typed too few characters


class Reader:
    """What the history has come to; no reader waits for a disk that syncs."""

    def __init__(
        self, path: Path, reader: futures.Executor, connection: sqlite3.Connection
    ) -> None:
        """``connection`` reads, and is used in the thread of ``reader`` only."""
        self._path = path
        self._reader = reader
        self._connection = connection
        self._closed = False

    async def get(self, operation: str) -> Record | None:
        """Return an operation; None if there is none of that id. Raises Refused."""
        found = await self._records(rows.get(operation))
        return found[0] if found else None

    async def named(self, prefix: str) -> list[str]:
        """Return the ids that begin with ``prefix``, at most 10, sorted. Raises Refused."""
        found = await self._rows(rows.named(prefix, _NAMED))
        return [row[0] for row in found]

    async def find(
        self,
        *,
        state: str | None = None,
        kind: str | None = None,
        guest: str | None = None,
        job: str | None = None,
        parent: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """Return the operations that are as wanted, the one that began last first.

        At most ``limit``; ``before`` is the id of the last one of the page before. Raises
        UnknownOperation where that is not in the history (any more), Refused.
        """
        if limit < 1:
            raise ValueError("limit must be 1 or more")  # SQLite takes a negative one for none
        wanted = {"state": state, "kind": kind, "guest": guest, "job": job, "parent": parent}
        if before is None:
            return await self._records(rows.find(wanted, limit))
        number = await self._rows(rows.number(before))
        if not number:
            raise errors.UnknownOperation(
                f"no operation {before!r} in the history to continue from",
                hint="it may have been removed since; start again from the newest",
            )
        return await self._records(rows.find(wanted, limit, below=number[0][0]))

    async def steps(self, operation: str) -> list[Step]:
        """Return the steps of an operation, in their order; none if it is unknown.

        One that was queued a moment ago may not be among them yet. Raises Refused.
        """

        def steps(found: list[rows.Row]) -> list[Step]:
            return [Step(time, step, strict_json.decoded(data)) for time, step, data in found]

        return await self._read(rows.steps(operation), steps)

    async def course(self, operation: str) -> list[Sample]:
        """Return samples of an operation's progress, oldest first; none if it is under way, or its
        service died. Raises Refused.
        """

        def course(found: list[rows.Row]) -> list[Sample]:
            return [Sample(*each) for (samples,) in found for each in strict_json.decoded(samples)]

        return await self._read(rows.course(operation), course)

    async def unfinished(self) -> list[Record]:
        """Return the operations that have no outcome, the one that began first first.

        At the start of the service these are what a service that died has left. Raises Refused.
        """
        return await self._records(rows.unfinished())

    async def last_successes(self) -> list[tuple[str, str | None, float]]:
        """Return guest, job and end (seconds since the epoch) of each last save that is done.

        Those that were pruned are forgotten. Raises Refused.
        """
        found = await self._rows(rows.last_successes())
        return [(guest, job, ended) for guest, job, ended in found]

    async def last_run(self, job: str) -> float | None:
        """Return when a job ran last (seconds since the epoch); None if never. Raises Refused."""
        sql = "SELECT time FROM runs WHERE job = CAST(? AS TEXT)"
        found = await self._rows(rows.Query(sql, [rows.text(job)]))
        return float(found[0][0]) if found else None

    def close(self) -> None:
        """Take nothing any more; what is queued is still done."""
        self._closed = True

    async def _records(self, query: rows.Query) -> list[Record]:
        return await self._read(query, lambda found: [rows.record(row) for row in found])

    async def _rows(self, query: rows.Query) -> list[rows.Row]:
        return await self._read(query, list)

    async def _read(self, query: rows.Query, shape: Callable[[list[rows.Row]], T]) -> T:
        def read() -> T:
            return shape(self._connection.execute(*query).fetchall())

        self._check_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, read)
        except (sqlite3.Error, ValueError) as error:
            raise schema.failure(self._path, "read", error) from None

    def _check_open(self) -> None:
        if self._closed:
            raise errors.ServiceStopping("the history is closed: the service is stopping")
