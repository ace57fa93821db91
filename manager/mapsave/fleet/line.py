"""The agent's one connection to the database: it asks, and in between it listens.

A fleet has a thousand agents, and each connection is a process of PostgreSQL. So there is one for
both, where Procrastinate would have two.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, LiteralString

import psycopg
import tenacity
from procrastinate import connector, manager
from psycopg import sql
from psycopg.rows import dict_row

from mapsave import errors

ANSWER = 30.0  # seconds that the database may take for an answer
_LISTENS = 60.0  # seconds; afterwards it is looked whether there is anything else to do
_SLOWEST = 10.0  # seconds between two attempts, at most

_TOGETHER = 2.0  # seconds within which the agents of a fleet come back to a database

Row = dict[str, Any]
Query = LiteralString | sql.Composed
Connect = Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]

_log = logging.getLogger(__name__)


class Away(Exception):
    """The database does not answer, or not what it was asked; what failed may be tried again."""


class Line:
    """A connection that is made again whenever it is lost.

    ``connect`` makes one. ``heard`` is called with each notification, which anyone may have sent.
    """

    def __init__(self, connect: Connect, heard: Callable[[str], None]) -> None:
        self._connect = connect
        self._heard = heard
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._broken = asyncio.Event()
        self._ready = asyncio.Event()
        self._turn = asyncio.Lock()
        self._idle = asyncio.Event()
        self._asking = 0
        self._listening: asyncio.Future[None] | None = None
        self.why: str | None = "not connected yet"  # why there is no connection
        self.jobs = manager.JobManager(_Connector(self))

    @property
    def is_ready(self) -> bool:
        """Whether there is a connection, and everything was told that comes first."""
        return self._ready.is_set()

    async def ask(self, query: Query, arguments: object = ()) -> list[Row]:
        """Return the rows that the database answers with. Raises Away."""
        connection = self._connection
        if connection is None:
            raise Away(self.why or "the connection was lost")
        self._asking += 1
        self._idle.clear()
        if self._listening is not None:
            self._listening.cancel()
        try:
            async with self._turn, asyncio.timeout(ANSWER):
                return await _asked(connection, query, arguments)
        except (psycopg.Error, OSError) as error:  # TimeoutError is an OSError
            if connection.broken or connection.closed or not isinstance(error, psycopg.Error):
                self._broken.set()
            raise Away(_words(error)) from None
        finally:
            self._asking -= 1
            if not self._asking:
                self._idle.set()

    async def surely(self, query: Query, arguments: object = ()) -> list[Row]:
        """Do as ``ask``, again and again until the database answers; it may be away for days."""
        async for attempt in _forever(Away, "the database"):
            with attempt:
                await self._ready.wait()
                return await self.ask(query, arguments)
        raise AssertionError("it is tried forever")

    async def run(self, channel: str, connected: Callable[[], Awaitable[None]]) -> None:
        """Keep connected, forever; ``connected`` is awaited each time before others may ask.

        What ``connected`` raises but Away ends it.
        """
        while True:
            async for attempt in _forever(Away, "the database"):
                with attempt:
                    await self._once(channel, connected)
            await asyncio.sleep(random.uniform(0, _TOGETHER))  # noqa: S311 (not a secret)

    async def _once(self, channel: str, connected: Callable[[], Awaitable[None]]) -> None:
        """Connect, and stay so until the connection is lost. Raises Away where it never was."""
        async with self._opened() as connection:
            await self.ask(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            await connected()
            self.why = None
            self._ready.set()
            try:
                await self._listen(connection)
            finally:
                self._ready.clear()
                self.why = "the connection was lost"

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        try:
            async with asyncio.timeout(ANSWER):
                connection = await self._connect()
        except (psycopg.Error, errors.MapsaveError, OSError) as error:
            self.why = _words(error)
            raise Away(self.why) from None
        self._broken.clear()
        self._connection = connection
        try:
            yield connection
        finally:
            self._connection = None
            # Once no one waits for its descriptor, whose number the next connection may get. Not
            # closed in good order, which waits for a server that may be gone.
            async with self._turn:
                connection.pgconn.finish()

    def drop(self) -> None:
        """Close the connection at once: what is being asked is not waited for."""
        if self._connection is not None:
            self._connection.pgconn.finish()

    async def _listen(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Listen whenever nothing is asked, until the connection is broken."""
        self._idle.set()
        broken = asyncio.ensure_future(self._broken.wait())
        try:
            while not self._broken.is_set():
                idle = asyncio.ensure_future(self._idle.wait())
                await asyncio.wait({idle, broken}, return_when=asyncio.FIRST_COMPLETED)
                idle.cancel()
                async with self._turn:
                    if self._asking or self._broken.is_set():
                        continue
                    self._listening = asyncio.ensure_future(self._hear(connection))
                    try:
                        await asyncio.wait({self._listening})
                    finally:
                        self._listening.cancel()
                        self._listening = None
        finally:
            broken.cancel()

    async def _hear(self, connection: psycopg.AsyncConnection[Any]) -> None:
        try:
            async for each in connection.notifies(timeout=_LISTENS, stop_after=1):
                self._heard(each.payload)
        except (psycopg.Error, OSError):
            self._broken.set()


async def _asked(
    connection: psycopg.AsyncConnection[Any], query: Query, arguments: Any
) -> list[Row]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, arguments)
        return await cursor.fetchall() if cursor.description is not None else []


class _Connector(connector.BaseAsyncConnector):
    """Has Procrastinate ask over the agent's own connection."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def execute_query_async(self, query: Query, **arguments: Any) -> None:
        await self._line.ask(query, arguments)

    async def execute_query_one_async(self, query: Query, **arguments: Any) -> Row:
        rows = await self._line.ask(query, arguments)
        if not rows:
            raise Away("the database answers nothing")
        return rows[0]

    async def execute_query_all_async(self, query: Query, **arguments: Any) -> list[Row]:
        return await self._line.ask(query, arguments)


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer"
    return " ".join(str(error).split())[:500] or type(error).__name__


def _forever(kind: type[Exception], what: str) -> tenacity.AsyncRetrying:
    """Return attempts without an end, further and further apart; each reason is logged once."""
    said: list[str] = []

    def log(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        words = str(state.outcome.exception())
        if words not in said[-1:]:
            said.append(words)
            _log.warning("%s: %s; trying again", what, words)

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(kind),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=_SLOWEST),
        before_sleep=log,
    )
