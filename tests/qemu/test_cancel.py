"""A save cancelled at any moment leaves the guest alive: QEMU 10.0 is frail at its start."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from manager.image import descriptors
from manager.migration import outgoing, parameters, progress
from manager.monitor import fdset, qmp
from tests.kit import patterns, qemu

if TYPE_CHECKING:
    from pathlib import Path

    from manager.monitor.session import Session

pytestmark = pytest.mark.qemu

OFFSET = 1 << 20
WANTED = {"direct-io": True, "multifd-channels": 8}
ROUNDS = 60
STEP = 0.0003  # seconds; the first pages are written after some milliseconds


@pytest.mark.parametrize("pattern", [patterns.empty, patterns.dense])
async def test_cancelled_at_any_moment(tmp_path: Path, pattern: patterns.Pattern) -> None:
    with qemu.running(ram=pattern) as guest:
        async with qmp.connected(str(guest.qmp)) as session:
            for number in range(ROUNDS):
                await _cancelled_after(session, tmp_path / "image", number * STEP)
            assert (await session.execute("query-status"))["status"] in ("prelaunch", "postmigrate")


async def _cancelled_after(session: Session, path: Path, seconds: float) -> None:
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
