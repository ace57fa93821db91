"""Hand a loaded guest to its user: mark the image, then resume the guest.

In this order, so that no crash between them leaves a running guest beside an image that looks
unused. The mark is taken back only where the guest surely has not run.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable

from mapsave import errors
from mapsave.config import Config
from mapsave.image.image import Image
from mapsave.migration import guest_state
from mapsave.monitor.session import Events, Session
from mapsave.operations import ending, journal, restored_notes
from mapsave.operations.destination import Destination
from mapsave.operations.steps import Step

_log = logging.getLogger(__name__)

_STAYS_MARKED = "the image remains marked as restored"
_AGAIN = "its disks may have changed since; 'mapsave restore --again' restores it anyway"


async def to_user(
    config: Config, opened: Image, target: Destination, log: journal.Journal, *, runs: bool
) -> str:
    """Mark the image, resume the guest if it ``runs``; return its state. Raises RestoreFailed."""
    session = target.session
    log.step(Step.MARK)
    with session.events("RESUME") as events:
        unmark = _mark(config, opened, log)
        try:
            if runs:
                log.step(Step.RUN)
                await session.resume()
        except journal.JournalUnwritable:
            unmark()
            raise
        except errors.MonitorError as error:
            refused = isinstance(error, errors.CommandRefused)
            if refused or await _has_ended_unresumed(session, events):
                unmark()
                raise errors.RestoreFailed(
                    f"{session.address}: loaded, but QEMU did not resume it: {error.message}"
                ) from None
            raise await _may_run(target, log, error) from None
        target.is_kept = True
        try:
            return await guest_state.run_state(session)
        except errors.MonitorError as error:
            if not runs and await _has_ended_unresumed(session, events):
                unmark()
                raise errors.RestoreFailed(
                    f"{session.address}: loaded, but QEMU exited before the guest was resumed: "
                    f"{error.message}"
                ) from None
            raise errors.RestoreFailed(
                f"{session.address}: the guest was restored, but {error.message}; {_STAYS_MARKED}",
                hint=_AGAIN,
            ) from None


def _mark(config: Config, opened: Image, log: journal.Journal) -> Callable[[], None]:
    """Mark the image restored; return what takes that back. Raises RestoreFailed."""
    before = opened.block.state
    try:
        was_noted = restored_notes.is_noted(config.state, opened.block.uuid)
        if (warning := restored_notes.mark(config.state, opened)) is not None:
            log.warnings.append(warning)
            _log.warning("%s", warning)
    except OSError as error:
        # A mark that could not be synced may be read all the same: it is written over.
        with contextlib.suppress(OSError):
            opened.mark(before)
        raise errors.of_os_error(
            error,
            f"{opened.path!r} cannot be marked as restored, {error.strerror}; the guest was not "
            "resumed",
            opened.path,
            os.W_OK,
            otherwise=errors.RestoreFailed,
            hint="make the image or the state directory writable",
        ) from None
    return functools.partial(
        restored_notes.unmark, config.state, opened, before, was_noted=was_noted
    )


async def _has_ended_unresumed(session: Session, events: Events) -> bool:
    """Return whether QEMU has exited without an event of the guest's being resumed."""
    if not await ending.is_lost(session.pid):
        return False
    with contextlib.suppress(errors.MonitorLost):
        return await events.next(timeout=0) is None
    return True


async def _may_run(
    target: Destination, log: journal.Journal, error: errors.MonitorError
) -> errors.RestoreFailed:
    """Return the error for a guest that may run: it was left so, and recovery resumes it."""
    session = target.session
    if await ending.is_lost(session.pid):
        return errors.RestoreFailed(
            f"{session.address}: the guest was resumed, and QEMU has exited since: "
            f"{error.message}; {_STAYS_MARKED}",
            hint=_AGAIN,
        )
    target.is_kept = True
    log.unsettled()
    return errors.RestoreFailed(
        f"{session.address}: loaded, but QEMU may not have resumed the guest: {error.message}; "
        f"{_STAYS_MARKED}",
        hint="run 'mapsave recover': it resumes the guest",
    )
