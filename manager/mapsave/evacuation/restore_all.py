"""Bring back what save-all saved, once the host is up again.

The record says which guests and images; the images themselves say whether they were restored since.
"""

import asyncio
import collections
import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TypedDict

from mapsave import blocking, errors, units
from mapsave.config import Config
from mapsave.evacuation import record, restore_targets
from mapsave.evacuation.record import Record
from mapsave.evacuation.restore_targets import Return
from mapsave.hooks import around, recover
from mapsave.jobs import outcome
from mapsave.migration.progress import Progress, Report, silent
from mapsave.operations import discard, restore_request
from mapsave.operations.recovered_notes import Line as Recovered
from mapsave.operations.results import RestoreResult

Restorer = Callable[[restore_request.Request, Report], Awaitable[RestoreResult]]

PARALLEL = 2

_log = logging.getLogger(__name__)

# Seconds for which another mapsave may be at a guest, and between two looks.
_PATIENCE = 600.0
_AGAIN = 0.2
# How often another mapsave may come first between the look at a guest and its restore.
_TRIES = 5

_DROPPED = frozenset(("restored", "skipped", "not_saved"))


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of restore-all: ``parallel`` restores at once (2 if not said).

    With ``discard`` an image is deleted once its guest is back.
    """

    parallel: int | None = None
    discard: bool = False
    dry_run: bool = False


class RestoredAll(TypedDict):
    """What ``mapsave restore-all --json`` prints."""

    guests: list[restore_targets.Line]
    dry_run: bool
    restored: int
    failed: int
    skipped: int
    not_saved: int
    recovered: list[Recovered]
    duration_s: float
    record: str
    exit_code: int


async def restore_all(
    config: Config,
    request: Request,
    report: Report = silent,
    *,
    restorer: Restorer | None = None,
) -> RestoredAll:
    """Restore what the record holds, and return the summary.

    What an interrupted mapsave left is finished or undone first. A guest that is back leaves the
    record, one that fails stays in it. ``restorer`` restores one image. Raises Busy, and Refused or
    NotPermitted where the record cannot be read; nothing is touched. Cancelled, it raises
    Interrupted, which names the guests that are back.
    """
    began = asyncio.get_running_loop().time()
    if request.dry_run:
        lines = restore_targets.planned(record.load(config.state))
        for line in lines:
            await restore_targets.look(config, line)
        return _summary(config, lines, [], began, dry_run=True)

    async def usual(wanted: restore_request.Request, told: Report) -> RestoreResult:
        return await around.restore(config, wanted, told)

    with record.hold(config.state) as kept:
        recovered = (await recover.recover(config))["operations"] if kept.entries else []
        lines = restore_targets.planned(kept)
        run = _Run(config, request, lines, kept, restorer or usual, report)
        try:
            await run.to_the_end()
        except asyncio.CancelledError:
            raise _interrupted(lines) from None
        return _summary(config, lines, recovered, began, dry_run=False)


def _interrupted(lines: Sequence[Return]) -> errors.Interrupted:
    """Return the error that names the restored guests: they are not saved again."""
    restored = [line.entry.guest for line in lines if line.outcome == "restored"]
    so_far = (
        f"restored before that: {', '.join(restored)}" if restored else "no guest had been restored"
    )
    return errors.Interrupted(
        f"interrupted; the restores in progress were rolled back, {so_far}",
        hint="'mapsave restore-all' restores the others",
        restored=restored,
    )


@dataclasses.dataclass
class _Run:
    """The restores of one restore-all."""

    _config: Config
    _request: Request
    _lines: Sequence[Return]
    _kept: Record
    _restorer: Restorer
    _report: Report

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def to_the_end(self) -> None:
        slots = asyncio.Semaphore(self._request.parallel or PARALLEL)
        async with asyncio.TaskGroup() as group:
            for line in self._lines:  # the semaphore lets them in by their order
                group.create_task(self._one(line, slots))

    async def _one(self, line: Return, slots: asyncio.Semaphore) -> None:
        tries, deadline = 0, self._loop.time() + _PATIENCE
        while True:
            async with slots:
                if not await self._is_locked(line):
                    await restore_targets.look(self._config, line)
                    if line.outcome == "planned":
                        await self._restore(line)
                    elif line.is_by_libvirt:
                        await restore_targets.let_go(self._config, line)
                    tries += 1
                    if type(line.error) is not errors.Busy or tries == _TRIES:
                        await self._settle(line)
                        return
                    line.plan_again()  # another mapsave came first
            if not await self._await_turn(line, deadline):
                line.fail(
                    errors.Busy(
                        f"guest {line.entry.guest!r} was being saved, restored or recovered by "
                        f"another mapsave process for {units.format_duration(_PATIENCE)}",
                        hint="check its state with 'mapsave ps' or 'mapsave list'; the next "
                        "'mapsave restore-all' tries again",
                    )
                )
                self._report_progress()
                return

    async def _await_turn(self, line: Return, deadline: float) -> bool:
        """Wait until no other mapsave is at the guest; return whether that was before the
        deadline."""
        while self._loop.time() < deadline:
            await asyncio.sleep(_AGAIN)
            if not await self._is_locked(line):
                return True
        return False

    async def _is_locked(self, line: Return) -> bool:
        return await blocking.call(restore_targets.is_locked, self._config, line.entry)

    async def _settle(self, line: Return) -> None:
        """Have an entry that is dealt with leave the record."""
        if line.outcome in _DROPPED:
            self._kept.drop(line.entry)
            try:
                await self._kept.write()
            except OSError as error:
                # The image is marked as restored, so the next try passes it over.
                _log.warning("cannot write %s: %s", self._kept.path, error.strerror)
        self._report_progress()

    async def _restore(self, line: Return) -> None:
        name = line.entry.guest
        known = restore_targets.configured(self._config, name) is not None
        request = restore_request.Request(image=line.entry.image, guest=name if known else None)

        def seen(_: Progress) -> None:
            self._report_progress()  # a restore reports its phases, but no bytes

        try:
            line.result = await self._restorer(request, seen)
            line.outcome = "restored"
            if self._request.discard:
                await blocking.call(self._discard, line)
        except Exception as error:
            # Not even a bug in one restore must cost the others theirs.
            line.fail(errors.as_ours(error))

    def _discard(self, line: Return) -> None:
        """Delete the image of a guest that is back, which it is even where that fails."""
        if not os.path.lexists(line.entry.image):  # a managed save: it went with the restore
            line.discarded = True
            return
        try:
            # Its guest may live on it: that is no reason to keep its name.
            path = line.entry.image
            done = discard.discard(self._config, path, unrestored=False, in_use=True)
            line.discarded = True
            if done["note"] is not None:
                line.note = str(done["note"])
        except (errors.MapsaveError, OSError) as error:
            line.note = f"the image was kept: {error}"

    def _report_progress(self) -> None:
        ended = sum(line.outcome != "planned" for line in self._lines)
        self._report(Progress(f"{ended} of {len(self._lines)} guests"))


def _summary(
    config: Config,
    lines: Sequence[Return],
    recovered: list[Recovered],
    began: float,
    *,
    dry_run: bool,
) -> RestoredAll:
    counts = collections.Counter(line.outcome for line in lines)
    return {
        "guests": [line.line() for line in lines],
        "dry_run": dry_run,
        "restored": counts["restored"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "not_saved": counts["not_saved"],
        "recovered": recovered,
        "duration_s": round(asyncio.get_running_loop().time() - began, 6),
        "record": str(config.state / record.NAME),
        "exit_code": outcome.worst(line.error.exit_code for line in lines if line.error),
    }
