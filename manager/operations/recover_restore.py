"""Recover an interrupted restore: the guest runs already, or the image is as it was."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from manager import errors
from manager.image import image
from manager.image.superblock import State
from manager.migration import guest_state, parameters
from manager.migration.parameters import Settings
from manager.monitor import fdset, qmp
from manager.operations import attach, ending, locks

if TYPE_CHECKING:
    from manager.config import Config
    from manager.monitor.session import Session
    from manager.operations.journal import Orphan

RUNS = "guest restored"
UNDONE = "destination ended, image as before"


async def recover(config: Config, orphan: Orphan, *, dry_run: bool) -> str:
    """Finish the restore where the guest was about to run, else undo it; return which.

    Raises Busy where somebody works on the destination.
    """
    socket = orphan.facts.get("socket")
    if socket is None:
        return UNDONE  # nothing had been started
    with locks.held(config.state, f"guest {orphan.facts['guest']!r}", attach.lock_key(socket)):
        try:
            async with qmp.connected(socket) as session:
                return await _with_qemu(orphan, session, dry_run=dry_run)
        except errors.Unreachable:
            if not dry_run:
                _unmark(orphan)
            return UNDONE


async def _with_qemu(orphan: Orphan, session: Session, *, dry_run: bool) -> str:
    if orphan.reached("run"):
        if not dry_run:
            await _tidy(orphan, session)
            if await guest_state.run_state(session) != "running":
                await guest_state.resume(session)
        return RUNS
    if dry_run:
        return f"would be: {UNDONE}"
    if orphan.reached("launch"):
        await ending.end_guest(session)
    else:
        await _tidy(orphan, session)
    _unmark(orphan)
    return UNDONE


async def _tidy(orphan: Orphan, session: Session) -> None:
    if orphan.reached("load"):
        await fdset.take_back(session, int(orphan.facts["fdset"]))
        await parameters.put_back(session, Settings.from_dict(orphan.facts["settings"]))


def _unmark(orphan: Orphan) -> None:
    """Give the image the state back that it had before, where it was marked."""
    if not orphan.reached("mark"):
        return
    with contextlib.suppress(OSError), image.opened(str(orphan.facts["image"])) as opened:
        if opened.block.state is State.RESTORED:
            opened.mark(State(int(orphan.facts["before"])))
