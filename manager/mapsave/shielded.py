"""Waiting that cancellation must not tear apart."""

import asyncio
import contextvars
import dataclasses
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass
class _Decision:
    """Whether what comes of the work is decided."""

    is_made: bool = False


_decision: contextvars.ContextVar[_Decision | None] = contextvars.ContextVar("decision")


def decided() -> None:
    """Have ``until_decided`` drop every cancellation from now on."""
    if (decision := _decision.get(None)) is not None:
        decision.is_made = True


async def until_decided(work: Awaitable[T]) -> T:
    """Run ``work``; a cancellation reaches it until it calls ``decided``, and is dropped then.

    What is closed after a commit waits as well, and must not turn it into an interruption.
    """
    decision = _Decision()
    token = _decision.set(decision)
    try:
        task = asyncio.ensure_future(work)
    finally:
        _decision.reset(token)
    return await _finished(task, decision)


async def to_the_end(work: Awaitable[T]) -> T:
    """Run ``work`` to its end even where we are cancelled in the meantime; the cancellation is
    dropped.

    For what must not stop half-way and ends soon: the steps after a commit.
    """
    return await _finished(asyncio.ensure_future(work), None)


async def _finished(task: asyncio.Future[T], decision: _Decision | None) -> T:
    """Return what ``task`` returns; without a decision to wait for, cancellations are dropped."""
    current = asyncio.current_task()
    assert current is not None
    dropped = 0
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            if decision is None:
                current.uncancel()
                continue
            dropped += 1
            if not decision.is_made:
                task.cancel()
        except BaseException:
            break  # the task's own; raised below
    result = task.result()
    for _ in range(dropped):
        current.uncancel()
    return result


async def whole(work: Awaitable[T]) -> T:
    """Run ``work``, which puts something back, to its end; only then be cancelled.

    A signal or a time limit cancels wherever the operation happens to wait, and that may be in the
    midst of undoing. What ``work`` raises comes before the cancellation.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run a blocking function (an fsync may take long) off the event loop.

    Cancelled, it still waits for the function, which uses descriptors that the caller closes next.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
