"""Have QEMU write the states of a guest's devices alone, into a file; the guest stays as it is."""

from collections.abc import Callable

from mapsave import errors
from mapsave.monitor import fdset
from mapsave.monitor.session import Session


async def written(
    session: Session, fd: int, number: int, on_dropped: Callable[[str], errors.LabelRefused]
) -> bool:
    """Return whether QEMU has written them to ``fd``, which is passed as the set ``number``.

    QEMU truncates the file to nothing. Raises MonitorError, but for what QEMU refuses.
    """
    try:
        async with fdset.handed_over(session, (fd,), number, on_dropped) as path:
            # With `live` it would hand the disks over, as to another host.
            arguments = {"filename": path, "live": False}
            await session.execute("xen-save-devices-state", arguments)
    except (errors.CommandRefused, errors.LabelRefused):
        return False
    return True
