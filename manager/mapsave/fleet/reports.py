"""What the database knows of the fleet, for commands and metrics: plain rows, one query each."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.fleet import patterns
from mapsave.fleet.patterns import Pattern

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection

Row = dict[str, Any]

ENDED = ("succeeded", "failed", "cancelled", "aborted")

_TASKS = """SELECT t.operation AS task, t.run, r.kind, r.job, t.host, t.guest, t.image, t.target,
        j.status::text AS status, j.abort_requested, t.priority, r.created, j.scheduled_at,
        t.not_after, t.waiting_since, t.started, t.ended, t.progress, t.outcome"""
_FROM = """FROM tasks t JOIN procrastinate_jobs j ON j.id = t.job_id
        JOIN runs r ON r.id = t.run"""


async def rows(connection: Connection, query: str, *values: object) -> list[Row]:
    """Return the rows of a query, times as ``datetime``. Raises psycopg.Error."""
    cursor = await connection.execute(query, values or None)
    found: list[Row] = await cursor.fetchall()
    return found


async def hosts(connection: Connection, silent_after: float) -> list[Row]:
    """Return the hosts by name, each with its tasks, slots and guests as numbers.

    ``is_silent`` is null where nothing was heard yet.
    """
    return await rows(
        connection,
        """SELECT h.name AS host, h.target, h.saves, h.version, h.last_word, h.service,
            clock_timestamp() - h.last_word > %s * interval '1 s' AS is_silent,
            coalesce(g.guests, 0) AS guests, coalesce(s.used, 0) AS running,
            coalesce(q.queued, 0) AS queued
        FROM hosts h
        LEFT JOIN (SELECT host, count(*) AS guests FROM guests GROUP BY host) g ON g.host = h.name
        LEFT JOIN (SELECT host, count(*) AS used FROM slots GROUP BY host) s ON s.host = h.name
        LEFT JOIN (SELECT queue_name, count(*) AS queued FROM procrastinate_jobs
            WHERE status IN ('todo', 'doing') GROUP BY queue_name) q ON q.queue_name = h.name
        ORDER BY h.name""",
        silent_after,
    )


async def guests(connection: Connection, wanted: Pattern) -> list[Row]:
    """Return the guests that suit a pattern, by name."""
    return await rows(
        connection,
        """SELECT host, guest, facts, seen FROM guests
        WHERE host ~ %s AND guest ~ %s ORDER BY guest, host""",
        *regexes(wanted),
    )


async def images(connection: Connection, wanted: Pattern) -> list[Row]:
    """Return the images of guests that suit a pattern, the newest of each host first."""
    return await rows(
        connection,
        """SELECT host, image, guest, facts, seen FROM images
        WHERE host ~ %s AND coalesce(guest, '') ~ %s
        ORDER BY host, facts ->> 'saved' DESC, image""",
        *regexes(wanted),
    )


async def tasks(
    connection: Connection,
    *,
    wanted: Pattern | None = None,
    job: str | None,
    run: int | None,
    limit: int,
    ended: bool,
) -> list[Row]:
    """Return tasks, those that run first, then by priority; with ``ended`` all, newest first.

    Each has the number of them all as ``of``.
    """
    # Without status it would be the whole history that is counted.
    active = "" if ended or run is not None else "AND j.status IN ('todo', 'doing')"
    order = (
        "t.job_id DESC"
        if ended
        else "j.status = 'doing' DESC, t.started NULLS LAST, t.priority DESC, t.job_id"
    )
    suits = (None, None, None) if wanted is None else ("", *regexes(wanted))
    values = (*suits, job, job, run, run, limit)
    return await rows(
        connection,
        f"""{_TASKS}, count(*) OVER () AS of {_FROM}
        WHERE (%s::text IS NULL OR t.host ~ %s AND t.guest ~ %s)
        AND (%s::text IS NULL OR r.job = %s)
        AND (%s::bigint IS NULL OR t.run = %s) {active} ORDER BY {order} LIMIT %s""",
        *values,
    )


async def one_task(connection: Connection, name: str) -> Row:
    """Return the task whose operation has that id, or one that begins so. Raises UnknownRun."""
    found = await rows(
        connection,
        f"{_TASKS}, t.job_id {_FROM} WHERE t.operation LIKE %s ORDER BY t.job_id DESC LIMIT 2",
        f"{name if name.isalnum() else 'none'}%",
    )
    exact = [row for row in found if row["task"] == name]
    if len(exact or found) != 1:
        raise unknown(name, is_ambiguous=len(found) > 1)
    return (exact or found)[0]


async def run(connection: Connection, number: int) -> Row:
    """Return a run, with the number of its tasks by state. Raises UnknownRun."""
    found = await rows(
        connection,
        """SELECT r.id AS run, r.kind, r.job, r.host, r.requested_by, r.created, r.due,
            r.deadline, r.cancelled, r.why, r.ended, coalesce(r.counts, (
                SELECT jsonb_object_agg(status, count) FROM (
                    SELECT j.status, count(*) FROM tasks t
                    JOIN procrastinate_jobs j ON j.id = t.job_id WHERE t.run = r.id
                    GROUP BY j.status) each), '{}') AS counts
        FROM runs r WHERE r.id = %s""",
        number,
    )
    if not found:
        raise unknown(number)
    return found[0]


async def failures(connection: Connection, number: int) -> list[Row]:
    """Return the tasks of a run that came to no good end, by host and guest."""
    return await rows(
        connection,
        f"{_TASKS} {_FROM} WHERE t.run = %s AND j.status IN ('failed', 'cancelled', 'aborted') "
        "ORDER BY t.host, t.guest",
        number,
    )


async def events(connection: Connection, jobs: Sequence[int] | None, limit: int) -> list[Row]:
    """Return what happened last to tasks, to those of ``jobs`` or to any; oldest first."""
    found = await rows(
        connection,
        """SELECT e.at, e.type::text AS event, t.operation AS task, t.run, t.host, t.guest
        FROM procrastinate_events e JOIN tasks t ON t.job_id = e.job_id
        WHERE %s::bigint[] IS NULL OR e.job_id = ANY(%s) ORDER BY e.id DESC LIMIT %s""",
        jobs,
        jobs,
        limit,
    )
    return found[::-1]


async def targets(connection: Connection) -> list[Row]:
    """Return the storage targets by name: their slots, those in use, and who waits since when."""
    return await rows(
        connection,
        """SELECT g.name AS target, g.saves, g.bandwidth, coalesce(s.used, 0) AS used,
            coalesce(w.waiting, 0) AS waiting, w.oldest AS waiting_since
        FROM targets g
        LEFT JOIN (SELECT target, count(*) AS used FROM slots GROUP BY target) s
            ON s.target = g.name
        LEFT JOIN (SELECT t.target, count(*) AS waiting, min(t.waiting_since) AS oldest
            FROM tasks t JOIN procrastinate_jobs j ON j.id = t.job_id
            WHERE j.status = 'doing' AND t.waiting_since IS NOT NULL GROUP BY t.target) w
            ON w.target = g.name
        ORDER BY g.name""",
    )


async def jobs(connection: Connection) -> list[Row]:
    """Return the jobs that have run or have a schedule, with their last run and last good one."""
    return await rows(
        connection,
        """SELECT coalesce(c.job, n.job) AS job, c.last_due, last.id AS run,
            last.created AS last_run, last.ended, last.counts, last.cancelled, good.ended
            AS last_success
        FROM job_clock c FULL JOIN (SELECT DISTINCT job FROM runs WHERE job IS NOT NULL) n
            ON n.job = c.job
        LEFT JOIN LATERAL (SELECT * FROM runs WHERE job = coalesce(c.job, n.job)
            ORDER BY id DESC LIMIT 1) last ON true
        LEFT JOIN LATERAL (SELECT ended FROM runs WHERE job = coalesce(c.job, n.job)
            AND counts IS NOT NULL AND NOT counts ?| ARRAY['failed', 'cancelled', 'aborted']
            ORDER BY id DESC LIMIT 1) good ON true
        ORDER BY 1""",
    )


async def queue(connection: Connection) -> Row:
    """Return how many tasks there are by state, when the oldest was made, and who leads."""
    found = await rows(
        connection,
        """SELECT count(*) FILTER (WHERE j.status = 'todo' AND (j.scheduled_at IS NULL
                OR j.scheduled_at <= clock_timestamp())) AS todo,
            count(*) FILTER (WHERE j.status = 'todo' AND j.scheduled_at > clock_timestamp())
                AS later,
            count(*) FILTER (WHERE j.status = 'doing') AS doing,
            min(r.created) FILTER (WHERE j.scheduled_at IS NULL
                OR j.scheduled_at <= clock_timestamp()) AS oldest,
            clock_timestamp() AS now, (SELECT number FROM term) AS term,
            (SELECT count(*) FROM requests WHERE answered IS NULL) AS requests,
            EXISTS (SELECT FROM pg_locks WHERE relation = 'leader'::regclass AND granted
                AND mode = 'ExclusiveLock') AS is_led
        FROM procrastinate_jobs j JOIN tasks t ON t.job_id = j.id JOIN runs r ON r.id = t.run
        WHERE j.status IN ('todo', 'doing')""",
    )
    return found[0]


def regexes(wanted: Pattern) -> tuple[str, str]:
    """Return the regular expressions of host and guest that a pattern means."""
    return patterns.regex(wanted.host), patterns.regex(wanted.guest)


def unknown(name: int | str, *, is_ambiguous: bool = False) -> errors.MapsaveError:
    """Return the error for a run or task that is not there, or is not the only one."""
    what = f"run {name}" if isinstance(name, int) else f"task {name!r}"
    said = f"several tasks begin with {name!r}" if is_ambiguous else f"the fleet has no {what}"
    return errors.UnknownRun(said, hint="'mapsave fleet ps --all' lists the tasks, with their runs")


def plain(row: Row) -> Row:
    """Return a row as ``--json`` prints it: times in RFC 3339."""
    return {
        key: value.isoformat() if isinstance(value, datetime.datetime) else value
        for key, value in row.items()
    }
