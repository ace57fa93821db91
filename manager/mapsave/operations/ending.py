"""End a guest whose image is committed."""

import asyncio
import logging

from mapsave import errors
from mapsave.monitor import process
from mapsave.monitor.session import Session

_log = logging.getLogger(__name__)

QUIT_TIMEOUT = 60.0
# A process that was killed closes its monitor before it is gone: seconds before on a busy host.
LOST_TIMEOUT = 10.0
KILL_TIMEOUT = 10.0


async def end_guest(session: Session) -> bool:
    """End QEMU, and wait until its process is gone (its disks are free then).

    One that is gone already is what was wanted; for one that stays this logs why, and is False.
    """
    pid = session.pid
    try:
        await session.end(QUIT_TIMEOUT)
    except errors.MonitorLost:
        pass
    except errors.MonitorError as error:
        _log.warning(
            "%s: the image is committed, but QEMU did not quit: %s", session.address, error
        )
        return False
    if pid is not None and not await ended(pid, QUIT_TIMEOUT):
        _log.warning("%s: QEMU (pid %d) has not exited yet", session.address, pid)
        return False
    return True


async def is_lost(pid: int | None) -> bool:
    """Return whether a QEMU has exited whose monitor was lost; False where it is not in sight."""
    return pid is not None and await ended(pid, LOST_TIMEOUT)


async def ended(pid: int, timeout: float) -> bool:
    """Wait until the process is gone; False after ``timeout`` seconds."""
    started = process.start_time(pid)
    if started is None:
        return True
    try:
        async with asyncio.timeout(timeout):
            await process.ended(pid, started)
            return True
    except TimeoutError:
        return False
