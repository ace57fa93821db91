"""Turns at what the clones of one image change for a while: its ACL and its label.

Who puts back what was before must have found it as no one else has changed it, be it a clone of
this process or of another. So they take turns, by a lock of the state directory.
"""

import asyncio
import contextlib
import fcntl
import uuid as uuids
from collections.abc import AsyncIterator
from pathlib import Path

from mapsave import errors, units
from mapsave.operations import locks

# Seconds: several QEMUs may start one after another, each with a limit of its own.
LIMIT = 300.0
_PAUSE = 0.01  # seconds between two tries


@contextlib.asynccontextmanager
async def taken(state: Path, what: str, uuid: uuids.UUID) -> AsyncIterator[None]:
    """Change ``what`` of the image of that uuid when no one else does.

    Raises Busy where it has not come to that after ``LIMIT``, Refused, NotPermitted.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + LIMIT
    with locks.opened(state, f"{what} of image {uuid}", f"{what}:{uuid}") as fd:
        while not _lock(fd):
            if loop.time() > until:
                raise errors.Busy(
                    f"other clones have had the {what} of image {uuid} for themselves for "
                    f"{units.format_duration(LIMIT)}",
                    hint="see which mapsave process or QEMU hangs ('mapsave ps')",
                )
            await asyncio.sleep(_PAUSE)
        yield


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
