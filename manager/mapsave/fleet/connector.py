"""Procrastinate on one connection, which also listens: a fleet has one for each of its hosts.

Procrastinate's own connector has a pool, and one more connection to listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, LiteralString

from procrastinate import connector, exceptions, manager
from psycopg import sql
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    import psycopg

    from mapsave.fleet.database import Connection

# Seconds between two looks for notifications that came with the answer of another query.
_LOOK = 5.0


class OneConnection(connector.BaseAsyncConnector):
    """A connector whose queries go through one connection, one after another.

    Errors are psycopg's own.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def open_async(self, pool: object = None) -> None:
        """Do nothing: the connection is open."""

    async def close_async(self) -> None:
        """Do nothing: whoever has connected closes."""

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        await self._connection.execute(query, _adapted(arguments))

    async def execute_query_one_async(
        self, query: LiteralString, **arguments: Any
    ) -> dict[str, Any]:
        row = await (await self._connection.execute(query, _adapted(arguments))).fetchone()
        if row is None:
            raise exceptions.NoResult
        return row

    async def execute_query_all_async(
        self, query: LiteralString, **arguments: Any
    ) -> list[dict[str, Any]]:
        return await (await self._connection.execute(query, _adapted(arguments))).fetchall()

    async def listen_notify(
        self, on_notification: connector.Notify, channels: Iterable[str]
    ) -> None:
        """Listen, and pass on what comes, until cancelled or the connection breaks."""
        for channel in channels:
            await self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        async for each in notifications(self._connection):
            await on_notification(channel=each.channel, payload=each.payload)


def job_manager(connection: Connection) -> manager.JobManager:
    """Return Procrastinate's manager of jobs on a connection."""
    return manager.JobManager(OneConnection(connection))


async def notifications(connection: Connection) -> AsyncIterator[psycopg.Notify]:
    """Yield notifications as they come; other queries may be made on the connection in between.

    Raises psycopg.OperationalError when the connection breaks.
    """
    while True:
        # All at once: the generator holds the connection, which whoever gets them may need.
        for each in [found async for found in connection.notifies(timeout=0)]:
            yield each
        with _readable(connection) as event, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK):
                await event.wait()


@contextlib.contextmanager
def _readable(connection: Connection) -> Iterator[asyncio.Event]:
    """Yield an event that is set when the connection's socket has something to read.

    A duplicate of its descriptor: psycopg waits by the original, and a loop has one reader for
    each number.
    """
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    number = os.dup(connection.fileno())
    try:
        loop.add_reader(number, event.set)
        yield event
    finally:
        loop.remove_reader(number)
        os.close(number)


def _adapted(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: _json(value) for key, value in arguments.items()}


def _json(value: object) -> object:
    if isinstance(value, dict):
        return Jsonb(value)
    if isinstance(value, list):
        return [_json(each) for each in value]
    return tuple(_json(each) for each in value) if isinstance(value, tuple) else value
