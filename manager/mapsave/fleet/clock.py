"""When the jobs of the fleet run: by the database's clock, and each time once, whichever leads.

What was missed, while no scheduler ran, is made up for by one run.
"""

from __future__ import annotations

import datetime
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapsave import errors
from mapsave.fleet import orders
from mapsave.fleet.orders import Order
from mapsave.fleet.settings import FleetJob, Settings
from mapsave.jobs import schedule as schedules
from mapsave.jobs.schedule import Schedule

if TYPE_CHECKING:
    from mapsave.fleet.leading import Term

_log = logging.getLogger(__name__)

# A run that is not to be made up for may be this late: schedulers that take over need a moment.
_LATE = datetime.timedelta(minutes=2)
# A clock that went back by less was corrected.
_SET_BACK = datetime.timedelta(minutes=1)


@dataclass(frozen=True)
class Due:
    """A run that is due: for which time of the schedule, where the clock of the job is set to, and
    whether it is too late for it."""

    nominal: datetime.datetime
    clock: datetime.datetime
    is_skipped: bool


def due(
    name: str, schedule: Schedule, last: datetime.datetime, now: datetime.datetime
) -> Due | None:
    """Return the run of a job that is due; None where none is. All times are in UTC.

    ``last`` is the time of the schedule that was dealt with last. Raises ConfigError where the
    host's time zone is needed and not known.
    """
    nominal = schedules.next_run(schedule, last)
    moment = nominal + _jitter(name, schedule, nominal)
    if moment > now:
        return None
    clock = nominal if schedules.next_run(schedule, nominal) > now else now
    return Due(nominal, clock, not schedule.persistent and now - moment > _LATE)


def next_run(name: str, schedule: Schedule, last: datetime.datetime) -> datetime.datetime:
    """Return when a job runs next, its jitter included. Raises as ``due`` does."""
    nominal = schedules.next_run(schedule, last)
    return nominal + _jitter(name, schedule, nominal)


def text(schedule: Schedule) -> str:
    """Return what a schedule is recognized by: another one has missed nothing."""
    return f"{schedule.cron} {schedule.time_zone or ''}".strip()


def _jitter(name: str, schedule: Schedule, nominal: datetime.datetime) -> datetime.timedelta:
    # The same for each scheduler that leads until then.
    spread = random.Random(f"{name} {nominal.isoformat()}")  # noqa: S311 (spreads load)
    return schedules.jitter(schedule, spread)


async def run_due(term: Term, settings: Settings) -> int:
    """Make a run of each job that is due; return how many were made.

    Run and clock are written together, so a run that is due is made once. Raises NotLeading and
    psycopg.Error.
    """
    made = 0
    scheduled = {name: job for name, job in settings.jobs.items() if job.schedule is not None}
    async with term.transaction() as connection:
        cursor = await connection.execute(
            "SELECT job, last_due, schedule, clock_timestamp() AS now FROM job_clock"
        )
        known = {row["job"]: row async for row in cursor}
        fresh = {
            name: text(job.schedule)
            for name, job in scheduled.items()
            if job.schedule is not None
            and (name not in known or known[name]["schedule"] != text(job.schedule))
        }
        await connection.execute(
            """INSERT INTO job_clock (job, last_due, schedule)
            SELECT job, clock_timestamp(), schedule FROM unnest(%s::text[], %s::text[])
                AS w (job, schedule)
            ON CONFLICT (job) DO UPDATE
            SET last_due = excluded.last_due, schedule = excluded.schedule""",
            [list(fresh), list(fresh.values())],
        )
        await connection.execute("DELETE FROM job_clock WHERE NOT job = ANY(%s)", [list(scheduled)])
    for name, row in known.items():
        if name in scheduled and name not in fresh:
            made += await _run(term, name, scheduled[name], row["last_due"], row["now"])
    return made


async def _run(
    term: Term, name: str, job: FleetJob, last: datetime.datetime, now: datetime.datetime
) -> bool:
    """Make the run of a job if it is due; return whether it was."""
    assert job.schedule is not None
    try:
        found = due(name, job.schedule, min(last, now + _SET_BACK), now)
        if found is None and last <= now + _SET_BACK:
            return False
        async with term.transaction() as connection:
            # The clock was set back: what is ahead of it would not run for as long.
            clock = now if found is None else found.clock
            await connection.execute(
                "UPDATE job_clock SET last_due = %s WHERE job = %s", [clock, name]
            )
            if found is None or found.is_skipped:
                _log.warning("job %s: skipping the run of %s", name, found and found.nominal)
                return False
            made = await orders.run_job(
                connection, name, job, Order(now, due=found.nominal), in_window=True
            )
    except errors.NotLeading:
        raise
    except errors.MapsaveError as error:  # another job's run does not depend on it
        _log.error("job %s could not be run: %s", name, error)
        return False
    _log.info("job %s: run %s, %s tasks, left out: %s", name, made.run, made.tasks, made.why)
    return True
