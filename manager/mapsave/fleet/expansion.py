"""Make the tasks of a run in one transaction: jobs of Procrastinate, and what is known of each.

A task is for one guest of one host. Which guests there are is what the agents have reported.
"""

from __future__ import annotations

import datetime
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mapsave import key_types
from mapsave.fleet import naming, patterns
from mapsave.fleet.patterns import Place

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection

# States of guests, as the hosts report them, in which there is nothing to save.
_NOT_RUNNING = ("not running", "shut off", "crashed")
FIRST = 10_000  # the priority of what cannot wait: evacuations, and the way back


@dataclass(frozen=True)
class Run:
    """What is to be done, and why; times in UTC. ``limit`` is of each task, in seconds."""

    kind: str
    requested_by: str | None = None  # by the scheduler, where it is None
    job: str | None = None
    host: str | None = None
    due: datetime.datetime | None = None
    max_failures: int | None = None
    priority: int = 0
    limit: float = 3600.0
    begins: datetime.datetime | None = None
    not_after: datetime.datetime | None = None
    deadline: datetime.datetime | None = None


@dataclass(frozen=True)
class Task:
    """One operation that a host is asked for: ``request`` is the body for its service."""

    place: Place
    request: dict[str, Any]
    target: str
    image: str | None
    uuid: uuid.UUID = field(default_factory=uuid.uuid4)


@dataclass(frozen=True)
class Known:
    """A guest that an agent has reported; ``target`` is that of its host, which may have none."""

    place: Place
    state: str | None
    target: str | None


@dataclass(frozen=True)
class Chosen:
    """The guests that get a task, and why others get none: how many for which reason."""

    guests: list[Known]
    left_out: Counter[str]

    @property
    def why(self) -> str | None:
        """The reasons in words, None where no guest was left out."""
        words = (f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        return ", ".join(words) or None


async def known_guests(connection: Connection, host: str | None = None) -> list[Known]:
    """Return the guests of the fleet, or of one host, by host and name."""
    cursor = await connection.execute(
        """SELECT g.host, g.guest, g.facts ->> 'state' AS state, h.target
        FROM guests g JOIN hosts h ON h.name = g.host
        WHERE %(host)s::text IS NULL OR g.host = %(host)s ORDER BY g.host, g.guest""",
        {"host": host},
    )
    return [
        Known(Place(row["host"], row["guest"]), row["state"], row["target"]) async for row in cursor
    ]


async def busy_places(connection: Connection, kinds: Sequence[str]) -> set[Place]:
    """Return the guests that have an unfinished task of a run of one of ``kinds``."""
    cursor = await connection.execute(
        """SELECT t.host, t.guest FROM tasks t JOIN runs r ON r.id = t.run
        JOIN procrastinate_jobs j ON j.id = t.job_id
        WHERE j.status IN ('todo', 'doing') AND r.kind = ANY(%s)""",
        [list(kinds)],
    )
    return {Place(row["host"], row["guest"]) async for row in cursor}


def choose(words: Iterable[str], guests: Sequence[Known], busy: set[Place], what: str) -> Chosen:
    """Return which of ``guests`` a job's patterns mean, without those that get no task of it.

    ``busy`` are those that have one, ``what`` says of which kind.
    """
    by_place = {each.place: each for each in guests}
    kept, left_out = [], Counter[str]()
    for place in patterns.chosen(words, by_place):
        guest = by_place[place]
        if reason := _left_out(guest, busy, what):
            left_out[reason] += 1
        else:
            kept.append(guest)
    return Chosen(kept, left_out)


def _left_out(guest: Known, busy: set[Place], what: str) -> str | None:
    if guest.place in busy:
        return f"with a {what} that is not finished"
    if guest.state in _NOT_RUNNING:
        return "not running"
    if guest.place.guest.startswith(key_types.ADDRESSES):
        return "not in the configuration of their host"
    return "of a host that fleet.yaml does not name" if guest.target is None else None


async def add(connection: Connection, run: Run, tasks: Sequence[Task], why: str | None) -> int:
    """Write a run and its tasks; return its number. Raises psycopg.Error, and then nothing is."""
    cursor = await connection.execute(
        """INSERT INTO runs (kind, job, host, requested_by, due, max_failures, deadline, why)
        VALUES (%s, %s, %s, coalesce(%s, session_user), %s, %s, %s, %s) RETURNING id""",
        [
            *(run.kind, run.job, run.host, run.requested_by, run.due),
            *(run.max_failures, run.deadline, why),
        ],
    )
    row = await cursor.fetchone()
    assert row is not None
    number = int(row["id"])
    if tasks:
        await _defer(connection, run, number, tasks)
    return number


async def _defer(connection: Connection, run: Run, number: int, tasks: Sequence[Task]) -> None:
    from procrastinate import jobs

    from mapsave.fleet import connector

    limit = max(1, round(run.limit))
    until = None if run.not_after is None else run.not_after.isoformat()
    wanted = [
        jobs.Job(
            id=None,
            queue=each.place.host,
            task_name=naming.TASK,
            priority=run.priority,
            lock=f"{each.place.host}/{each.place.guest}",
            queueing_lock=None,
            scheduled_at=run.begins,
            task_kwargs={
                "task": str(each.uuid),
                "run": number,
                "request": each.request,
                "target": each.target,
                "not_after": until,
                "limit_s": limit,
            },
        )
        for each in tasks
    ]
    made = await connector.job_manager(connection).batch_defer_jobs_async(wanted)
    async with (
        connection.cursor() as cursor,
        cursor.copy(
            """COPY tasks (job_id, uuid, run, host, guest, image, operation, target, priority,
        not_after, limit_s) FROM STDIN"""
        ) as copy,
    ):
        for job, each in zip(made, tasks, strict=True):
            operation = naming.operation_of(each.uuid)
            place = each.place
            await copy.write_row(
                [
                    *(job.id, each.uuid, number, place.host, place.guest, each.image, operation),
                    *(each.target, run.priority, run.not_after, limit),
                ]
            )
