"""Saves cancelled in their first moments: QEMU 10.0 is frail there, and is not cancelled at once.

What it dies of is a race inside QEMU, so this counts: cancelled at once it dies of one cancel in
ten, as ``outgoing.cancel`` does it of a few in a thousand.
"""

import asyncio
import os
from pathlib import Path

from mapsave import errors
from mapsave.image import descriptors
from mapsave.migration import guest_state, outgoing, parameters, progress
from mapsave.monitor import fdset, qmp
from mapsave.monitor.session import Session

from tests.kit import files, inject, qemu

OFFSET = 1 << 20
WANTED = {"direct-io": True, "multifd-channels": 8}
MEMORY = 256  # MiB
# Behind those that the first moments take, each write takes its time: no save comes to its end.
SLOW = inject.Rule("pwritev", "delay", 40_000, path="image", first=64 << 20, count=-1)
ROUNDS = 50
STEP = 0.0004  # seconds; the first pages are written after some milliseconds
DEATHS = 2


async def test_cancelled_at_any_moment_of_the_beginning(tmp_path: Path) -> None:
    ram = tmp_path / "ram"
    with ram.open("wb") as file:
        for _ in range(MEMORY):
            file.write(os.urandom(1 << 20))
    moments = [number * STEP for number in range(ROUNDS)]
    deaths = 0
    while moments:
        try:
            await _all_cancelled(ram, tmp_path / "image", moments)
        except errors.MonitorLost:
            deaths += 1
    assert deaths <= DEATHS


async def _all_cancelled(ram: Path, image: Path, moments: list[float]) -> None:
    """Cancel saves of one guest at the ``moments`` and take those off the list."""
    backend = f"memory-backend-file,id=pc.ram,size={MEMORY}M,mem-path={ram},share=off"
    arguments = ("-object", backend, "-machine", "memory-backend=pc.ram")
    slow = inject.environment(SLOW)
    with qemu.running(*arguments, memory=f"{MEMORY}M", env=slow) as guest:
        async with qmp.connected(str(guest.qmp)) as session:
            while moments:
                ended_as = await _cancelled_after(session, image, moments.pop())
                assert ended_as in ("cancelled", "none")  # none: told before QEMU was
                assert await guest_state.run_state(session) == "prelaunch"


async def _cancelled_after(session: Session, path: Path, seconds: float) -> str:
    """Begin a save, cancel it after ``seconds``, and return what became of it."""
    found = await parameters.query(session)
    with (
        files.opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd,
        descriptors.paired(fd, os.O_WRONLY, direct_io=True) as pair,
    ):
        fds = (pair.first, pair.second)
        async with (
            parameters.configured(session, found, WANTED),
            fdset.handed_over(session, fds, fdset.FIRST_ID, AssertionError) as target,
        ):
            work = outgoing.save(session, target, OFFSET, progress.Phases(), live=False)
            saving = asyncio.ensure_future(work)
            await asyncio.sleep(seconds)
            saving.cancel()
            await asyncio.wait({saving})
    return (await outgoing.query(session)).status
