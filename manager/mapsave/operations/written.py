"""See that the pages which QEMU says it has written are in the image: once, before the commit.

QEMU does not notice a short write of a channel (``image/holes.py``). Holes are looked for
everywhere; what only the guest's RAM can show is compared while the guest is paused. Where the
file system does not report holes, or pages were written more than once, every page is compared.
"""

import dataclasses

from mapsave import blocking, errors, together
from mapsave.image.mapped_ram import Stream
from mapsave.image.validation import Contents
from mapsave.migration import guest_state
from mapsave.migration.run_states import RunState
from mapsave.monitor import ram_blocks
from mapsave.monitor.session import Session
from mapsave.operations.read_back import How, Ram, ReadBack, Written

__all__ = ["How", "Ram", "Written", "check", "check_holes", "ram"]

# Of an image in whose pages QEMU had no part, before its holes are looked at.
NOTHING_MISSING = Written(holes=True, compared=0, not_compared=0, reason=None)
_RUNS_AGAIN = "the guest was resumed first"


async def check(
    fd: int, contents: Contents, how: How, session: Session | None, pid: int | None
) -> Written:
    """Look for pages that are missing in the image ``fd``; ``session`` is of its paused guest.

    Without ``session`` or ``pid`` the guest is gone or runs, and only the file is looked at.

    Raises PagesMissing, TruncatedImage, OSError, MonitorError.
    """
    memory, reason = None, _RUNS_AGAIN if session is None else "QEMU's process cannot be seen"
    if session is not None and pid is not None:
        memory, reason = await ram(session, pid, contents.stream)
    look = ReadBack(fd, contents, how, memory, reason)
    try:
        return await blocking.call(look.run)
    except errors.PagesMissing:
        # A guest that another process has resumed in the meantime differs from its image, and
        # rightly.
        if session is None or not look.is_by_ram or await _is_paused(session):
            raise
    return await blocking.call(ReadBack(fd, contents, how, None, _RUNS_AGAIN).run)


async def _is_paused(session: Session) -> bool:
    """Return whether the guest's RAM is as QEMU has saved it; where QEMU is gone, it was."""
    try:
        return await guest_state.run_state(session) == RunState.POSTMIGRATE
    except errors.MonitorError:
        return True


async def ram(session: Session, pid: int, stream: Stream) -> tuple[Ram | None, str]:
    """Return the RAM of a paused guest; None where it is out of reach, and why."""
    try:
        async with together.group() as tasks:
            is_paused = tasks.create_task(_is_paused(session))
            blocks = tasks.create_task(ram_blocks.query(session))
    except errors.MonitorError as error:
        return None, error.message
    if not is_paused.result():
        return None, _RUNS_AGAIN
    found = blocks.result()
    for block in stream.blocks:
        there = found.get(block.name)
        if there is None or there.address is None or there.used < block.used_length:
            return None, f"QEMU does not report where RAM block {block.name!r} is"
    return Ram(pid, found), ""


def check_holes(fd: int, contents: Contents, how: How, before: Written) -> Written:
    """Look for holes once more, the data being on stable storage; ``before`` has the rest."""
    found = ReadBack(fd, contents, how, None, _RUNS_AGAIN)
    is_known = found.check_holes()
    return dataclasses.replace(
        before,
        holes=is_known,
        not_compared=before.not_compared + found.unknown,
        reason=before.reason or (_RUNS_AGAIN if found.unknown else None),
    )
