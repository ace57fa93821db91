"""Which of the schedulers leads: one at a time, and what a former one still writes fails.

The leader holds a lock on the table ``leader``, in a transaction of a connection that does nothing
else: it ends with the connection. Not an advisory lock, which any role that may connect can take.
PostgreSQL ends a transaction that is idle for too long, so the lock of a leader that is cut off is
free after ``SILENCE``.

That lock does not stop what a former leader has sent on its other connection. Who leads begins a
term, whose number is in the table ``term``; each transaction of the leader shares the lock of that
row, and finds another number there where its term is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from mapsave import errors

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection

_log = logging.getLogger(__name__)

SILENCE = 15  # seconds after which the lock of a leader that is not heard of is free
_SIGN = 3.0  # seconds between two signs of life
_ANSWER = 10.0  # seconds for an answer to one; then the lock may be another's


class Term:
    """The time in which one scheduler leads; ``work`` is the connection that it writes on."""

    def __init__(self, number: int, work: Connection) -> None:
        self.number = number
        self._work = work

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Yield the connection in a transaction that commits only as long as the term lasts.

        Raises NotLeading where it is over, and psycopg.Error.
        """
        async with self._work.transaction():
            cursor = await self._work.execute(
                "SELECT 1 FROM term WHERE number = %s FOR SHARE", [self.number]
            )
            if await cursor.fetchone() is None:
                raise errors.NotLeading("another scheduler has taken over")
            yield self._work


@contextlib.asynccontextmanager
async def lock(connection: Connection) -> AsyncIterator[bool]:
    """Yield whether ``connection`` holds the lock of the leader, and give it back at the end.

    Nothing else may be done on the connection in the meantime, but ``hold``.
    Raises psycopg.Error.
    """
    import psycopg

    await connection.execute("BEGIN")
    try:
        await connection.execute(
            f"SET LOCAL idle_in_transaction_session_timeout = {SILENCE * 1000}"
        )
        try:
            # Without a savepoint, for that would need a transaction id as long as it lasts.
            await connection.execute("LOCK TABLE leader IN EXCLUSIVE MODE NOWAIT")
        except psycopg.errors.LockNotAvailable:
            yield False
        else:
            yield True
    finally:
        with contextlib.suppress(psycopg.OperationalError):  # it has ended, and the lock with it
            await connection.execute("ROLLBACK")


async def hold(connection: Connection) -> None:
    """Give signs of life on the connection that holds the lock, until that fails.

    Raises NotLeading where the lock is lost.
    """
    import psycopg

    while True:
        await asyncio.sleep(_SIGN)
        try:
            async with asyncio.timeout(_ANSWER):
                await connection.execute("SELECT 1")
        except (TimeoutError, psycopg.Error) as error:
            words = str(error).strip() or "the database does not answer"
            raise errors.NotLeading(f"the lock of the leader is lost: {words}") from None


async def begin_term(work: Connection) -> Term:
    """Begin a term, once the transaction of a former leader that is under way has ended.

    Only who holds the lock may. Raises psycopg.Error.
    """
    cursor = await work.execute("UPDATE term SET number = number + 1 RETURNING number")
    row = await cursor.fetchone()
    assert row is not None
    _log.info("leading: term %s", row["number"])
    return Term(int(row["number"]), work)
