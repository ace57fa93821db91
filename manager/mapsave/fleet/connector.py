"""Procrastinate's manager of jobs on a connection of the caller's, within its transaction.

Procrastinate's own connector takes connections from a pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

from procrastinate import connector, exceptions, manager
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection


class OneConnection(connector.BaseAsyncConnector):
    """A connector whose queries go through one connection, one after another.

    Errors are psycopg's own.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def open_async(self, pool: object = None) -> None:
        """Do nothing: the connection is open."""

    async def close_async(self) -> None:
        """Do nothing: the caller has connected, and closes."""

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


def job_manager(connection: Connection) -> manager.JobManager:
    """Return Procrastinate's manager of jobs on a connection."""
    return manager.JobManager(OneConnection(connection))


def _adapted(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: _json(value) for key, value in arguments.items()}


def _json(value: object) -> object:
    if isinstance(value, dict):
        return Jsonb(value)
    if isinstance(value, list):
        return [_json(each) for each in value]
    return tuple(_json(each) for each in value) if isinstance(value, tuple) else value
