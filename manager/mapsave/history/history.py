"""The history of the service: every operation, its steps, its outcome, and when each job last ran.

An SQLite database. One thread writes and one reads, so that neither the loop nor a reader waits
for a disk that syncs. It is history, and what the API reports; what recovery works from is the
step journal of ``operations/journal.py``.
"""

import asyncio
import contextlib
import functools
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import TypeVar

from mapsave import errors, shielded, strict_json
from mapsave.history import rows, schema, writer
from mapsave.history.reader import Reader
from mapsave.history.rows import Record, Sample, Step
from mapsave.history.states import ENDED, State
from mapsave.strict_json import Facts

__all__ = ["History", "Record", "Step", "opened"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_PRUNED = 500  # operations in one transaction, so that one which begins need not wait long


class History(Reader):
    """The history, open; ``opened`` makes one. Its methods are for the loop's thread."""

    def __init__(
        self,
        path: Path,
        writer: writer.Writer,
        reader: futures.Executor,
        connection: sqlite3.Connection,
    ) -> None:
        super().__init__(path, reader, connection)
        self._writer = writer

    async def begin(self, record: Record) -> None:
        """Enter an operation: on stable storage when this returns.

        Cancelled, it is not entered. Raises Refused where the history cannot be written: then the
        operation must not begin.
        """
        query = rows.insertion(record)

        def enter(connection: sqlite3.Connection) -> int | None:
            return connection.execute(*query).lastrowid

        written = self._put(enter)
        try:
            await asyncio.wrap_future(written)
        except asyncio.CancelledError:
            if not written.cancel():
                self._take_back(record.id, written)
            raise
        except sqlite3.Error as error:
            raise schema.failure(self._path, "write", error) from None

    def step(self, operation: str, step: str, data: Mapping[str, object]) -> None:
        """Queue a step of an operation; never blocks, and raises nothing.

        It is on stable storage once what is written after it is. Logged if it cannot be written.
        """
        now = time.time()
        facts = strict_json.dumps(dict(data), default=str)

        def add(connection: sqlite3.Connection, number: int) -> None:
            connection.execute(
                "INSERT INTO steps (operation, time, step, data) VALUES (?, ?, CAST(? AS TEXT), ?)",
                (number, now, rows.text(step), facts),
            )
            connection.execute(*rows.update(operation, {"step": step}))

        self._queue(operation, add, f"step {step!r} of operation {operation}, with {facts}")

    def note_course(self, operation: str, samples: Sequence[Sample]) -> None:
        """Queue samples of an operation's progress, oldest first; as ``step`` does."""
        data = strict_json.dumps(samples)

        def add(connection: sqlite3.Connection, number: int) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO courses (operation, samples) VALUES (?, ?)", (number, data)
            )

        self._queue(operation, add, f"the progress of operation {operation}")

    def _queue(
        self, operation: str, add: Callable[[sqlite3.Connection, int], None], what: str
    ) -> None:
        """Queue what ``add`` writes about an operation, whose number it gets."""

        def find_and_add(connection: sqlite3.Connection) -> None:
            found = connection.execute(*rows.number(operation)).fetchone()
            if found is None:
                raise _unknown(operation)
            add(connection, found[0])

        try:
            written = self._put(find_and_add)
        except errors.ServiceStopping as error:
            _log.error("could not record %s: %s", what, error)
            return
        written.add_done_callback(functools.partial(_log_loss, what))

    async def change(self, operation: str, **fields: object) -> None:
        """Change fields of an operation under way: state, started, step, guest, job or image.

        Done when this returns, and cancelled too. Raises UnknownOperation where no such one is
        under way, Refused where the history cannot be written.
        """
        if not fields or not fields.keys() <= rows.CHANGEABLE:
            raise TypeError(f"cannot change {sorted(fields)} of an operation")
        await self._update(operation, fields, f"a change of operation {operation}: {fields}")

    async def end(
        self,
        operation: str,
        state: State,
        *,
        ended: float | None = None,
        result: Facts | None = None,
        error: errors.ErrorDict | None = None,
    ) -> None:
        """Enter the outcome of an operation: on stable storage when this returns.

        ``state`` is one of ``ENDED``, since ``ended``, or else since now. Entered also
        when cancelled. Raises UnknownOperation where no such one is under way, Refused where the
        history cannot be written: it counts as under way then.
        """
        if state not in ENDED:
            raise ValueError(f"an operation does not finish as {state!r}")
        outcome: dict[str, object] = {"state": state, "ended": ended or time.time()}
        outcome |= {"result": result, "error": error}
        # Not with its result, which may have tens of thousands of lines.
        await self._update(
            operation, outcome, f"the end of operation {operation}: {state}, {error}"
        )

    async def ran(self, job: str, when: float) -> None:
        """Note that a job ran, at ``when`` (seconds since the epoch). Raises Refused."""

        def note(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO runs (job, time) VALUES (CAST(? AS TEXT), ?)"
                " ON CONFLICT (job) DO UPDATE SET time = excluded.time",
                (rows.text(job), when),
            )

        await self._write(note, f"that job {job!r} ran at {when}")

    async def prune(self, before: float) -> int:
        """Remove the operations that ended before that time, with their steps; return how many.

        Those under way stay, however old. Raises Refused.
        """

        def remove(connection: sqlite3.Connection) -> int:
            return connection.execute(*rows.removal(before, _PRUNED)).rowcount

        removed = 0
        while found := await self._write(remove, "a removal of old operations"):
            removed += found
        return removed

    def size_bytes(self) -> int:
        """Return the bytes of the database and its write-ahead log."""
        size = 0
        for path in (self._path, self._path.with_name(f"{self._path.name}-wal")):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def _put(self, work: Callable[[sqlite3.Connection], T]) -> futures.Future[T]:
        self._check_open()
        return self._writer.put(work)

    def _take_back(self, operation: str, written: futures.Future[int | None]) -> None:
        def remove(connection: sqlite3.Connection) -> None:
            if written.exception() is None:
                connection.execute("DELETE FROM operations WHERE number = ?", (written.result(),))

        if not self._closed:
            what = f"that operation {operation} did not begin"
            self._writer.put(remove).add_done_callback(functools.partial(_log_loss, what))

    async def _update(self, operation: str, fields: Mapping[str, object], what: str) -> None:
        def update(connection: sqlite3.Connection) -> None:
            if not connection.execute(*rows.update(operation, fields)).rowcount:
                raise _unknown(operation)

        await self._write(update, what)

    async def _write(self, work: Callable[[sqlite3.Connection], T], what: str) -> T:
        """Write, and wait for it; cancelled, it is written too, and its failure is logged."""
        written = self._put(work)
        try:
            return await asyncio.shield(asyncio.wrap_future(written))
        except asyncio.CancelledError:
            written.add_done_callback(functools.partial(_log_loss, what))
            raise
        except sqlite3.Error as error:
            raise schema.failure(self._path, "write", error) from None


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[History]:
    """Open the history at ``path``, made (mode 0600) or migrated if it must be.

    At the end everything queued is written, and both threads are gone, cancelled or not. Raises
    Unsupported for a history of a newer mapsave, Refused for one that is damaged or cannot be
    written, NotPermitted; the file is left as it was.
    """
    loop = asyncio.get_running_loop()
    stack = contextlib.ExitStack()

    def enter(reader: futures.Executor) -> History:
        connection = stack.enter_context(schema.writing(path))
        into = stack.enter_context(writer.running(connection))
        return History(path, into, reader, stack.enter_context(schema.reading(path)))

    with futures.ThreadPoolExecutor(1, thread_name_prefix="history-reader") as reader:

        async def leave() -> None:
            # Its only thread does this when it has done what it was asked before.
            await loop.run_in_executor(reader, stack.close)

        try:
            history = await loop.run_in_executor(reader, enter, reader)
            try:
                yield history
            finally:
                history.close()
        finally:
            await shielded.to_the_end(leave())


def _unknown(operation: str) -> errors.UnknownOperation:
    return errors.UnknownOperation(f"no operation {operation!r} is in progress in the history")


def _log_loss(what: str, written: futures.Future[T]) -> None:
    if (error := written.exception()) is not None:
        _log.error("could not record %s: %s", what, error)
