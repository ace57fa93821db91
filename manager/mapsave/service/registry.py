"""The operations under way: begun, watched, cancelled, and kept in the history when they end."""

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from mapsave import errors, shielded, units
from mapsave.history.history import History
from mapsave.history.rows import Record, Sample, Step
from mapsave.history.states import State
from mapsave.jobs import outcome
from mapsave.migration.progress import Progress
from mapsave.operations import journal as steps
from mapsave.service.events import Hub
from mapsave.service.log import setup as logs
from mapsave.service.metrics.metrics import Metrics
from mapsave.service.operation import Operation
from mapsave.strict_json import Facts

Work = Callable[[Operation], Awaitable[Facts]]
Ended = Callable[[Operation], None]

_log = logging.getLogger(__name__)

MOST = 10_000  # operations under way at once
_LEVELS = {
    outcome.Level.INFO: logging.INFO,
    outcome.Level.WARNING: logging.WARNING,
    outcome.Level.ERROR: logging.ERROR,
}
_PREFIX = re.compile(r"[0-9a-f]{1,12}")


class Operations:
    """The operations of the service, those under way and those of the history."""

    def __init__(self, history: History, hub: Hub, metrics: Metrics, ended: Ended) -> None:
        """``ended`` is called with each operation once it has ended."""
        self._history = history
        self._hub = hub
        self._metrics = metrics
        self._on_end = ended
        self._active: dict[str, Operation] = {}
        # Ended, but the history could not record it: it would call them running.
        self._unwritten: dict[str, Operation] = {}
        # Under way when the service before us ended, and still to be recovered.
        self.interrupted: dict[str, Record] = {}
        self._stopping = False

    def __len__(self) -> int:
        return len(self._active) + len(self.interrupted)

    def under_way(self) -> list[Operation]:
        """Return the operations under way, oldest first."""
        return list(self._active.values())

    def all_under_way(self) -> list[Operation | Record]:
        """Return those to be recovered too, which QEMU may still be doing; oldest first."""
        return [*self.interrupted.values(), *self._active.values()]

    def refuse_new(self) -> None:
        """Begin nothing new from now on: the service is about to stop."""
        self._stopping = True

    async def begin(self, new: Operation, work: Work) -> Operation:
        """Begin an operation: it is in the history when this returns, and ``work`` runs.

        Raises ServiceStopping, and what the history raises.
        """
        if self._stopping and not self._is_part_of_save_all(new):
            raise errors.ServiceStopping("the service is stopping", hint="try again when it is up")
        if new.id in self._active:
            raise errors.Busy(f"operation {new.id} is already active")
        if len(self._active) >= MOST:
            raise errors.ServiceStopping(f"{MOST} operations are active", hint="try again later")
        self._active[new.id] = new
        try:
            await self._history.begin(new.record())
        except BaseException:
            del self._active[new.id]
            raise
        self._metrics.began(new.kind)
        self._publish(new)
        new.task = asyncio.create_task(self._run(new, work), name=f"{new.kind} {new.id}")
        return new

    def _is_part_of_save_all(self, new: Operation) -> bool:
        """Return whether it belongs to what saves the guests before the host goes down."""
        parent = self._active.get(new.parent or "")
        return parent is not None and parent.kind == "save-all"

    async def perform(self, new: Operation, work: Work) -> Facts:
        """Begin an operation that is part of another one, and return its result.

        Cancelled, it cancels the operation and waits for its end. One that is done all the same
        counts, and the cancellation is dropped. Raises what ``work`` raises.
        """
        await self.begin(new, work)
        try:
            await new.wait_end()
        except asyncio.CancelledError:
            self._cancel(new)
            await shielded.to_the_end(new.wait_end())
            if new.error is not None:
                raise
            shielded.drop_cancellation()
        if new.error is not None:
            raise errors.from_dict(new.error)
        return new.result or {}

    async def starts(self, active: Operation) -> None:
        """Note that an operation's turn has come."""
        active.change(state=State.RUNNING, started=time.time())
        await self._history.change(active.id, state=active.state, started=active.started)
        self._publish(active)

    async def note_image(self, active: Operation, image: str) -> None:
        """Note the path of the image that an operation has made; it is made, whatever fails now."""
        active.change(image=image)
        try:
            # A cancel that comes now is too late: the image is committed, the guest may have ended.
            await shielded.to_the_end(self._history.change(active.id, image=image))
        except errors.MapsaveError as error:
            _log.error("operation %s: its image could not be recorded: %s", active.id, error)

    def progressed(self, active: Operation, progress: Progress) -> None:
        """Note how far an operation is."""
        active.change(progress=progress)
        active.course.note(
            Sample(time.time(), progress.phase, progress.done_bytes, progress.total_bytes)
        )
        facts = {"id": active.id, "progress": progress.as_dict()}
        self._hub.publish("progress", facts, active.id)

    def cancel(self, active: Operation) -> None:
        """Tell an operation to stop; it rolls everything back first. Raises NotCancellable."""
        if active.is_over:
            raise errors.NotCancellable(f"operation {active.id} has finished: {active.state}")
        if active.state == State.COMMITTING:
            raise errors.NotCancellable(
                f"operation {active.id} is committing its image and will be completed instead"
            )
        self._cancel(active)

    def _cancel(self, active: Operation) -> None:
        # Once: a second one must not tear the undoing apart. What commits is finished instead.
        if active.cancel_requested or active.state == State.COMMITTING:
            return
        active.cancel_requested = True
        # A task that is cancelled before its first step would end without a word.
        if active.has_begun and active.task is not None:
            active.task.cancel()

    async def stop(self, *, finish: bool, limit: float = math.inf) -> None:
        """Begin nothing new, and wait for the end of what is under way.

        What waits for its turn is cancelled; what runs too, unless ``finish``, and then after
        ``limit`` seconds. A job that is to finish begins no more saves; one that only waits to try
        again is cancelled.
        """
        self.refuse_new()
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        waited: set[str] = set()
        while self._active:
            if finish and loop.time() >= end:
                words = "stopping: not finished within %s, cancelling"
                _log.warning(words, units.format_duration(limit))
                finish = False
            parents = {each.parent for each in self._active.values()}
            idle = {
                each.id
                for each in self._active.values()
                if each.kind == "job" and each.id not in parents
            }
            for active in self.under_way():
                if active.state == State.PENDING or not finish or active.id in idle & waited:
                    self._cancel(active)
            waited = idle
            tasks = [each.task for each in self._active.values() if each.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=1.0)
            else:
                await asyncio.sleep(0.01)
        await self.write_ends()

    def find_active(self, name: str) -> Operation | None:
        """Return the operation under way of that id."""
        return self._active.get(name)

    async def resolve(self, name: str) -> str:
        """Return the id that ``name``, an id or the beginning of one, means.

        Raises UnknownOperation where it means none, or several.
        """
        if not _PREFIX.fullmatch(name):
            raise errors.UnknownOperation(f"{name!r} is not the id of an operation")
        found = {each for each in self._active if each.startswith(name)}
        found.update(await self._history.named(name))
        if len(found) != 1:
            several = f" alone: {', '.join(sorted(found))}" if found else ""
            raise errors.UnknownOperation(
                f"no operation {name!r}{several}", hint="'mapsave ps --all' lists them"
            )
        return found.pop()

    async def look_up(self, operation: str) -> Operation | Record | None:
        """Return an operation; None where there is none of that id."""
        found = self._known(operation) or await self._history.get(operation)
        return found or self._known(operation)  # it may have begun while the history was asked

    async def get(self, operation: str) -> Operation | Record:
        """Return an operation. Raises UnknownOperation."""
        if (found := await self.look_up(operation)) is None:
            raise errors.UnknownOperation(f"no operation {operation!r}")
        return found

    async def find(
        self,
        *,
        active: bool = False,
        state: State | None = None,
        before: str | None = None,
        limit: int = 100,
        **alike: str | None,
    ) -> list[Operation | Record]:
        """Return at most ``limit`` operations, newest first.

        ``alike`` gives values of kind, guest, job and parent; None is any. ``before`` is the id of
        the last operation of the page before. With ``active`` only those under way, for which the
        history is not read. Raises UnknownOperation.
        """
        wanted = {name: value for name, value in alike.items() if value is not None}

        def is_wanted(each: Operation | Record) -> bool:
            return all(getattr(each, name) == value for name, value in wanted.items())

        if active:
            under_way = [
                each
                for each in reversed(self.all_under_way())
                if is_wanted(each) and state in (None, each.state)
            ]
            names = [each.id for each in under_way]
            return under_way[names.index(before) + 1 if before in names else 0 :][:limit]
        records = await self._history.find(state=state, before=before, limit=limit, **wanted)
        found = {each.id: self._known(each.id) or each for each in records}
        if state is None:
            return list(found.values())
        # The history hears of a state later than we know it, and of some not at all.
        end = (await self.get(before)).created if before is not None else math.inf
        for known in (*self._active.values(), *self._unwritten.values()):
            if known.created < end and is_wanted(known):
                found[known.id] = known
        good = [each for each in found.values() if each.state == state]
        return sorted(good, key=lambda each: -each.created)[:limit]

    def _known(self, operation: str) -> Operation | None:
        return self._active.get(operation) or self._unwritten.get(operation)

    async def steps(self, operation: str) -> list[Step]:
        """Return the steps that an operation took."""
        return await self._history.steps(operation)

    async def course(self, operation: str) -> list[Sample]:
        """Return how an operation's progress was over time."""
        known = self._known(operation)
        return known.course.samples if known is not None else await self._history.course(operation)

    async def _run(self, active: Operation, work: Work) -> None:
        def note_step(step: str, data: Mapping[str, object]) -> None:
            active.note_step(step)
            self._history.step(active.id, step, data)
            self._publish(active)

        logs.bind(operation=active.id, guest=active.guest, job=active.job)
        active.has_begun = True
        try:
            if active.cancel_requested:
                raise asyncio.CancelledError
            with steps.watched(steps.Watch(active.id, note_step)):
                result = await work(active)
            whole = outcome.whole(active.kind, result)
            is_failed = whole is not None and whole.level is outcome.Level.ERROR
            end = self._end(active, State.FAILED if is_failed else State.DONE, result=result)
        except asyncio.CancelledError:
            error = errors.Interrupted("cancelled; everything was rolled back")
            end = self._end(active, State.CANCELLED, error=error.as_dict())
        except Exception as found:
            if not isinstance(found, errors.MapsaveError):
                _log.exception("operation %s: a bug in mapsave", active.id)
            over = isinstance(found, errors.Interrupted)
            state = State.CANCELLED if over else State.FAILED
            end = self._end(active, state, error=errors.as_ours(found).as_dict())
        # A cancel that comes now is too late, and must not keep it from ending.
        await shielded.to_the_end(end)

    async def _end(
        self,
        active: Operation,
        state: State,
        result: Facts | None = None,
        error: errors.ErrorDict | None = None,
    ) -> None:
        """Record the outcome, then publish it: its readers find it recorded."""
        ended = time.time()
        if active.course.samples:
            self._history.note_course(active.id, active.course.samples)
        try:
            await self._history.end(active.id, state, ended=ended, result=result, error=error)
        except errors.MapsaveError as failure:
            _log.error("operation %s: its result could not be recorded yet: %s", active.id, failure)
            self._unwritten[active.id] = active
        del self._active[active.id]
        active.change(state=state, ended=ended, result=result, error=error, progress=None)
        self._publish_end(active, active.kind)

    async def write_ends(self) -> None:
        """Put into the history what ended while that could not be written."""
        for each in list(self._unwritten.values()):
            try:
                if each.image is not None:
                    await self._history.change(each.id, image=each.image)
                await self._history.end(
                    each.id, each.state, ended=each.ended, result=each.result, error=each.error
                )
            except errors.UnknownOperation:
                pass  # another history lies there by now
            except errors.MapsaveError as error:
                _log.error("the history still cannot be written: %s", error)
                return
            del self._unwritten[each.id]

    async def settle(
        self,
        record: Record,
        state: State,
        result: Facts | None = None,
        error: errors.ErrorDict | None = None,
    ) -> None:
        """End an operation of a service before us. Raises Refused."""
        image = (result or {}).get("image", record.image)
        if image != record.image:
            await self._history.change(record.id, image=image)
        ended = time.time()
        await self._history.end(record.id, state, ended=ended, result=result, error=error)
        over = Operation(**vars(record))
        over.change(state=state, image=image, ended=ended, result=result, error=error)
        self.interrupted.pop(record.id, None)
        self._publish_end(over, f"{over.kind} {over.id} of {over.guest}")

    def _publish_end(self, over: Operation, what: str) -> None:
        level, words = logging.INFO, ""
        if over.error is not None:
            level, words = logging.WARNING, f": {over.error['message']} [{over.error['id']}]"
        elif (whole := outcome.whole(over.kind, over.result)) is not None:
            level, words = _LEVELS[whole.level], f": {whole.words}"
        _log.log(level, "%s %s%s", what, over.state, words)
        self._metrics.ended(over.record())
        self._publish(over)
        self._on_end(over)

    def _publish(self, active: Operation) -> None:
        self._hub.publish("operation", active.as_dict(), active.id)
