"""Hand the pair over to QEMU, and take it back on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from manager import errors
from manager.monitor import undoing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from typing import Any

    from manager.monitor.session import Session

_log = logging.getLogger(__name__)

# Far from the ids that QEMU and libvirt give (from 0 upwards), so that sets never collide.
FIRST_ID = 1_000_000
OPAQUE = "mapsave"
# What QEMU says where the kernel took the descriptor from the message it arrived in, which is how
# SELinux and AppArmor refuse one (monitor/fds.c).
DROPPED = "No file descriptor supplied via SCM_RIGHTS"
_GONE_WITHIN = 10.0


async def query(session: Session) -> list[dict[str, Any]]:
    """Return QEMU's fdsets as ``query-fdsets`` lists them."""
    found: list[dict[str, Any]] = await session.execute("query-fdsets")
    return found


def ours(fdsets: Sequence[dict[str, Any]]) -> list[int]:
    """Return the ids of the sets that a mapsave handed over."""
    return [
        int(fdset["fdset-id"])
        for fdset in fdsets
        if int(fdset["fdset-id"]) >= FIRST_ID
        and any(str(fd.get("opaque", "")).startswith(OPAQUE) for fd in fdset["fds"])
    ]


async def choose_id(session: Session) -> int:
    """Return an id that no set of this QEMU has."""
    return free_id(await query(session))


def free_id(fdsets: Sequence[dict[str, Any]]) -> int:
    """Return an id that none of these sets has."""
    taken = {int(fdset["fdset-id"]) for fdset in fdsets}
    return next(i for i in range(FIRST_ID, FIRST_ID + len(taken) + 1) if i not in taken)


@contextlib.asynccontextmanager
async def handed_over(
    session: Session,
    descriptors: Sequence[int],
    fdset: int,
    on_dropped: Callable[[str], errors.MapsaveError],
) -> AsyncIterator[str]:
    """Add ``descriptors`` to set ``fdset`` and yield its path; remove the set at the end.

    Each reply is awaited before the next descriptor is sent. ``on_dropped`` makes the error for a
    descriptor that a security module took away, from QEMU's words.

    Raises Busy where somebody has taken the id since it was chosen, CommandRefused, MonitorLost, or
    what ``on_dropped`` returns.
    """
    # Else the removal at the end would take away the descriptors of whoever made that set.
    if any(found["fdset-id"] == fdset for found in await query(session)):
        raise errors.Busy(
            f"{session.address}: somebody else has made fdset {fdset} meanwhile", hint="try again"
        )
    try:
        for number, fd in enumerate(descriptors):
            try:
                await session.pass_descriptor(fd, fdset, f"{OPAQUE}-{number}")
            except errors.CommandRefused as error:
                if error.desc == DROPPED:
                    raise on_dropped(error.desc) from None
                raise
        await _expect(session, fdset, len(descriptors))
        yield f"/dev/fdset/{fdset}"
    finally:
        # A QEMU that is gone holds nothing of ours any more.
        with contextlib.suppress(errors.MonitorLost):
            await undoing.whole(take_back(session, fdset))


async def _expect(session: Session, fdset: int, count: int) -> None:
    for found in await query(session):
        if found["fdset-id"] == fdset and len(found["fds"]) == count:
            return
    raise errors.MapsaveError(f"{session.address}: fdset {fdset} does not hold what was passed")


async def take_back(session: Session, fdset: int) -> None:
    """Remove the set and wait until QEMU has closed its duplicates too.

    The COMPLETED event comes before they are closed, so the set may stay listed for a moment.
    """
    try:
        await session.execute("remove-fd", {"fdset-id": fdset})
    except errors.CommandRefused:
        return  # it was never made, or is gone already
    delay = 0.001
    while fdset in {int(found["fdset-id"]) for found in await query(session)}:
        if delay > _GONE_WITHIN / 4:
            _log.warning("%s: QEMU still holds fdset %d open", session.address, fdset)
            return
        await asyncio.sleep(delay)
        delay *= 2
