"""One task on its way: it is reconciled with the host, begun once, followed, and reported.

What the host's service says of the operation decides, never what the database says of the task.
"""

import asyncio
import contextlib
import dataclasses
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal

from psycopg.types.json import Jsonb

from mapsave import errors, strict_json, together
from mapsave.client.exchange import Answer
from mapsave.fleet import local_service, naming, outcomes, waiting
from mapsave.fleet.accepted import Wanted
from mapsave.fleet.line import Away, Line, Row
from mapsave.fleet.local_service import LocalService, ServiceAway
from mapsave.fleet.notes import Note, Notes
from mapsave.history.states import State
from mapsave.strict_json import Facts

RENEW = 15.0  # seconds between two renewals of a lease, which is of a minute
# Seconds until a slot is asked for again, where no word comes before. One that was not asked for
# within 30 seconds lets others by; a thousand hosts that ask more often keep a server busy.
SLOT = 12.0
_SOONEST = 0.2  # seconds between two of the same, however many notifications come
_SERVICE = 2.0  # seconds until a service that is away is asked again

_log = logging.getLogger(__name__)

Status = Literal["succeeded", "failed", "aborted"]


@dataclasses.dataclass(frozen=True)
class Means:
    """What a task is done with; ``ended`` is called when one has come to its end."""

    line: Line
    service: LocalService
    notes: Notes
    ended: Callable[[], None]


class Performance:
    """One task, from its delivery to its report.

    ``wanted`` is what was refused it with, or None for one that only a note speaks of: if it was
    begun all the same, it is followed and reported, but it is not begun.
    """

    def __init__(
        self,
        means: Means,
        task: uuid.UUID,
        wanted: Wanted | errors.MapsaveError | None,
        priority: int = 0,
    ) -> None:
        self._means = means
        self._wanted = wanted
        self.task = task
        self.operation = naming.operation_of(task)
        self.priority = priority
        self.is_waiting = False  # for a slot
        self.may_run = False  # on the host: it holds a slot, or should
        self.woken = asyncio.Event()
        self._abort = asyncio.Event()
        self._progress: Facts | None = None

    async def run(self) -> None:
        """Do the task, or what is left of it, and report it. Cancelled, it is left as it is."""
        renewing = asyncio.create_task(self._renew())
        try:
            found = await self._settled()
            if found is not None:
                await self._report(*found)
            self.may_run = False
            await asyncio.to_thread(self._means.notes.forget, self.operation)
            self._means.ended()
        finally:
            renewing.cancel()

    async def look(self) -> None:
        """Find out whether the operation may run on the host: before that, no slot is asked for.

        While the service is away, one that was noted may.
        """
        note = await asyncio.to_thread(self._means.notes.get, self.operation)
        try:
            found = await self._means.service.find(self.operation)
        except ServiceAway:
            self.may_run = note is not None
        else:
            self.may_run = found is not None and not local_service.has_ended(found)

    async def adopt(self) -> None:
        """Have the database know of the slot of what may run. Raises Away."""
        note = await asyncio.to_thread(self._means.notes.get, self.operation)
        target, limit = (note.target, note.limit) if note is not None else (None, 0.0)
        if isinstance(self._wanted, Wanted):
            target, limit = self._wanted.target, self._wanted.limit
        await self._means.line.ask(
            "SELECT adopt_slot(%s, %s, %s)", (self.task, target, int(limit) or None)
        )

    async def _settled(self) -> tuple[Status, Facts] | None:
        """Return what became of the task; None where nothing was begun, and no one asks for it."""
        while True:
            try:
                found = await self._means.service.find(self.operation)
                if found is None:
                    found = await self._begun()
                if found is None:
                    return None
                return await self._followed(found)
            except _Dropped:
                return None
            except _Over as over:
                return over.status, outcomes.failed(self.operation, over.error)
            except ServiceAway as error:
                _log.info("task %s: %s; trying again", self.task, error)
                await self._pause(_SERVICE)

    async def _begun(self) -> Answer | None:
        """Begin the operation, which the service does not know. Raises _Over, ServiceAway."""
        notes, service = self._means.notes, self._means.service
        note = await asyncio.to_thread(notes.get, self.operation)
        if note is not None and not await service.is_whole_since(note):
            raise _Over("failed", _lost(self.operation))
        wanted = self._wanted
        if wanted is None:
            return None
        if isinstance(wanted, errors.MapsaveError):
            raise _Over("failed", wanted)
        bandwidth = await self._slot()
        if note is None:
            marker = await service.marker()
            made = Note(str(self.task), wanted.kind, wanted.limit, wanted.target, marker)
            await asyncio.to_thread(notes.add, self.operation, made)
        try:
            return await service.begin(self.operation, wanted.limited(bandwidth))
        except errors.MapsaveError as error:
            raise _Over("failed", error) from None

    async def _slot(self) -> int | None:
        """Wait for a slot; return its bandwidth in bytes per second. Raises _Over.

        Until then nothing was begun.
        """
        self.is_waiting = True
        try:
            while True:
                self.woken.clear()
                row = _first(
                    await self._means.line.surely("SELECT * FROM take_slot(%s)", (self.task,))
                )
                state, why = row.get("state"), str(row.get("why"))[:500]
                if state == "taken":
                    self.may_run = True
                    found = row.get("bandwidth")
                    return found if isinstance(found, int) and found > 0 else None
                if state == "over":
                    raise _Over("failed", errors.WindowClosed(f"it was not begun in time: {why}"))
                if state == "cancelled":
                    error = errors.Interrupted(f"cancelled before it was begun: {why}")
                    raise _Over("aborted", error)
                if state in ("settled", "unknown"):
                    # Not reported: in a database that was restored it may be still to be done.
                    raise _Dropped
                await self._pause(SLOT)
        finally:
            self.is_waiting = False

    async def _followed(self, found: Answer) -> tuple[Status, Facts]:
        """Wait for the end of the operation. Raises ServiceAway; _Over where it is not known."""
        self.may_run = True
        service = self._means.service
        is_cancelled = False
        while not local_service.has_ended(found):
            self._progress = outcomes.progress(found)
            if self._abort.is_set() and not is_cancelled:
                await service.cancel(self.operation)
                is_cancelled = True
            later = await self._later(is_cancelled)
            if later is None:
                raise _Over("failed", _lost(self.operation))
            found = later
        steps: list[Facts] = []
        with contextlib.suppress(ServiceAway):
            steps = await service.steps(self.operation)
        status: Status = "succeeded" if found["state"] == State.DONE else "failed"
        if found["state"] == State.CANCELLED and self._abort.is_set():
            status = "aborted"
        return status, outcomes.ended(found, steps)

    async def _later(self, is_cancelled: bool) -> Answer | None:
        """Return the operation in a while, or as soon as it is to be cancelled."""
        if is_cancelled:
            return await self._means.service.later(self.operation)
        asking = together.shared(self._means.service.later(self.operation))
        abort = asyncio.ensure_future(self._abort.wait())
        try:
            either: set[asyncio.Future[Any]] = {asking, abort}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
        finally:
            abort.cancel()
            asking.cancel()
        return await self._means.service.find(self.operation)

    async def _report(self, status: Status, outcome: Facts) -> None:
        """Report the outcome, whenever the database is there; then forget the operation."""
        facts = Jsonb(outcomes.clean(outcome), dumps=strict_json.dumps)
        row = _first(
            await self._means.line.surely(
                "SELECT report(%s, %s, %s) AS new", (self.task, status, facts)
            )
        )
        known = "" if row.get("new") is True else ", which the fleet knew or no longer asks for"
        _log.info("task %s, operation %s: %s%s", self.task, self.operation, status, known)

    async def _renew(self) -> None:
        """Keep the slot while the operation may run, and hear whether it is to be cancelled."""
        while True:
            if self.may_run:
                with contextlib.suppress(Away):
                    await self._renew_once()
            self.woken.clear()
            await self._pause(RENEW)

    async def _renew_once(self) -> None:
        if not self._means.line.is_ready:
            return
        facts = Jsonb(outcomes.clean(self._progress), dumps=strict_json.dumps)
        row = _first(
            await self._means.line.ask("SELECT renew(%s, %s) AS abort", (self.task, facts))
        )
        # Only the answer counts: notifications may come from anyone.
        if row.get("abort") is True:
            self._abort.set()

    async def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        soonest = loop.time() + _SOONEST
        await waiting.is_set_within(self.woken, seconds)
        await asyncio.sleep(max(soonest - loop.time(), 0))


class _Over(Exception):
    """The task has come to its end without one of an operation."""

    def __init__(self, status: Status, error: errors.MapsaveError) -> None:
        self.status = status
        self.error = error


class _Dropped(Exception):
    """Nothing was begun, and the fleet does not wait for it."""


def _first(rows: Sequence[Row]) -> Row:
    return rows[0] if rows else {}


def _lost(operation: str) -> errors.MapsaveError:
    return errors.OutcomeUnknown(
        f"operation {operation} was begun, and the host's service no longer knows it",
        hint="its history was lost: look on the host what became of the guest, "
        "by 'mapsave guests' and 'mapsave list'",
    )
