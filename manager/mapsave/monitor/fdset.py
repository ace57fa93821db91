"""Hand the pair over to QEMU, and take it back on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from mapsave import errors, shielded

if TYPE_CHECKING:
    from mapsave.monitor.session import Session

# Far from the ids that QEMU and libvirt give (from 0 upwards), so that sets never collide.
FIRST_ID = 1_000_000
OPAQUE = "mapsave"
# What QEMU says where the kernel took the descriptor from the message it arrived in, which is how
# SELinux and AppArmor refuse one (monitor/fds.c).
DROPPED = "No file descriptor supplied via SCM_RIGHTS"
GONE_WITHIN = 10.0  # seconds


@dataclasses.dataclass(frozen=True)
class FdSet:
    """A set of QEMU's: its id, and what was said of each descriptor in it as it was added."""

    id: int
    opaques: tuple[str, ...] = ()

    def is_of(self, prefix: str) -> bool:
        """Return whether a descriptor in it was added with a text that begins so."""
        return any(opaque.startswith(prefix) for opaque in self.opaques)


async def query(session: Session) -> list[FdSet]:
    return [
        FdSet(int(found["fdset-id"]), tuple(str(fd.get("opaque", "")) for fd in found["fds"]))
        for found in await session.execute("query-fdsets")
    ]


def free_id(fdsets: Sequence[FdSet]) -> int:
    taken = {found.id for found in fdsets}
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
    descriptor that a security module took away, from QEMU's message. Raises Busy where another
    client has taken the id since it was chosen, CommandRefused, MonitorLost, KeptByQemu where QEMU
    does not let go at the end, or what ``on_dropped`` returns.
    """
    # Else the removal at the end would take away the descriptors of the client that made that set.
    if is_listed(await query(session), fdset):
        raise errors.Busy(
            f"{session.address}: another client has created fdset {fdset} in the meantime",
            hint="try again",
        )
    try:
        for number, fd in enumerate(descriptors):
            try:
                await session.pass_descriptor(fd, fdset, f"{OPAQUE}-{number}")
            except errors.CommandRefused as error:
                if error.desc == DROPPED:
                    raise on_dropped(error.desc) from None
                raise
        yield f"/dev/fdset/{fdset}"
    finally:
        # A QEMU that is gone holds nothing of ours any more.
        with contextlib.suppress(errors.MonitorLost):
            await shielded.whole(take_back(session, fdset))


async def check_passed(session: Session) -> None:
    """Raise NoDescriptors where QEMU gets none of two that anyone may have.

    A security module that refuses one of them (by its path, or its label) takes the other.
    """
    with contextlib.ExitStack() as stack:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        pipe, other = os.pipe2(os.O_CLOEXEC)
        for fd in (null, pipe, other):
            stack.callback(os.close, fd)
        for fd in (null, pipe):
            try:
                return await session.try_descriptor(fd)
            except errors.CommandRefused as error:
                if error.desc != DROPPED:
                    raise
    raise errors.NoDescriptors(
        f"{session.address}: descriptors that mapsave passes do not arrive at QEMU: a program "
        "such as socat is between them, or QEMU may open no more files",
        hint="give the guest a monitor of its own for mapsave (-qmp unix:PATH,server=on,wait=off), "
        "and mapsave that very socket",
    )


async def take_back(session: Session, fdset: int) -> None:
    """Remove the set and wait until QEMU has closed its duplicates too.

    A migration is said to have completed, or failed, before they are closed, so the set may stay
    listed for a moment. Raises KeptByQemu where it is still listed after ten seconds, in all of
    which QEMU answered.
    """
    # Refused where it was never made, or is gone already.
    with contextlib.suppress(errors.CommandRefused):
        await session.execute("remove-fd", {"fdset-id": fdset})
    delay, deadline = 0.001, time.monotonic() + GONE_WITHIN
    while is_listed(await query(session), fdset):
        if time.monotonic() > deadline:
            raise errors.KeptByQemu(
                f"{session.address}: QEMU still has descriptor set {fdset} open {GONE_WITHIN:g} "
                "s after its removal",
                fdset=fdset,
            )
        await asyncio.sleep(delay)
        delay = min(delay * 2, 0.1)


def is_listed(fdsets: Sequence[FdSet], fdset: int) -> bool:
    """Return whether QEMU still has the set ``fdset``, be it emptied."""
    return any(found.id == fdset for found in fdsets)


def kept(fdsets: Sequence[FdSet]) -> list[int]:
    """Return the ids of sets of a mapsave that were taken back, and that QEMU still holds."""
    return [found.id for found in fdsets if found.id >= FIRST_ID and not found.opaques]
