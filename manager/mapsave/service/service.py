"""The service: what is in force, what is under way, and everything that works together for it."""

import asyncio
import collections
import functools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path

from msgspec import structs

from mapsave import blocking, errors, units
from mapsave.config import Config
from mapsave.history.history import History
from mapsave.history.states import State
from mapsave.jobs.loading import AnyJob
from mapsave.operations import launch
from mapsave.service import job_files, registry, restore_first, webhooks
from mapsave.service.digests import DigestTaker
from mapsave.service.events import Hub
from mapsave.service.guest_states import GuestStates
from mapsave.service.image_pages import ImagePages
from mapsave.service.metrics.metrics import Metrics
from mapsave.service.metrics.scrape import JobState, Sources
from mapsave.service.operation import Operation
from mapsave.service.peers import Roles
from mapsave.service.reader_pool import Looking
from mapsave.service.recovery import Recovery
from mapsave.service.registry import Operations
from mapsave.service.scheduler import Scheduler
from mapsave.service.slots import Slots
from mapsave.service.tls import Tls
from mapsave.strict_json import Facts

StartJob = Callable[["Service", AnyJob], Awaitable[str | None]]

_log = logging.getLogger(__name__)

_DAY = 86400.0
_REAP = 2.0  # seconds that a guest which has ended stays a zombie
_TEXTFILE = 15.0  # seconds between two writings of the metrics' file
_MEND = 5.0  # seconds between two tries to write what the history lacks
# Threads that look into images, and how many requests may wait for them.
_LOOKING, _LOOKING_QUEUE = 2, 16
# What takes effect only when the service starts.
_FIXED = ("state", "socket")
_FIXED_OF_SERVICE = ("listen", "log")


class Service:
    """The service of one host. Make one with ``server.started``."""

    def __init__(
        self,
        load: Callable[[], Config],
        config: Config,
        history: History,
        *,
        notifying: Mapping[str, bool],
        start_job: StartJob,
        problems: Sequence[str] = (),
    ) -> None:
        """``load`` reads the configuration again; ``problems`` are what makes it degraded.

        ``notifying`` says for each kind of operation whether webhooks are sent its outcome.
        ``start_job`` begins a run of a job that is due. Raises ConfigError where a group is
        missing.
        """
        self.problems = list(problems)
        self._load = load
        self._notifying = notifying
        self._background: set[asyncio.Task[None]] = set()
        self.started = time.time()
        self.config = config
        self.roles = Roles(config.service)
        self.jobs = job_files.load(config)
        webhooks.check(config.notify)
        self.hub = Hub()
        limits = config.service
        self.slots = Slots(limits.concurrency, limits.per_file_system, limits.bandwidth)
        first = restore_first.RestoreFirst(config.state)
        self.scheduler = Scheduler(history, functools.partial(start_job, self), first.reason)
        self.metrics = Metrics(self._sources(history))
        self.operations = Operations(history, self.hub, self.metrics, self._has_ended)
        self.recovery = Recovery(self.operations, self.slots, history, lambda: self.config)
        self.history = history
        self.looking = Looking(_LOOKING, _LOOKING_QUEUE)
        self.pages = ImagePages(lambda: self.config, self.looking)
        self.guests = GuestStates(lambda: self.config)
        self.digests = DigestTaker(self._to_be_digested, self.moves_guests, self.metrics.digested)
        self.verifying = Looking(_LOOKING, registry.MOST)
        self.reading_data = asyncio.Semaphore(1)  # two would read no faster
        listen = config.service.listen
        self.tls = None if listen is None else Tls(listen)
        # Closes connections of older certificates, once there are any.
        self.retire: Callable[[], None] = lambda: None
        self._reloading = asyncio.Lock()

    async def reload(self) -> list[str]:
        """Take over the configuration and the jobs as they are on disk now.

        Where something in them is wrong, all stays as it is. Returns what takes effect only at the
        next start. Raises ConfigError, ConfigMissing, NotPermitted, Refused.
        """
        async with self._reloading:
            return await self._reload()

    async def _reload(self) -> list[str]:
        # In a thread: thousands of guests take seconds.
        config = await blocking.call(self._load)
        await blocking.call(webhooks.check, config.notify)
        jobs = await blocking.call(job_files.load, config)
        known = {each.path for each in self.jobs.broken}
        for each in jobs.broken:
            if each.path not in known:  # one that was broken already keeps nothing from changing
                raise each.error
        before = self.config
        # The old CA of the clients stays loaded, so the names that it vouches for stay as well.
        roles = Roles(structs.replace(config.service, listen=before.service.listen))
        renewed = None if self.tls is None else self.tls.read()
        fixed = [key for key in _FIXED if getattr(config, key) != getattr(before, key)]
        fixed += [
            f"service.{key}"
            for key in _FIXED_OF_SERVICE
            if getattr(config.service, key) != getattr(before.service, key)
        ]
        # Locks and step journals of saves under way are in the state directory we began with.
        kept = {key: getattr(before.service, key) for key in _FIXED_OF_SERVICE}
        config = structs.replace(
            config,
            state=before.state,
            socket=before.socket,
            service=structs.replace(config.service, **kept),
        )
        await self.scheduler.set_jobs(jobs)
        limits = config.service
        self.roles, self.config, self.jobs = roles, config, jobs
        self.slots.set_limits(limits.concurrency, limits.per_file_system, limits.bandwidth)
        if self.tls is not None and renewed is not None:
            self.tls.use(renewed)
            self.retire()
        self.hub.publish("service", {"reloaded": True})
        return fixed

    async def stop(self) -> None:
        """Begin nothing new, and finish or cancel what is under way, as configured."""
        how = self.config.service
        await self.operations.stop(finish=how.on_stop == "finish", limit=how.stop_timeout)

    def spawn(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Run something beside; an error in it is logged."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s: %s", task.get_name(), error, exc_info=error)

    async def end_background(self, grace: float) -> None:
        """Wait for what runs beside, at most ``grace`` seconds, then cancel it."""
        if self._background:
            await asyncio.wait(self._background, timeout=grace)
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)

    def _has_ended(self, ended: Operation) -> None:
        self.spawn(f"look at the journal of {ended.id}", self.recovery.ended(ended.id))
        if ended.kind == "save" and (ended.result or {}).get("digests") == "pending":
            self.digests.saved(str(ended.image))
        webhook = self.config.notify
        if self._notifying[ended.kind] and webhook and ended.parent is None:
            found = ended.as_dict()
            telling = webhooks.send(webhook, webhooks.message_of(found), webhooks.outcome_of(found))
            self.spawn(f"notification of {ended.kind} {ended.id}", telling)

    def _to_be_digested(self) -> Path | None:
        return None if self.config.save.digests == "off" else self.config.images

    def moves_guests(self) -> bool:
        """Return whether guests are saved or restored just now: reading images can wait."""
        # Not those to be recovered: some stay so for days.
        return any(
            each.kind in ("save", "restore") and each.state != State.PENDING
            for each in self.operations.under_way()
        )

    def _sources(self, history: History) -> Sources:
        def pending() -> int:
            return sum(each.state == State.PENDING for each in self.operations.all_under_way())

        def running() -> dict[str, int]:
            return collections.Counter(
                each.kind for each in self.operations.all_under_way() if each.state != State.PENDING
            )

        return Sources(
            kinds=self._notifying.keys(),
            running=running,
            pending=pending,
            listeners=lambda: len(self.hub),
            journal_bytes=history.size_bytes,
            images=lambda: self.config.images,
            state=lambda: self.config.state,
            jobs=lambda: {
                name: JobState(self.scheduler.next_run(name), guests)
                for name, guests in self.jobs.guests.items()
            },
            degraded=lambda: bool(self.reasons()),
        )

    async def begin(self) -> None:
        """Go on from what the history knows; what it cannot say keeps nothing from starting."""
        for what in (
            self.seed_metrics,
            self.recovery.begin,
            lambda: self.scheduler.set_jobs(self.jobs),
        ):
            try:
                await what()
            except errors.MapsaveError as error:
                _log.error("%s", error)
                self.problems.append(error.message)

    async def seed_metrics(self) -> None:
        """Let the metrics go on from what the history knows."""
        runs = []
        for job in self.jobs:
            for record in await self.history.find(kind="job", job=job.name, limit=1):
                if record.ended is not None:
                    is_good = record.state == State.DONE and not (record.result or {}).get("failed")
                    runs.append((job.name, record.started or record.ended, is_good))
        self.metrics.seed(await self.history.last_successes(), runs)

    async def housekeeping(self) -> None:
        """Forget operations that ended long ago, once a day."""
        while True:
            try:
                removed = await self.history.prune(time.time() - self.config.service.history)
            except errors.MapsaveError as error:
                _log.error("history: could not remove old operations: %s", error)
            else:
                if removed:
                    _log.info("history: %d old operations removed", removed)
            await asyncio.sleep(_DAY)

    async def mend_history(self) -> None:
        """Put into the history what could not be written when it happened, once it can be."""
        while True:
            await asyncio.sleep(_MEND)
            await self.operations.write_ends()

    async def reap(self) -> None:
        """Let go of guests that were started here, and have ended, forever."""
        while True:
            launch.reap()
            await asyncio.sleep(_REAP)

    async def write_metrics(self) -> None:
        """Write the metrics' file now and then, where the configuration names one."""
        while True:
            if self.config.service.textfile is not None:
                await self.metrics.write_textfile(self.config.service.textfile)
            await asyncio.sleep(_TEXTFILE)

    def reasons(self) -> list[str]:
        """Return why the service is degraded; nothing if it is not."""
        is_needed = self.recovery.is_needed
        unfinished = ["interrupted operations are being recovered"] if is_needed else []
        broken = [each.error.message for each in self.jobs.broken]
        return [*unfinished, *self.problems, *self.recovery.problems, *broken]

    def health(self) -> Facts:
        """Return the state of the service, and what identifies it."""
        import mapsave

        reasons, is_settled = self.reasons(), self.recovery.is_needed is not None
        return {
            "status": "degraded" if reasons else "ok" if is_settled else "starting",
            "reasons": reasons,
            "version": mapsave.__version__,
            "pid": os.getpid(),
            "started": units.timestamp(self.started),
            "state": str(self.config.state),
            "images": str(self.config.images),
            "config": str(self.config.source) if self.config.source else None,
            "operations": len(self.operations),
            "tasks": len(asyncio.all_tasks()),
            "recovered": self.recovery.is_done,
            "problems": [*self.problems, *self.recovery.problems],
            "broken_jobs": [each.line() for each in self.jobs.broken],
        }
