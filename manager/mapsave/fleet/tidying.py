"""What the leader looks after: closed windows, hosts that are gone, slots that ran out, old runs.

Each function works in a transaction of the caller's and returns how many tasks, slots or runs it
was about. Raises psycopg.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection

# Runs that are forgotten at once: with tens of thousands of tasks each it takes seconds.
MOST = 2
_WORKERS = "7 days"  # after which an agent's registration is forgotten


async def close_windows(connection: Connection) -> int:
    """Cancel the tasks that have not begun and may not begin any more.

    What an agent has fetched already it does not begin: ``take_slot`` says so.
    """
    return await _cancel(
        connection, "t.not_after < clock_timestamp()", "the window or the deadline is over"
    )


async def drop_homeless(connection: Connection) -> int:
    """Cancel the tasks in the queue of hosts that were removed, or that fleet.yaml leaves out."""
    gone = await _cancel(
        connection,
        "NOT EXISTS (SELECT FROM hosts h WHERE h.name = t.host)",
        "the host was removed",
    )
    return gone + await _cancel(
        connection,
        "EXISTS (SELECT FROM hosts h WHERE h.name = t.host AND h.target IS NULL)",
        "fleet.yaml does not name the host",
    )


async def settle_lost(connection: Connection) -> int:
    """Settle tasks of removed hosts that no slot is held for: no one reports their outcome."""
    cursor = await connection.execute(
        """WITH lost AS (
            UPDATE procrastinate_jobs j SET status = 'failed' FROM tasks t
            WHERE j.id = t.job_id AND j.status = 'doing'
            AND NOT EXISTS (SELECT FROM hosts h WHERE h.name = t.host)
            AND NOT EXISTS (SELECT FROM slots s WHERE s.task = t.uuid) RETURNING j.id)
        UPDATE tasks SET ended = clock_timestamp(), outcome = jsonb_build_object(
            'message', 'the host was removed before it reported what came of the task')
        FROM lost WHERE job_id = lost.id"""
    )
    return cursor.rowcount


async def free_slots(connection: Connection) -> int:
    """Give back slots whose lease and whose operation's own time limit have both run out."""
    cursor = await connection.execute(
        """DELETE FROM slots
        WHERE lease_until < clock_timestamp() AND limit_until < clock_timestamp()"""
    )
    return cursor.rowcount


async def follow_targets(connection: Connection) -> int:
    """Have tasks that hold no slot yet use the target that their host has by now."""
    cursor = await connection.execute(
        """UPDATE tasks t SET target = h.target FROM hosts h, procrastinate_jobs j
        WHERE h.name = t.host AND j.id = t.job_id AND j.status IN ('todo', 'doing')
        AND h.target IS NOT NULL AND t.target IS DISTINCT FROM h.target
        AND NOT EXISTS (SELECT FROM slots s WHERE s.task = t.uuid)"""
    )
    return cursor.rowcount


async def forget(connection: Connection, seconds: float) -> int:
    """Delete some of the runs that ended so many seconds ago, with their tasks, and old requests.

    The newest evacuation of a host is kept: a return needs it.
    """
    cursor = await connection.execute(
        """SELECT r.id FROM runs r WHERE r.ended < clock_timestamp() - %(age)s * interval '1 s'
        AND NOT (r.kind = 'evacuate' AND NOT EXISTS (SELECT FROM runs later
            WHERE later.kind = 'evacuate' AND later.host = r.host AND later.id > r.id))
        ORDER BY r.id LIMIT %(most)s""",
        {"age": seconds, "most": MOST},
    )
    runs = [row["id"] async for row in cursor]
    if runs:
        # Its tasks and events go with a job.
        await connection.execute(
            "DELETE FROM procrastinate_jobs WHERE id IN (SELECT job_id FROM tasks "
            "WHERE run = ANY(%s))",
            [runs],
        )
        await connection.execute("DELETE FROM runs WHERE id = ANY(%s)", [runs])
    await connection.execute(
        "DELETE FROM requests WHERE answered < clock_timestamp() - %s * interval '1 s'", [seconds]
    )
    await connection.execute(
        "DELETE FROM procrastinate_workers WHERE last_heartbeat < clock_timestamp() - %s::interval",
        [_WORKERS],
    )
    return len(runs)


async def _cancel(connection: Connection, condition: str, why: str) -> int:
    """Cancel the tasks in queues that suit a condition about ``t``, a task."""
    query = f"""WITH stopped AS (
            UPDATE procrastinate_jobs j SET status = 'cancelled' FROM tasks t
            WHERE j.id = t.job_id AND j.status = 'todo' AND {condition} RETURNING j.id)
        UPDATE tasks SET ended = clock_timestamp(),
            outcome = jsonb_build_object('message', %s::text)
        FROM stopped WHERE job_id = stopped.id"""  # noqa: S608  # one of the conditions above
    cursor = await connection.execute(query, [why])
    return cursor.rowcount


async def settle_runs(connection: Connection) -> int:
    """Note of runs whose tasks are all finished when that was, and how many came to what."""
    cursor = await connection.execute(
        """WITH ended AS (
            SELECT r.id, coalesce(max(t.ended), r.created) AS ended,
                count(*) FILTER (WHERE j.status IN ('todo', 'doing')) AS active
            FROM runs r LEFT JOIN tasks t ON t.run = r.id
            LEFT JOIN procrastinate_jobs j ON j.id = t.job_id
            WHERE r.ended IS NULL GROUP BY r.id)
        UPDATE runs SET ended = ended.ended, counts = (
            SELECT coalesce(jsonb_object_agg(status, count), '{}') FROM (
                SELECT j.status, count(*) FROM tasks t JOIN procrastinate_jobs j ON j.id = t.job_id
                WHERE t.run = ended.id GROUP BY j.status) each)
        FROM ended WHERE runs.id = ended.id AND ended.active = 0"""
    )
    return cursor.rowcount
