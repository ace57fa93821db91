"""Run each job when its schedule says so."""

import asyncio
import contextlib
import datetime
import logging
import random
from collections.abc import Awaitable, Callable

from mapsave import blocking, errors
from mapsave.history.history import History
from mapsave.jobs import schedule as schedules
from mapsave.jobs.loading import AnyJob
from mapsave.service.job_files import Jobs

_log = logging.getLogger(__name__)

# The clock of the host may be set, or the host suspended: look at it again at least this often.
_LOOK = 20.0
# How often it is looked whether jobs that wait for something may begin.
_LOOK_HELD = 2.0
# A clock that went back by less was corrected, and what has just run must not run again.
_SET_BACK = datetime.timedelta(minutes=1)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Scheduler:
    """When each job runs next, and the loop that waits for it.

    ``start`` begins a job, and returns None; or why it did not, and then the run counts as missed.
    While ``held`` returns a reason no job begins; those that are due wait. ``now`` is the clock, in
    UTC.
    """

    def __init__(
        self,
        history: History,
        start: Callable[[AnyJob], Awaitable[str | None]],
        held: Callable[[], str | None] = lambda: None,
        now: Callable[[], datetime.datetime] = _now,
    ) -> None:
        self._history = history
        self._start = start
        self._held = held
        self._held_for: str | None = None
        self._now = now
        self._looked = now()
        self._next: dict[str, datetime.datetime] = {}
        self._jobs: dict[str, AnyJob] = {}
        self._changed = asyncio.Event()
        self._random = random.Random()  # noqa: S311 (spreads load, guards nothing)

    async def set_jobs(self, jobs: Jobs) -> None:
        """Take over the jobs of a configuration; a run that is due or was missed comes at once."""
        now = self._now()
        found: dict[str, datetime.datetime] = {}
        for job in jobs:
            if job.schedule is None:
                continue
            known = self._jobs.get(job.name)
            if known is not None and known.schedule == job.schedule and job.name in self._next:
                found[job.name] = self._next[job.name]
                continue
            ran = await self._history.last_run(job.name)
            if ran is None:
                await self._history.ran(job.name, now.timestamp())  # counts from now on
            elif schedules.missed(
                job.schedule, datetime.datetime.fromtimestamp(ran, datetime.UTC), now
            ):
                _log.info("job %s: a run was missed, it is due now", job.name)
                found[job.name] = now
                continue
            found[job.name] = self._after(job, now)
        self._jobs = {job.name: job for job in jobs}
        self._next = found
        self._changed.set()

    def next_run(self, job: str) -> float | None:
        """Return when a job runs next, seconds since the epoch; None for one without schedule."""
        found = self._next.get(job)
        return found.timestamp() if found is not None else None

    async def run(self) -> None:
        """Start jobs when they are due, forever."""
        while True:
            self._changed.clear()
            now = self._now()
            if now < self._looked - _SET_BACK:
                self._set_back(now)
            self._looked = now
            due = [name for name, when in self._next.items() if when <= now]
            if due and await self._is_held(due):
                waits = [_LOOK_HELD]
            else:
                for name in due:
                    # The jobs may be others by now.
                    if (job := self._jobs.get(name)) is not None and name in self._next:
                        await self._due(job, now)
                waits = [(when - self._now()).total_seconds() for when in self._next.values()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(min([_LOOK, *waits]), 0)):
                    await self._changed.wait()

    async def _is_held(self, due: list[str]) -> bool:
        """Return whether the jobs that are due have to wait, which is logged once."""
        reason = await blocking.call(self._held)
        if reason is not None and reason != self._held_for:
            _log.warning("waiting: %s: %s", ", ".join(f"job {name}" for name in due), reason)
        self._held_for = reason
        return reason is not None

    def _set_back(self, now: datetime.datetime) -> None:
        """Compute the times again: those of a clock that was ahead may be years away."""
        for name in list(self._next):
            with contextlib.suppress(errors.MapsaveError):  # as it was, where there is no time zone
                self._next[name] = min(self._next[name], self._after(self._jobs[name], now))

    async def _due(self, job: AnyJob, now: datetime.datetime) -> None:
        # The others' runs must not depend on this one.
        self._next[job.name] = now + datetime.timedelta(seconds=_LOOK)
        try:
            self._next[job.name] = self._after(job, now)
            left_out = await self._start(job)
        except Exception as error:
            _log.error("job %s could not be started: %s", job.name, error)
            return
        if left_out is None:
            try:
                await self._history.ran(job.name, now.timestamp())
            except errors.MapsaveError as error:
                _log.error("job %s: its run could not be recorded: %s", job.name, error)
        else:
            _log.warning("job %s: %s; skipping this run", job.name, left_out)

    def _after(self, job: AnyJob, now: datetime.datetime) -> datetime.datetime:
        assert job.schedule is not None
        return schedules.next_run(job.schedule, now) + schedules.jitter(job.schedule, self._random)
