"""Modes of QEMU in which a save or a load kills it, hangs, or cannot be begun: asked beforehand."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from manager import errors

if TYPE_CHECKING:
    from manager.monitor.session import Session

# What QEMU says to nearly every command until its machine is made (qapi/qmp-dispatch.c).
_TOO_EARLY = "only after machine initialization"


@dataclasses.dataclass(frozen=True)
class Mode:
    """``replay``: whether QEMU records its execution or plays a record: none, record or play."""

    replay: str


async def query(session: Session) -> Mode:
    """Ask QEMU in which modes it is."""
    try:
        replay = str((await session.execute("query-replay"))["mode"])
    except errors.CommandRefused:
        replay = "none"  # built without TCG
    return Mode(replay)


def check(mode: Mode) -> str:
    """Return the check's line. Raises UnsafeMode where a save would make QEMU abort."""
    if mode.replay != "none":
        does = {"record": "records its execution", "play": "replays a recorded execution"}
        raise errors.UnsafeMode(
            f"QEMU {does.get(mode.replay, mode.replay)} (-icount rr={mode.replay}): a save would "
            "make it abort",
            hint="start the guest without rr= to save it; snapshots of a record are QEMU's own "
            "(savevm, rrsnapshot=)",
            replay=mode.replay,
        )
    return "no record or replay"


async def check_made(session: Session) -> None:
    """Raise WrongRunState where QEMU has not made its machine yet (``-preconfig``)."""
    try:
        await session.execute("query-migrate")
    except errors.CommandRefused as error:
        if _TOO_EARLY not in error.desc:
            raise
        raise errors.WrongRunState(
            f"{session.address}: QEMU waits to be configured (-preconfig) and has no machine yet",
            hint="finish its configuration ('x-exit-preconfig' at its monitor) first",
        ) from None
