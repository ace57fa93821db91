"""Drive one waiting QEMU through a restore: ``migrate-incoming`` and what follows."""

from mapsave import errors
from mapsave.migration import outgoing
from mapsave.migration.stall import Watch
from mapsave.migration.status import OVER, Status
from mapsave.monitor.session import Session

# Seconds; the watch over the load is what limits it.
_STALLS_BEFORE = 30 * 86400.0


async def restore(session: Session, path: str, offset: int, watch: Watch) -> None:
    """Load from ``path`` (a file or ``/dev/fdset/N``) at byte ``offset``; return when it is in.

    QEMU loads in its main loop and answers nothing until RAM is in, so this waits for its events.

    Raises CommandRefused where QEMU refuses to start: the destination is then of no further use
    (a second try is "Illegal migration incoming state"). RestoreFailed, RestoreStalled,
    MonitorLost.
    """
    await watch.until(_load(session, path, offset, watch))


async def _load(session: Session, path: str, offset: int, watch: Watch) -> None:
    uri = f"file:{path},offset={offset:#x}"
    with session.events("MIGRATION") as events:
        await session.execute(
            "migrate-incoming", {"uri": uri, "exit-on-error": False}, timeout=_STALLS_BEFORE
        )
        last: str = Status.NONE
        while (now := await outgoing.query(session, timeout=_STALLS_BEFORE)).status not in OVER:
            if now.status != last:
                watch.progressed()
                last = now.status
            await events.next(timeout=1.0)
    if now.status == Status.FAILED:
        desc = now.error or "no reason given"
        raise errors.RestoreFailed(
            f"{session.address}: QEMU could not load the image: {desc}", qemu_error=desc
        )
