"""Hand a loaded guest to its user: mark the image, then resume the guest.

In this order, so that no crash between them leaves a running guest beside an image that looks
unused. The mark is taken back only where the guest surely has not run. A managed save loses its
name as well, for libvirt knows no marks, and is removed once the guest is back, as libvirt does.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable

from mapsave import blocking, errors
from mapsave.config import Config
from mapsave.image.image import Image
from mapsave.migration import guest_state
from mapsave.monitor.session import Events, Session
from mapsave.operations import ending, journal, managed_save, restored_notes, whereabouts
from mapsave.operations.destination import Destination
from mapsave.operations.steps import Step

_log = logging.getLogger(__name__)

_STAYS_MARKED = "the image remains marked as restored"
_UNKNOWN = "unknown"  # the run state of a guest whose monitor was lost in the end
_AGAIN = "its disks may have changed since; 'mapsave restore --again' restores it anyway"


@dataclasses.dataclass(frozen=True)
class Handed:
    """What is handed over: the image, and the guest that was loaded from it into ``target``.

    The image of a clone is not marked: its own guest has not run.
    """

    config: Config
    opened: Image
    target: Destination
    log: journal.Journal
    is_clone: bool = False

    @property
    def mark_stays(self) -> str:
        """What to say of the image where the guest may have run."""
        return "" if self.is_clone else f"; {_STAYS_MARKED}"


async def to_user(handed: Handed, *, runs: bool) -> str:
    """Mark the image, resume the guest if it ``runs``; return its state. Raises RestoreFailed.

    The state is ``unknown`` where the monitor is lost after that and QEMU lives.
    """
    target, log, session = handed.target, handed.log, handed.target.session
    with session.events("RESUME") as events:
        unmark, taken = await _marked(handed)
        try:
            if runs:
                await log.step(Step.RUN)
                await session.resume()
        except journal.JournalUnwritable:
            await blocking.call(unmark)
            raise
        except errors.MonitorError as error:
            refused = isinstance(error, errors.CommandRefused)
            if refused or await _has_ended_unresumed(session, events):
                await blocking.call(unmark)
                raise errors.RestoreFailed(
                    f"{session.address}: loaded, but QEMU did not resume it: {error.message}"
                ) from None
            raise await _may_run(handed, error) from None
        target.is_kept = True
        try:
            state = await guest_state.run_state(session)
        except errors.MonitorError as error:
            if not runs and await _has_ended_unresumed(session, events):
                await blocking.call(unmark)
                raise errors.RestoreFailed(
                    f"{session.address}: loaded, but QEMU exited before the guest was resumed: "
                    f"{error.message}"
                ) from None
            out_of_sight = session.pid is None and isinstance(error, errors.MonitorLost)
            if out_of_sight or await ending.is_lost(session.pid):
                raise _has_exited(handed, error) from None
            log.warnings.append(
                f"{session.address}: the guest was restored; its state could not be queried: "
                f"{error.message}"
            )
            log.warnings += [f"{managed_save.stale(path)!r} remains" for path in taken]
            return _UNKNOWN
        _remove(taken, log)
        return state


async def _marked(handed: Handed) -> tuple[Callable[[], None], list[str]]:
    """Do as ``_mark``, but for a clone, whose image stays as it is."""
    if handed.is_clone:
        return lambda: None, []
    await handed.log.step(Step.MARK)
    pid = handed.target.session.pid
    return await blocking.call(_mark, handed.config, handed.opened, pid, handed.log)


def _mark(
    config: Config, opened: Image, pid: int | None, log: journal.Journal
) -> tuple[Callable[[], None], list[str]]:
    """Mark the image restored; return what takes that back, and the managed saves set aside.

    Raises RestoreFailed.
    """
    before = opened.block.state
    note = whereabouts.managed_save_of(config.state, opened)
    places = managed_save.in_place(opened, note.image if note is not None else None, pid)
    taken: list[str] = []
    try:
        was_noted = restored_notes.is_noted(config.state, opened.block.uuid)
        if (warning := restored_notes.mark(config.state, opened)) is not None:
            log.warnings.append(warning)
            _log.warning("%s", warning)
        for place in places:
            managed_save.set_aside(place)
            taken.append(place)
    except OSError as error:
        # A mark that could not be synced may be read all the same: it is written over.
        with contextlib.suppress(OSError):
            blocking.joined(restored_notes.MARKING, opened.mark, before)
        _put_back(taken)
        raise errors.of_os_error(
            error,
            f"{opened.path!r} cannot be marked as restored, {error.strerror}; the guest was not "
            "resumed",
            opened.path,
            os.W_OK,
            otherwise=errors.RestoreFailed,
            hint="make the image or the state directory writable",
        ) from None

    def unmark() -> None:
        restored_notes.unmark(config.state, opened, before, was_noted=was_noted)
        _put_back(taken)

    return unmark, taken


def _put_back(taken: list[str]) -> None:
    for path in taken:
        try:
            managed_save.put_back(path)
        except OSError as error:
            name = managed_save.stale(path)
            _log.warning("%s: cannot be renamed back to %s: %s", name, path, error.strerror)


def _remove(taken: list[str], log: journal.Journal) -> None:
    """Remove the managed saves whose guest is back."""
    for path in taken:
        try:
            managed_save.remove(path)
        except OSError as error:
            log.warnings.append(f"{managed_save.stale(path)!r} remains: {error.strerror}")


async def _has_ended_unresumed(session: Session, events: Events) -> bool:
    """Return whether QEMU has exited without an event of the guest's being resumed."""
    if not await ending.is_lost(session.pid):
        return False
    with contextlib.suppress(errors.MonitorLost):
        return await events.next(timeout=0) is None
    return True


def _has_exited(handed: Handed, error: errors.MonitorError) -> errors.RestoreFailed:
    """Return the error for a guest that may have run before its QEMU exited, or may have."""
    session = handed.target.session
    since, hint = "has exited since", None if handed.is_clone else _AGAIN
    if session.pid is None:
        since, hint = "may have exited since", "look whether it runs before you restore it again"
    return errors.RestoreFailed(
        f"{session.address}: the guest was restored, and QEMU {since}: {error.message}"
        f"{handed.mark_stays}",
        hint=hint,
    )


async def _may_run(handed: Handed, error: errors.MonitorError) -> errors.RestoreFailed:
    """Return the error for a guest that may run: it was left so, and recovery resumes it."""
    session = handed.target.session
    if await ending.is_lost(session.pid):
        return _has_exited(handed, error)
    handed.target.is_kept = True
    handed.log.unsettled()
    return errors.RestoreFailed(
        f"{session.address}: loaded, but QEMU may not have resumed the guest: {error.message}"
        f"{handed.mark_stays}",
        hint="run 'mapsave recover': it resumes the guest",
    )
