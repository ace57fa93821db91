"""Wait for an event, for a while."""

import asyncio
import contextlib


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Return whether ``event`` is set, as soon as it is, or after so many seconds.

    Not by ``asyncio.wait_for``: until Python 3.12 that drops a cancellation that comes together
    with what it waits for, and a loop that waits again never ends.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
