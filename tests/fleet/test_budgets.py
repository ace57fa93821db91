"""Budgets of storage targets and hosts, kept by the database: real connections, all at once."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mapsave.fleet import connector, database
from mapsave.fleet.database import Connection

from tests.kit import fleet as kit
from tests.kit.fleet import Fleet, Task


@asynccontextmanager
async def agent(fleet: Fleet, host: str, **how: object) -> AsyncIterator[Connection]:
    settings = await fleet.add_host(host, **how)  # type: ignore[arg-type]
    async with database.connected(settings, "agent") as connection:
        yield connection


async def fetch(connection: Connection, host: str) -> uuid.UUID | None:
    """Take the next task of a host's queue, as an agent does."""
    manager = connector.job_manager(connection)
    worker = await manager.register_worker()
    job = await manager.fetch_job(queues=[host], worker_id=worker)
    return None if job is None else uuid.UUID(str(job.task_kwargs["task"]))


async def take(connection: Connection, task: uuid.UUID) -> str:
    return str((await kit.all_rows(connection, "SELECT * FROM take_slot(%s)", task))[0]["state"])


async def test_a_task_is_taken_once_and_reported(fleet: Fleet) -> None:
    async with agent(fleet, "rack1-a") as host, fleet.owner() as owner:
        await kit.add_target(owner, "nas1", 2, 1001)
        task = await kit.add_task(owner, Task("rack1-a", target="nas1"))
        assert await fetch(host, "rack1-a") == task
        assert await fetch(host, "rack1-a") is None
        (slot,) = await kit.all_rows(host, "SELECT * FROM take_slot(%s)", task)
        assert slot == {"state": "taken", "slot": 1, "bandwidth": 500, "why": None}
        report = "SELECT report(%s, 'succeeded', '{\"image\": \"a\"}')"
        assert await kit.one(host, report, task) is True
        assert await kit.one(host, report, task) is False
        assert await kit.status(owner, task) == "succeeded"
        assert await kit.one(owner, "SELECT count(*) FROM slots") == 0
        events = await kit.all_rows(owner, "SELECT type FROM procrastinate_events ORDER BY id")
        assert [each["type"] for each in events] == ["deferred", "started", "succeeded"]
