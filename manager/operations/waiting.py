"""Waiting that cancellation must not tear apart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run a blocking function (an fsync may take long) off the event loop.

    Cancelled, it still waits for the function, which uses descriptors that the caller closes next.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end even where we are cancelled meanwhile; the cancellation is dropped.

    For what must not stop half-way and ends soon: the steps behind a commit.
    """
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            current = asyncio.current_task()
            assert current is not None
            current.uncancel()
        except BaseException:
            break  # the task's own; raised below
    return task.result()
