"""The runs that jobs, evacuations and returns mean: which tasks, with which requests.

Each function works in a transaction of the caller's, and raises psycopg.Error as that does.
"""

from __future__ import annotations

import datetime
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from mapsave import errors
from mapsave.fleet import expansion
from mapsave.fleet.expansion import FIRST, Chosen, Known, Run, Task
from mapsave.fleet.patterns import Place
from mapsave.fleet.settings import HOUR, FleetJob, FleetSave
from mapsave.jobs import template
from mapsave.strict_json import Facts

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection

_SAVES = ("run", "evacuate")  # kinds of runs whose tasks save


@dataclass(frozen=True)
class Order:
    """Who asks, and when; ``due`` is the time of its schedule that a run is for."""

    now: datetime.datetime
    requested_by: str | None = None
    due: datetime.datetime | None = None


@dataclass(frozen=True)
class Made:
    """A run that was made: its number, and how many guests got a task or none, and why."""

    run: int
    tasks: int
    left_out: int
    why: str | None

    def as_dict(self) -> Facts:
        """Return the answer to a request for it."""
        return {"run": self.run, "tasks": self.tasks, "left_out": self.left_out, "why": self.why}


async def run_job(
    connection: Connection, name: str, job: FleetJob, order: Order, *, in_window: bool
) -> Made:
    """Make a run of a job, whose saves begin in its window if ``in_window``, else at once."""
    chosen = expansion.choose(
        job.guests,
        await expansion.known_guests(connection),
        await expansion.busy_places(connection, _SAVES),
        "save",
    )
    span = job.span(order.now) if in_window else None
    run = Run(
        kind="run",
        job=name,
        requested_by=order.requested_by,
        due=order.due,
        max_failures=job.max_failures,
        priority=job.priority,
        limit=job.timeout,
        begins=span.opens if span and span.opens > order.now else None,
        not_after=span.closes if span else None,
    )
    tasks = [_save(each, name, job, order.now) for each in chosen.guests]
    return await _made(connection, run, tasks, chosen)


async def evacuate(connection: Connection, host: str, deadline: float | None, order: Order) -> Made:
    """Make a run that saves and shuts down each guest that runs on ``host``.

    Saves of it that have not begun are cancelled. What has not begun ``deadline`` seconds from now
    is not begun. Raises UnknownHost.
    """
    await _known_host(connection, host)
    number = await _superseded(connection, host)
    chosen = expansion.choose(
        ["*"],
        await expansion.known_guests(connection, host),
        await expansion.busy_places(connection, ["evacuate"]),
        "evacuation",
    )
    until = None if deadline is None else order.now + datetime.timedelta(seconds=deadline)
    run = Run(
        kind="evacuate",
        host=host,
        requested_by=order.requested_by,
        priority=FIRST,
        limit=HOUR if deadline is None else min(HOUR, deadline),
        not_after=until,
        deadline=until,
    )
    # What the hosts say of saves in general may leave guests running.
    save = FleetSave(then="quit", given=("then",))
    job = FleetJob(guests=("*",), save=save, timeout=run.limit)
    made = await _made(
        connection,
        run,
        [_save(each, f"evacuate-{host}", job, order.now) for each in chosen.guests],
        chosen,
    )
    await connection.execute(
        "UPDATE tasks SET outcome = jsonb_build_object('message', %s::text) WHERE job_id = ANY(%s)",
        [f"superseded by the evacuation {made.run}", number],
    )
    return made


async def give_back(connection: Connection, host: str, order: Order) -> Made:
    """Make a run that restores what the last evacuation of each guest of ``host`` has saved.

    What was restored since, by a run or by hand, is left out. Raises UnknownHost.
    """
    target = await _known_host(connection, host)
    busy = await expansion.busy_places(connection, ["return"])
    left_out = Counter[str]()
    found = []
    for guest, image, state in await _evacuated(connection, host):
        place = Place(host, guest)
        if place in busy:
            left_out["with a restore that is not finished"] += 1
        elif state == "restored":
            left_out["restored already"] += 1
        elif target is None:
            left_out["of a host that fleet.yaml does not name"] += 1
        else:
            found.append((Known(place, None, target), image))
    run = Run(kind="return", host=host, requested_by=order.requested_by, priority=FIRST)
    tasks = [
        Task(
            known.place,
            {"kind": "restore", "image": image, "restore": {"timeout": run.limit}},
            str(known.target),
            image,
        )
        for known, image in found
    ]
    return await _made(connection, run, tasks, Chosen([known for known, _ in found], left_out))


def _save(guest: Known, name: str, job: FleetJob, now: datetime.datetime) -> Task:
    """Return the task that saves a guest as the job says."""
    unique = uuid.uuid4()
    image = template.parse(job.save.image).render(guest.place.guest, name, now, unique)
    options: dict[str, Any] = {
        # What is a mapping of keys in the file is one of the request.
        **msgspec.to_builtins(job.save.settings()),
        "image": image,
        "timeout": job.timeout,
    }
    if job.save.note is not None:
        options["note"] = job.save.note
    request = {"kind": "save", "guest": guest.place.guest, "save": options}
    return Task(guest.place, request, str(guest.target), image, unique)


async def _made(connection: Connection, run: Run, tasks: list[Task], chosen: Chosen) -> Made:
    number = await expansion.add(connection, run, tasks, chosen.why)
    return Made(number, len(tasks), chosen.left_out.total(), chosen.why)


async def _known_host(connection: Connection, host: str) -> str | None:
    """Return the target of a host. Raises UnknownHost where there is no such host."""
    cursor = await connection.execute("SELECT target FROM hosts WHERE name = %s", [host])
    if (row := await cursor.fetchone()) is None:
        raise errors.UnknownHost(
            f"the fleet has no host {host!r}", hint="'mapsave fleet hosts' lists them", host=host
        )
    target: str | None = row["target"]
    return target


async def _superseded(connection: Connection, host: str) -> list[int]:
    """Cancel the saves of runs that have not begun on a host; return their jobs' numbers."""
    cursor = await connection.execute(
        """WITH stopped AS (
            UPDATE procrastinate_jobs j SET status = 'cancelled' FROM tasks t, runs r
            WHERE j.id = t.job_id AND r.id = t.run
            AND j.status = 'todo' AND t.host = %s AND r.kind = 'run' RETURNING j.id)
        UPDATE tasks SET ended = clock_timestamp() FROM stopped
        WHERE job_id = stopped.id RETURNING job_id""",
        [host],
    )
    return [int(row["job_id"]) async for row in cursor]


async def _evacuated(connection: Connection, host: str) -> list[tuple[str, str, str | None]]:
    """Return guest, image and the image's state of the last evacuation of each guest of a host.

    Left out are those with a later restore that succeeded.
    """
    cursor = await connection.execute(
        """WITH last AS (
            SELECT DISTINCT ON (t.guest) t.guest, r.kind,
                coalesce(t.outcome ->> 'image', t.image) AS image FROM tasks t
            JOIN runs r ON r.id = t.run JOIN procrastinate_jobs j ON j.id = t.job_id
            WHERE t.host = %(host)s AND r.kind IN ('evacuate', 'return')
            AND j.status = 'succeeded' ORDER BY t.guest, t.ended DESC, t.job_id DESC)
        SELECT last.guest, last.image, i.facts ->> 'state' AS state FROM last
        LEFT JOIN images i ON i.host = %(host)s AND i.image = last.image
        WHERE last.kind = 'evacuate' AND last.image IS NOT NULL ORDER BY last.guest""",
        {"host": host},
    )
    return [(row["guest"], row["image"], row["state"]) async for row in cursor]
