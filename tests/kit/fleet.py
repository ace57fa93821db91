"""A fleet in a database of its own, with hosts and tasks that tests make by hand."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from mapsave.database_settings import Database
from mapsave.fleet import database, naming, schema
from mapsave.fleet.database import Connection

from tests.kit import postgres


@dataclass
class Task:
    """What a task is made of, where that matters to a test."""

    host: str
    guest: str = "web01"
    run: int | None = None
    target: str | None = None
    priority: int = 0
    not_after: str | None = None
    scheduled_at: str | None = None
    limit_s: int = 3600
    args: dict[str, Any] | None = None  # of its job, instead of those of a save
    uuid: UUID = field(default_factory=uuid4)

    @property
    def operation(self) -> str:
        return naming.operation_of(self.uuid)


@dataclass
class Fleet:
    """A fleet: its cluster, its database, and a directory for files with connection strings."""

    cluster: postgres.Cluster
    name: str
    directory: Path

    @property
    def settings(self) -> Database:
        """How its owner connects, who may do everything: a scheduler, an administrator."""
        return Database(dsn=self.cluster.dsn(self.name))

    @contextlib.asynccontextmanager
    async def owner(self) -> AsyncIterator[Connection]:
        """Connect as its owner."""
        async with database.connected(self.settings, "test") as connection:
            yield connection

    async def add_host(self, host: str, *, saves: int = 4, target: str | None = None) -> Database:
        """Add a host; return how its agent connects."""
        made = await schema.add_host(self.settings, host, saves)
        async with self.owner() as connection:
            await connection.execute("UPDATE hosts SET target = %s WHERE name = %s", (target, host))
        return self._kept(host, made["dsn"])

    async def add_person(self, role: str) -> Database:
        """Add a person; return how they connect."""
        return self._kept(role, (await schema.add_person(self.settings, role))["dsn"])

    def _kept(self, name: str, dsn: str) -> Database:
        path = self.directory / f"{name}.dsn"
        path.touch(mode=0o600)
        path.write_text(dsn + "\n")
        return Database(dsn_file=path)


async def made(cluster: postgres.Cluster, name: str, directory: Path) -> Fleet:
    """Make a database with a fleet in it."""
    cluster.sql(f"CREATE DATABASE {name} OWNER {postgres.OWNER}")
    found = Fleet(cluster, name, directory)
    await schema.init(found.settings)
    return found


async def add_target(
    connection: Connection, name: str, saves: int, bandwidth: int | None = None
) -> None:
    """Add a storage target, as the owner."""
    await connection.execute(
        "INSERT INTO targets (name, saves, bandwidth) VALUES (%s, %s, %s)", (name, saves, bandwidth)
    )


async def add_run(connection: Connection, *, max_failures: int | None = None) -> int:
    """Add a run, as the owner; return its id."""
    query = "INSERT INTO runs (kind, max_failures) VALUES ('run', %s) RETURNING id"
    return int(await one(connection, query, max_failures))


async def add_task(connection: Connection, task: Task) -> UUID:
    """Queue a task, as the owner; return its UUID."""
    run = task.run if task.run is not None else await add_run(connection)
    request = {"kind": "save", "guest": task.guest}
    args = task.args or {"task": str(task.uuid), "run": run, "request": request}
    await connection.execute(
        """
        WITH job AS (
            SELECT unnest(procrastinate_defer_jobs_v1(ARRAY[ROW(
                %s, %s, %s, %s, NULL, %s::jsonb, %s::timestamptz
            )::procrastinate_job_to_defer_v1])) AS id)
        INSERT INTO tasks (job_id, uuid, run, host, guest, operation, target, priority, not_after,
            limit_s)
        SELECT id, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM job
        """,
        (
            *(task.host, naming.TASK, task.priority, f"{task.host}/{task.guest}"),
            *(json.dumps(args), task.scheduled_at),
            *(task.uuid, run, task.host, task.guest, task.operation, task.target, task.priority),
            *(task.not_after, task.limit_s),
        ),
    )
    return task.uuid


async def status(connection: Connection, task: UUID) -> str:
    """Return the status of a task's job."""
    return str(
        await one(
            connection,
            "SELECT status FROM procrastinate_jobs j JOIN tasks t ON t.job_id = j.id"
            " WHERE t.uuid = %s",
            task,
        )
    )


async def one(connection: Connection, query: str, *values: object) -> Any:
    """Return the first column of the one row of a query."""
    rows = await all_rows(connection, query, *values)
    assert len(rows) == 1, rows
    return next(iter(rows[0].values()))


async def all_rows(connection: Connection, query: str, *values: object) -> list[dict[str, Any]]:
    """Return the rows of a query."""
    cursor = await connection.execute(query, values or None)  # type: ignore[call-overload]
    rows: list[dict[str, Any]] = await cursor.fetchall()
    return rows
