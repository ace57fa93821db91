"""Drive one waiting QEMU through a restore: ``migrate-incoming`` and what follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manager import errors

if TYPE_CHECKING:
    from manager.monitor.session import Events, Session

_OVER = frozenset(("completed", "failed"))


async def restore(session: Session, path: str, offset: int) -> None:
    """Load from ``path`` (a file or ``/dev/fdset/N``) at byte ``offset``; return when it is in.

    QEMU loads in its main loop: until RAM is in, it answers nothing, so this waits for its events
    and asks only afterwards.

    Raises CommandRefused where QEMU refuses to start: the destination is then of no further use
    (a second try is "Illegal migration incoming state"). RestoreFailed, MonitorLost.
    """
    uri = f"file:{path},offset={offset:#x}"
    with session.events("MIGRATION") as events:
        await session.execute(
            "migrate-incoming", {"uri": uri, "exit-on-error": False}, timeout=None
        )
        await _follow(session, events)


async def _follow(session: Session, events: Events) -> None:
    while True:
        reply: dict[str, Any] = await session.execute("query-migrate", timeout=None)
        status = reply.get("status")
        if status in _OVER:
            break
        await events.next(timeout=1.0)
    if status == "failed":
        desc = reply.get("error-desc") or "no reason given"
        raise errors.RestoreFailed(
            f"{session.address}: QEMU could not load the image: {desc}", qemu_error=desc
        )
