"""The saves of a save-all side by side, from the first that begins to the last that ends."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from manager import errors
from manager.config import Guest
from manager.fleet import forecast, guests, pace, record
from manager.migration.progress import Progress, Report
from manager.operations import save_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manager.config import Config
    from manager.fleet.record import Record
    from manager.fleet.save_all import Request
    from manager.fleet.targets import Target

Saver = Callable[[Guest, save_request.Request, Report], Awaitable[dict[str, Any]]]

_log = logging.getLogger(__name__)

# From here on a save is not given up any more: the image is about to be the guest.
_COMMITTING = frozenset(("commit", "quit"))
_MAY_BE_GONE = (errors.Unreachable, errors.WrongRunState, errors.UnknownGuest)


@dataclasses.dataclass
class _Saving:
    """A save under way. ``done`` is in bytes of the guest's size."""

    target: Target
    phase: str = ""
    done: int = 0

    def saw(self, now: Progress) -> None:
        self.phase = now.phase
        if now.total_bytes:
            self.done = round(self.target.size * min(now.done_bytes / now.total_bytes, 1))

    @property
    def is_writing(self) -> bool:
        # QEMU counts what it has handed to its channels: behind the last byte it only drains them.
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
        self.pace = pace.Pace(config.service.concurrency, request.parallel)
        self._config = config
        self._request = request
        self._lines = lines
        self._waiting = [each for each in lines if each.outcome == "planned"]
        self._wanted = sum(each.size for each in self._waiting)
        self._running: dict[str, _Saving] = {}
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
                while self._waiting:
                    while (target := self._next()) is not None:
                        self._running[target.name] = _Saving(target)
                        group.create_task(self._one(target))
                    if not self._running:
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

        A guest that runs on behind its save leaves its image behind as well, so there is nothing to
        bring back. Raises Refused.
        """
        self._kept.forget({each.name for each in self._lines if each.is_alive})
        if self._request.then != "resume":
            self._kept.plan(
                [
                    record.Entry(each.name, str(each.image), each.ran, each.guest.priority)
                    for each in self._waiting
                ]
            )
        try:
            await self._kept.write()
        except OSError as error:
            raise errors.Refused(
                f"cannot write the record {str(self._kept.path)!r}: {error.strerror}",
                hint="make room there, or set 'state:' in the configuration",
            ) from None

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
            target.result = await self._saved(target, self._running[target.name])
            target.outcome = "saved"
            if self._request.then != "resume":
                self._kept.commit(target.name, str(target.image))
                await self._write()
        except errors.MapsaveError as error:
            if isinstance(error, _MAY_BE_GONE) and await self._is_gone(target):
                target.outcome = "not_running"  # it has ended while it waited for its turn
                return
            target.fail(error)
            if isinstance(error, errors.GuestContinued):
                self._kept.forget({target.name})  # its image, if there is one, is stale
        except Exception as error:
            # A bug in one save must not cost the others theirs.
            target.fail(errors.MapsaveError(f"unexpected {type(error).__name__}: {error}"))

    async def _is_gone(self, target: Target) -> bool:
        try:
            return await guests.run_state(target.guest, self._config) is None
        except errors.MapsaveError:
            return False

    async def _saved(self, target: Target, saving: _Saving) -> dict[str, Any]:
        """Save one guest within the deadline. Raises SaveTimeout, and as a save does."""
        assert target.request is not None
        try:
            async with asyncio.timeout_at(self._deadline) as limit:

                def seen(now: Progress) -> None:
                    saving.saw(now)
                    if now.phase in _COMMITTING and not limit.expired():
                        limit.reschedule(None)
                    self._look()

                result = await self._saver(target.guest, target.request, seen)
                saving.done = target.size
                return result
        except TimeoutError:
            raise errors.SaveTimeout(
                f"guest {target.name!r}: not saved by the deadline; cancelled",
                hint="the guest is as before; allow more time, or give it a higher priority",
            ) from None
        finally:
            del self._running[target.name]
            self._written += saving.done
            self._look()
            self._changed.set()

    def _look(self) -> None:
        """Show the pace what was written by now, and the user how far all of it is."""
        now, running = self._loop.time(), self._running.values()
        written = self._written + sum(each.done for each in running)
        writing = frozenset(each.target.name for each in running if each.is_writing)
        slots = self.pace.slots
        self.pace.saw(pace.Look(now, written, frozenset(self._running), writing))
        if self.pace.slots > slots:
            self._changed.set()
        ended = sum(each.outcome != "planned" for each in self._lines)
        elapsed = now - self._began
        rate = written / elapsed if elapsed else 0.0
        phase = f"{ended} of {len(self._lines)} guests"
        self._report(Progress(phase, min(written, self._wanted), self._wanted, rate))
