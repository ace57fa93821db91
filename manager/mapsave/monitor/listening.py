"""Waiting on a monitor that may be lost in the meantime, the same for every transport."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def next_unless_lost(
    arrival: Awaitable[T],
    lost: asyncio.Event,
    error: Callable[[], Exception],
    timeout: float | None,
) -> T | None:
    """Return what arrives; None after ``timeout`` seconds. Raises ``error()`` once ``lost`` is set.

    What has arrived already comes before the loss.
    """
    arrived = asyncio.ensure_future(arrival)
    ended = asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait((ended, arrived), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if arrived.done():
            return arrived.result()
        if ended.done():
            raise error()
        return None
    finally:
        ended.cancel()
        arrived.cancel()


async def is_set_within(event: asyncio.Event, timeout: float) -> bool:
    """Wait until ``event`` is set; False after ``timeout`` seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
    return event.is_set()
