"""The saves of a save-all side by side, from the first that begins to the last that ends."""

import asyncio
import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from mapsave import errors
from mapsave.config import Config, Guest, Then
from mapsave.evacuation import forecast, guests, parallelism, record, save_targets
from mapsave.evacuation.record import Record
from mapsave.evacuation.save_targets import Target
from mapsave.hooks import around
from mapsave.migration import progress
from mapsave.migration.progress import Progress, Report
from mapsave.operations import save_request
from mapsave.operations.results import SaveResult

Saver = Callable[[Guest, save_request.Request, Report], Awaitable[SaveResult]]

_log = logging.getLogger(__name__)

# From here on a save is not given up any more: the image is about to be the guest.
_COMMITTING = frozenset(("commit", "quit"))
# From here on only its hooks are left.
_BEHIND = frozenset((around.AFTER_SAVE, around.ON_FAILURE))
# Seconds between two looks whether another mapsave is still at a guest.
_AGAIN = 0.2
# How often another mapsave may come first between the look at a guest and its save.
_TRIES = 5
_MAY_BE_GONE = (errors.Unreachable, errors.WrongRunState, errors.UnknownGuest)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of save-all: all guests that are configured, or those of ``guests``.

    ``libvirt`` is the URI of a daemon whose active domains are added. ``deadline`` is in seconds
    from now; ``parallel`` None finds out how many saves at once the disk takes.
    """

    guests: tuple[str, ...] = ()
    libvirt: str | None = None
    deadline: float | None = None
    then: Then = "quit"
    parallel: int | None = None
    dry_run: bool = False


@dataclasses.dataclass
class _Saving:
    """A save under way. ``done`` is in bytes of the guest's size."""

    target: Target
    phase: str = ""
    done: int = 0
    is_recorded: bool = False

    def note_progress(self, now: Progress) -> None:
        self.phase = now.phase
        if now.total_bytes:
            self.done = round(self.target.size * min(now.done_bytes / now.total_bytes, 1))

    @property
    def is_writing(self) -> bool:
        # QEMU counts what it has handed to its channels: after the last byte it only drains them.
        return self.phase == "write" and self.remaining > 0

    @property
    def remaining(self) -> int:
        return self.target.size - self.done


class Run:
    """The saves of one save-all. ``started`` is when it began, by the event loop's clock."""

    def __init__(
        self,
        config: Config,
        request: Request,
        lines: Sequence[Target],
        kept: Record,
        saver: Saver,
        report: Report,
        started: float,
    ) -> None:
        self.pace = parallelism.Pace(config.service.concurrency, request.parallel)
        self._config = config
        self._request = request
        self._lines = lines
        planned = [each for each in lines if each.outcome == "planned"]
        self._waiting = [each for each in planned if not each.locks]
        self._locked = [each for each in planned if each.locks]
        self._wanted = sum(each.size for each in self._waiting)
        self._running: dict[str, _Saving] = {}  # those that have a slot
        self._tasks: set[asyncio.Task[None]] = set()
        self._written = 0  # by the saves that have ended
        self._kept = kept
        self._saver = saver
        self._report = report
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._deadline = None if request.deadline is None else started + request.deadline

    async def to_the_end(self) -> None:
        """Save what is ``planned``, and set what became of each. Raises Refused."""
        await self._write_down()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for target in self._locked:
                    self._begin(self._await_turn(target))
                while self._waiting or self._tasks:
                    while (ready := self._next()) is not None:
                        self._running[ready.name] = _Saving(ready)
                        self._begin(self._one(ready))
                    if not self._tasks:
                        break  # and none of them fits into what time is left
                    self._changed.clear()
                    await self._changed.wait()
        finally:
            self._kept.tidy()
            await self._write()
        for target in self._waiting:
            assert self._request.deadline is not None
            error = forecast.no_time(target, self._request.deadline, self.pace.rate)
            target.fail(error, "no_time")

    async def _write_down(self) -> None:
        """Record what is about to be saved; the older images of guests that live are stale.

        A guest that keeps running after its save does not need its image, so there is nothing to
        restore. Raises Refused, NotPermitted.
        """
        self._plan(self._lines, self._waiting)
        with errors.explained(
            f"write the record {str(self._kept.path)!r}",
            self._kept.path.parent,
            os.W_OK | os.X_OK,
            otherwise=errors.Refused,
            hint="free some space there, or set 'state:' in the configuration",
        ):
            await self._kept.write()

    def _plan(self, seen: Sequence[Target], planned: Sequence[Target]) -> None:
        self._kept.forget({each.name for each in seen if each.is_alive})
        if self._request.then != "resume":
            self._kept.plan(
                [
                    record.Entry(each.name, str(each.image), each.ran, each.guest.priority)
                    for each in planned
                ]
            )
            for each in seen:
                # One that ran was left on purpose, perhaps to be restored elsewhere.
                if each.lies_in is not None and not save_targets.ran_before(each.lies_in):
                    self._kept.keep(each.name, each.lies_in, each.guest.priority)

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    async def _await_turn(self, target: Target) -> None:
        """Wait until no other mapsave is at the guest, look at it again, and let it be saved."""
        while True:
            left = self._left()
            if left is not None and left <= 0:
                target.fail(
                    errors.Busy(
                        f"guest {target.name!r} was being saved, restored or recovered by "
                        "another mapsave process until the deadline",
                        hint="check its state with 'mapsave ps' or 'mapsave list'",
                    )
                )
                return
            if not save_targets.held_locks(target, self._config):
                target.locks = ()
                patience = save_targets.patience_for(left)
                await save_targets.look(target, self._config, self._request.then, patience)
                if not target.locks:
                    break
            await asyncio.sleep(_AGAIN)
        if target.outcome == "planned":
            others = {str(each.image) for each in self._lines if each is not target}
            save_targets.name_image(target, others)
            self._wanted += target.size
            self._waiting.append(target)
            self._waiting.sort(key=lambda each: (-each.guest.priority, each.size))
        self._plan([target], [target] if target.outcome == "planned" else [])
        await self._write()
        self._look()

    async def _write(self) -> None:
        try:
            await self._kept.write()
        except OSError as error:
            # What was written down before the saves began is enough to find the images.
            _log.warning("cannot write %s: %s", self._kept.path, error.strerror)

    def _left(self) -> float | None:
        return None if self._deadline is None else self._deadline - self._loop.time()

    def _next(self) -> Target | None:
        """Take the first guest that may begin: there is a slot, and it would be done in time."""
        if len(self._running) >= self.pace.slots:
            return None
        left, remaining = self._left(), [each.remaining for each in self._running.values()]
        for index, target in enumerate(self._waiting):
            if self.pace.fits(target.size, remaining, left):
                return self._waiting.pop(index)
        return None

    async def _one(self, target: Target) -> None:
        try:
            saving = self._running[target.name]
            target.result = await self._saved(target, saving)
            target.outcome = "saved"
            if not saving.is_recorded:
                self._commit(saving)
                await self._write()
        except Exception as error:
            # Not even a bug in one save must cost the others theirs.
            if isinstance(error, _MAY_BE_GONE) and await self._is_gone(target):
                target.outcome = "not_running"  # it has ended while it waited for its turn
                return
            if type(error) is errors.Busy and target.tries < _TRIES:
                target.tries += 1  # another mapsave came first
                self._begin(self._await_turn(target))
                return
            target.fail(errors.as_ours(error))
            if isinstance(error, errors.GuestContinued):
                self._kept.forget({target.name})  # its image, if there is one, is stale

    async def _is_gone(self, target: Target) -> bool:
        try:
            return await guests.run_state(target.guest, self._config) is None
        except errors.MapsaveError:
            return False

    def _commit(self, saving: _Saving) -> None:
        """Note in the record that the image is committed. Raises InvalidImage and its kin."""
        if self._request.then != "resume":
            self._kept.commit(saving.target.name, str(saving.target.image))
        saving.is_recorded = True

    def _behind(self, saving: _Saving, *, is_saved: bool) -> None:
        """Let the next one begin, and write the record: what is left to do are hooks."""
        if is_saved:
            saving.done = saving.target.size
            try:
                self._commit(saving)
            except errors.MapsaveError:
                pass  # tried again, and reported, at the end
            else:
                self._begin(self._write())
        self._free(saving)

    def _free(self, saving: _Saving) -> None:
        """Give the slot back."""
        if self._running.pop(saving.target.name, None) is None:
            return
        self._written += saving.done
        self._look()
        self._changed.set()

    async def _saved(self, target: Target, saving: _Saving) -> SaveResult:
        """Save one guest within the deadline. Raises SaveTimeout, and as a save does."""
        assert target.request is not None
        try:
            async with asyncio.timeout_at(self._deadline) as limit:

                def seen(now: Progress) -> None:
                    if now.phase in _COMMITTING | _BEHIND and not limit.expired():
                        limit.reschedule(None)
                    if now.phase in _BEHIND:
                        self._behind(saving, is_saved=now.phase == around.AFTER_SAVE)
                        return
                    if now.phase == progress.RESUME:
                        self._report(now)
                        return
                    saving.note_progress(now)
                    self._look()

                with around.hooks_until(self._deadline):
                    result = await self._saver(target.guest, target.request, seen)
                saving.done = target.size
                return result
        except TimeoutError:
            raise errors.SaveTimeout(
                f"guest {target.name!r}: not saved by the deadline; the save was cancelled",
                hint="the guest is as before; allow more time, or give it a higher priority",
            ) from None
        finally:
            self._free(saving)

    def _look(self) -> None:
        """Show the pace what was written by now, and the user how far all of it is."""
        now, running = self._loop.time(), self._running.values()
        written = self._written + sum(each.done for each in running)
        writing = frozenset(each.target.name for each in running if each.is_writing)
        slots = self.pace.slots
        self.pace.note(parallelism.Look(now, written, frozenset(self._running), writing))
        if self.pace.slots > slots:
            self._changed.set()
        ended = sum(each.outcome != "planned" for each in self._lines)
        elapsed = now - self._began
        rate = written / elapsed if elapsed else 0.0
        phase = f"{ended} of {len(self._lines)} guests"
        self._report(Progress(phase, min(written, self._wanted), self._wanted, rate))
