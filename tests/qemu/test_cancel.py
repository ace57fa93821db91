"""A save cancelled at any moment leaves the guest alive: QEMU 10.0 is frail at its start."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from manager.image import descriptors
from manager.migration import guest_state, outgoing, parameters, progress
from manager.monitor import fdset, qmp
from tests.kit import patterns, qemu

if TYPE_CHECKING:
    from pathlib import Path

    from manager.monitor.session import Session

pytestmark = pytest.mark.qemu

OFFSET = 1 << 20
WANTED = {"direct-io": True, "multifd-channels": 8}
MEMORY = "512M"  # takes a quarter of a second and more: none of the saves comes to its end
ROUNDS = 50
STEP = 0.0004  # seconds; the first pages are written after some milliseconds


async def test_cancelled_at_any_moment_of_the_beginning(tmp_path: Path) -> None:
    with qemu.running(ram=patterns.dense, memory=MEMORY) as guest:
        async with qmp.connected(str(guest.qmp)) as session:
            for number in range(ROUNDS):
                ended_as = await _cancelled_after(session, tmp_path / "image", number * STEP)
                assert ended_as in ("cancelled", "none")  # none: told before QEMU was
                assert await guest_state.run_state(session) == "prelaunch"


async def _cancelled_after(session: Session, path: Path, seconds: float) -> str:
    """Begin a save, cancel it after ``seconds``, and return what became of it."""
    found = await parameters.query(session)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with descriptors.paired(fd, os.O_WRONLY, direct_io=True) as pair:
            fds = (pair.first, pair.second)
            async with (
                fdset.handed_over(session, fds, fdset.FIRST_ID, AssertionError) as target,
                parameters.configured(session, found, WANTED),
            ):
                work = outgoing.save(session, target, OFFSET, progress.Phases(), live=False)
                saving = asyncio.ensure_future(work)
                await asyncio.sleep(seconds)
                saving.cancel()
                await asyncio.wait({saving})
    finally:
        os.close(fd)
    return (await outgoing.query(session)).status
