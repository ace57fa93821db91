"""The agent of a host: takes what the fleet asks of this host, and has the host's service do it.

It uses Procrastinate's queries, not its worker: a worker that stops marks what it runs as aborted,
and the operation goes on on the host. Here a task stays ``doing`` until its outcome is known.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import random
import uuid
from collections.abc import Callable
from pathlib import Path

from procrastinate.jobs import Job
from psycopg.types.json import Jsonb

import mapsave
from mapsave import errors, strict_json
from mapsave.fleet import accepted, naming, notes, outcomes, waiting
from mapsave.fleet.line import Away, Connect, Line
from mapsave.fleet.local_service import LocalService, ServiceAway
from mapsave.fleet.notes import Notes
from mapsave.fleet.performing import Means, Performance
from mapsave.strict_json import Facts

_log = logging.getLogger(__name__)

_WAITING = 1  # tasks that are fetched beside those that run: each asks for its slot now and then
_MOST = 200  # tasks that are fetched at once, whatever the database says
_KIND = 40  # characters of a notification that say what it is about
_SOONEST = 0.5  # seconds between two looks, however many notifications come
_ELSEWHERE = 15.0  # seconds that another agent's session may take to end
# What comes of rows that Procrastinate's tables do not have.
_NO_ANSWERS = (LookupError, TypeError, ValueError, AttributeError)
PURPOSE = "agent"
_END_OWN = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE usename = session_user AND pid <> pg_backend_pid()
    AND application_name = current_setting('application_name')
"""
_OTHERS = """
    SELECT pid FROM pg_stat_activity
    WHERE usename = session_user AND application_name LIKE %s
    AND application_name <> current_setting('application_name') AND backend_start
        < (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())
"""
_MACHINE = Path("/etc/machine-id")


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds between two of the same: words to the fleet, looks at the host, fetches."""

    says: float = 30.0
    looks: float = 60.0
    fetches: float = 10.0


USUAL = Pace()


@dataclasses.dataclass(frozen=True)
class Place:
    """Whose agent it is: the host's name, its database and service, and its own directory.

    ``status`` is called with a line about how it is.
    """

    host: str
    connect: Connect
    service: LocalService
    state: Path
    status: Callable[[str], None] = lambda _: None
    pace: Pace = USUAL


async def run(place: Place) -> None:
    """Run the agent until it is cancelled, which leaves its tasks ``doing``.

    Raises AgentRunning where the host has another one, ConfigError where the agent's own directory
    cannot be used.
    """
    with notes.opened(place.state, place.host) as kept:
        agent = Agent(place, kept)
        try:
            await agent.run()
        finally:
            agent.line.drop()


class Agent:
    """One agent; ``run`` makes one."""

    def __init__(self, place: Place, kept: Notes) -> None:
        self._place = place
        self._service = place.service
        self.line = Line(place.connect, self._heard)
        self._means = Means(self.line, self._service, kept, self._has_ended)
        self._performances: dict[uuid.UUID, Performance] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._wanted = asyncio.Event()  # a look at the queue
        self._changed = asyncio.Event()  # what is on the host
        self._told: tuple[Facts, Facts] | None = None
        self._looked = float("-inf")
        self._worker = 0
        self._was_alone = False
        self._refused: set[int] = set()
        self._again: set[uuid.UUID] = set()  # delivered once more while we had them
        self._is_stuck = False  # one of these may have no one who does it

    async def run(self) -> None:
        """Run until cancelled. Raises AgentRunning."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                channel = f"procrastinate_queue_v1#{self._place.host}"
                tasks.create_task(self.line.run(channel, self._connected))
                tasks.create_task(self._fetching())
                tasks.create_task(self._saying())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    # What comes first on each connection: a database that was restored from a copy may not know of
    # slots that are in use, and gives none until this host has spoken.

    async def _connected(self) -> None:
        try:
            await self._come_back()
        except _NO_ANSWERS as error:
            raise Away(f"the database answers what no fleet does: {error}") from None
        _log.info("connected to the database; %s tasks", len(self._performances))
        asyncio.get_running_loop().call_soon(self._show)  # others may ask by then

    async def _come_back(self) -> None:
        await self._check_role()
        await self._be_alone()
        self._worker = int(await self.line.jobs.register_worker())
        await self.line.ask("DELETE FROM procrastinate_workers WHERE id <> %s", (self._worker,))
        begun: dict[uuid.UUID, Performance] = {}
        for job in await self._doing():
            if (made := self._made(job)) is not None:
                begun.setdefault(made.task, made)
        for _, task, _ in await asyncio.to_thread(lambda: list(self._means.notes.all())):
            if task not in self._performances:
                begun.setdefault(task, Performance(self._means, task, None))
        await asyncio.gather(*(each.look() for each in begun.values()))
        for each in (*self._performances.values(), *begun.values()):
            if each.may_run:
                await each.adopt()
        for each in begun.values():
            self._start(each)
        # It may be another database than before, which knows less.
        self._told, self._looked = None, float("-inf")
        await self._say()
        self._wanted.set()

    async def _check_role(self) -> None:
        (row,) = await self.line.ask("SELECT own_host() AS host") or [{}]
        if row.get("host") != self._place.host:
            raise Away(
                f"the role of this connection is of {row.get('host')!r}, "
                f"not of the host {self._place.host!r}"
            )

    async def _be_alone(self) -> None:
        """Look for another agent of this host. Raises AgentRunning at the start, Away later.

        No lock: any role that may connect could take it. Sessions of this role are the host's own.
        """
        # Those of this very agent are of a connection that was lost, as its directory is locked.
        # The server may not have noticed yet.
        await self.line.ask(_END_OWN)
        deadline = asyncio.get_running_loop().time() + _ELSEWHERE
        while await self.line.ask(_OTHERS, (f"mapsave {PURPOSE} %",)):
            if asyncio.get_running_loop().time() > deadline:
                words = f"another agent of the host {self._place.host!r} is connected"
                if self._was_alone:
                    raise Away(words)
                raise errors.AgentRunning(
                    f"{words} to the database",
                    hint="each host has a role of its own, and one agent",
                )
            await asyncio.sleep(_SOONEST)
        self._was_alone = True

    async def _doing(self) -> list[Job]:
        """Return the jobs that this host has taken before. Raises Away."""
        found = await self.line.jobs.list_jobs_async(queue=self._place.host, status="doing")
        return list(found)

    def _made(self, job: Job) -> Performance | None:
        """Return the performance of a job; None where there is one, or it is not of a task."""
        try:
            task = accepted.task_of(job.task_kwargs)
        except errors.TaskRefused as error:
            if isinstance(job.id, int) and job.id not in self._refused:
                self._refused = {*self._refused, job.id} if len(self._refused) < _MOST else {job.id}
                _log.error("job %s: %s", job.id, error)
            return None
        if task in self._performances:
            return None
        wanted: accepted.Wanted | errors.MapsaveError
        try:
            if job.task_name != naming.TASK:
                raise errors.TaskRefused(f"the job is not {naming.TASK!r}")
            wanted = accepted.read(job.task_kwargs)
        except errors.TaskRefused as error:
            wanted = error
        priority = job.priority if isinstance(job.priority, int) else 0
        return Performance(self._means, task, wanted, priority)

    def _start(self, performance: Performance) -> None:
        assert self._tasks is not None
        self._performances[performance.task] = performance
        self._tasks.create_task(self._perform(performance))

    async def _perform(self, performance: Performance) -> None:
        """Do a task to its end, even where that takes several attempts."""
        while True:
            try:
                await performance.run()
                break
            except OSError as error:
                _log.error("task %s: %s; trying again", performance.task, error)
            except Exception:
                _log.exception("task %s: a bug in mapsave; trying again", performance.task)
            await asyncio.sleep(self._place.pace.fetches)
        self._performances.pop(performance.task)
        self._show()
        if performance.task in self._again:
            self._again.discard(performance.task)
            self._is_stuck = True
        self._wanted.set()

    def _has_ended(self) -> None:
        self._wanted.set()
        self._changed.set()

    def _heard(self, said: str) -> None:
        """Look where a notification says that something is new; it may come from anyone."""
        kind = said[:_KIND]
        if "job_inserted" in kind:
            self._wanted.set()
            return
        for each in self._performances.values():
            if each.is_waiting or "slot_free" not in kind:
                each.woken.set()

    # What the fleet asks for.

    async def _fetching(self) -> None:
        while True:
            if self.line.is_ready:
                with contextlib.suppress(Away):
                    await self._fetch_all()
            await asyncio.sleep(_SOONEST)
            every = self._place.pace.fetches * random.uniform(0.8, 1.2)  # noqa: S311 (not a secret)
            await waiting.is_set_within(self._wanted, every)
            self._wanted.clear()

    async def _fetch_all(self) -> None:
        try:
            if self._is_stuck:
                self._is_stuck = False
                for taken in await self._doing():
                    if (left := self._made(taken)) is not None:
                        self._start(left)
            for _ in range(_MOST):
                if not await self._has_room() or not await self._fetch():
                    return
        except _NO_ANSWERS as error:
            _log.error("the database answers what no fleet does: %s", error)

    async def _fetch(self) -> bool:
        """Take the next task; return whether there was one. Raises Away."""
        job = await self.line.jobs.fetch_job([self._place.host], self._worker)
        if job is None:
            return False
        if (made := self._made(job)) is not None:
            self._start(made)
            await asyncio.sleep(0)  # so that it waits for its slot when we look again
        else:
            self._again |= _tasks(job)
        return True

    async def _has_room(self) -> bool:
        """Return whether one more task may be fetched. Raises Away.

        More than wait by now only if the next one is more urgent than all of them: a slot goes to
        the most urgent that waits.
        """
        ahead = [each.priority for each in self._performances.values() if not each.may_run]
        if len(self._performances) >= _MOST:
            return False
        if len(ahead) < _WAITING:
            return True
        rows = await self.line.ask(
            "SELECT max(priority) AS priority FROM procrastinate_jobs WHERE queue_name = %s"
            " AND status = 'todo' AND (scheduled_at IS NULL OR scheduled_at <= now())",
            (self._place.host,),
        )
        most = rows[0].get("priority") if rows else None
        return isinstance(most, int) and most > max(ahead)

    # What is reported to the fleet.

    async def _saying(self) -> None:
        while True:
            await asyncio.sleep(_SOONEST)
            if await waiting.is_set_within(self._changed, self._place.pace.says):
                self._changed.clear()
                self._looked = float("-inf")
            if self.line.is_ready:
                with contextlib.suppress(Away):
                    await self._say()
            self._show()

    async def _say(self) -> None:
        """Report that the host is there, how its service is, and what it has. Raises Away."""
        now = asyncio.get_running_loop().time()
        service: Facts
        try:
            service = {"reachable": True, **await self._service.health()}
            if now - self._looked >= self._place.pace.looks:
                self._looked = now
                found = await self._service.inventory()
                await self._tell(found.guests, found.images)
        except ServiceAway as error:
            service = {"reachable": False, "why": str(error)}
        await self.line.jobs.update_heartbeat(self._worker)
        await self.line.ask("SELECT agent_says(%s, %s)", (mapsave.__version__, _json(service)))

    async def _tell(self, guests: Facts, images: Facts) -> None:
        """Report what is on the host, if that has changed. Raises Away."""
        if self._told != (guests, images):
            await self.line.ask("SELECT agent_lists(%s, %s)", (_json(guests), _json(images)))
            self._told = (guests, images)

    def _show(self) -> None:
        where = "connected" if self.line.is_ready else f"no database ({self.line.why})"
        self._place.status(f"host {self._place.host}: {where}; tasks: {len(self._performances)}")


def _tasks(job: Job) -> set[uuid.UUID]:
    with contextlib.suppress(errors.TaskRefused):
        return {accepted.task_of(job.task_kwargs)}
    return set()


def _json(facts: Facts) -> Jsonb:
    return Jsonb(outcomes.clean(facts), dumps=strict_json.dumps)


def purpose(state: Path) -> str:
    """Return what the sessions of the agent with that directory are for; blocks.

    No agent on another machine, and no other one here, has the same.
    """
    try:
        machine = _MACHINE.read_bytes()
    except OSError:
        machine = b""
    digest = hashlib.sha256(machine + bytes(state.resolve())).hexdigest()
    return f"{PURPOSE} {digest[:20]}"
