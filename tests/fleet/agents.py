"""What an agent asks of the database, for tests of the database alone."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mapsave.database_settings import Database
from mapsave.fleet import connector, database
from mapsave.fleet.database import Connection

from tests.kit import fleet as kit


@asynccontextmanager
async def agent(settings: Database) -> AsyncIterator[Connection]:
    """Connect as an agent does."""
    async with database.connected(settings, "agent test") as connection:
        yield connection


async def fetch(connection: Connection, host: str) -> uuid.UUID | None:
    """Take the next task of a host's queue; None where nothing is due."""
    manager = connector.job_manager(connection)
    worker = await manager.register_worker()
    job = await manager.fetch_job(queues=[host], worker_id=worker)
    return None if job is None else uuid.UUID(str(job.task_kwargs["task"]))


async def take(connection: Connection, task: uuid.UUID) -> str:
    """Ask for a slot; return the state of the answer."""
    (row,) = await kit.all_rows(connection, "SELECT * FROM take_slot(%s)", task)
    return str(row["state"])


async def report(connection: Connection, task: uuid.UUID, status: str = "succeeded") -> bool:
    """Report the outcome of a task; return whether it was settled by that."""
    return bool(await kit.one(connection, "SELECT report(%s, %s, '{}')", task, status))


async def says(connection: Connection) -> int:
    """Give word of an agent; return how many operations its host may do at once."""
    return int(await kit.one(connection, "SELECT agent_says('0.1', '{}')"))
