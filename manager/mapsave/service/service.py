"""The service: what is in force, what is under way, and everything that works together for it."""

import asyncio
import collections
import ctypes
import functools
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

from msgspec import structs

from mapsave import errors
from mapsave.config import Config
from mapsave.history.history import History
from mapsave.history.states import State
from mapsave.jobs.job import Job
from mapsave.monitor import process
from mapsave.operations import launch
from mapsave.service import job_files, registry, restore_first, webhooks
from mapsave.service.events import Hub
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

StartJob = Callable[["Service", Job], Awaitable[str | None]]

_log = logging.getLogger(__name__)

_DAY = 86400.0
_REAP = 2.0  # seconds that a guest which has ended stays a zombie
# Seconds between two looks whether the service has grown by so many bytes.
_TRIM, _GROWN = 10.0, 8 << 20
_TEXTFILE = 15.0  # seconds between two writings of the metrics' file
_MEND = 5.0  # seconds between two tries to write what the history lacks
# Threads that look into images, and how many requests may wait for them.
_LOOKING, _LOOKING_QUEUE = 2, 16
# What takes effect only when the service starts.
_FIXED = ("state", "socket")
_FIXED_OF_SERVICE = ("group", "listen", "log")


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
        self.verifying = Looking(_LOOKING, registry.MOST)
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
        config = await asyncio.to_thread(self._load)
        jobs = await asyncio.to_thread(job_files.load, config)
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
        self.recovery.ended(ended.id)
        webhook = self.config.notify
        if self._notifying[ended.kind] and webhook and ended.parent is None:
            found = ended.as_dict()
            telling = webhooks.send(webhook, webhooks.message_of(found), webhooks.outcome_of(found))
            self.spawn(f"notification of {ended.kind} {ended.id}", telling)

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
            jobs=lambda: {job.name: self._job_state(job) for job in self.jobs},
            degraded=self.is_degraded,
        )

    def _job_state(self, job: Job) -> JobState:
        try:
            guests = job.resolve(self.config)
        except errors.MapsaveError:
            guests = []  # the configuration is another since the job was loaded
        return JobState(self.scheduler.next_run(job.name), guests)

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

    async def give_memory_back(self) -> None:
        """Give the system what a large piece of work has left free, now and then, forever.

        Python looks for cycles the more seldom the more it holds, and the C library keeps free
        memory between blocks in use (malloc_trim(3)).
        """
        trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)  # of glibc only
        least = _resident()
        while True:
            await asyncio.sleep(_TRIM)
            if _resident() > least + _GROWN:
                if (
                    not self.operations
                ):  # it looks at all that is in use, and nothing else runs then
                    gc.collect()
                await asyncio.to_thread(trim, 0)
                least = _resident()
            least = min(least, _resident())

    async def write_metrics(self) -> None:
        """Write the metrics' file now and then, where the configuration names one."""
        while True:
            if self.config.service.textfile is not None:
                await self.metrics.write_textfile(self.config.service.textfile)
            await asyncio.sleep(_TEXTFILE)

    def is_degraded(self) -> bool:
        """Return whether something is still to be recovered, or to be mended by an operator."""
        problems = self.problems or self.recovery.problems or self.jobs.broken
        return bool(problems) or not self.recovery.is_done

    def health(self) -> Facts:
        """Return the state of the service, and what identifies it."""
        import mapsave

        return {
            "status": "degraded" if self.is_degraded() else "ok",
            "version": mapsave.__version__,
            "pid": os.getpid(),
            "started": self.started,
            "state": str(self.config.state),
            "images": str(self.config.images),
            "config": str(self.config.source) if self.config.source else None,
            "operations": len(self.operations),
            "tasks": len(asyncio.all_tasks()),
            "recovered": self.recovery.is_done,
            "problems": [*self.problems, *self.recovery.problems],
            "broken_jobs": [each.line() for each in self.jobs.broken],
        }


def _resident() -> int:
    """Return the bytes of memory that this process holds."""
    return process.resident_bytes(os.getpid()) or 0
