"""Waiting that cancellation must not tear apart."""

import asyncio
import contextlib
import contextvars
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent import futures
from typing import TypeVar

from mapsave import blocking

T = TypeVar("T")


def drop_cancellation() -> None:
    """Have the cancellation that this task has caught not count: it has come too late."""
    current = asyncio.current_task()
    assert current is not None
    current.uncancel()


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


async def in_time(function: Callable[..., T], *arguments: object) -> T:
    """Run a blocking function off the event loop, to its end. Raises Hangs after a minute."""
    return await whole(blocking.within(blocking.ANSWER, function, *arguments))


@contextlib.asynccontextmanager
async def entered(
    context: contextlib.AbstractContextManager[T],
    on_hang: Callable[[T], object] = lambda _: None,
    *,
    seconds: float | None = None,
    is_used: bool = True,
) -> AsyncIterator[T]:
    """Enter and leave ``context``, which blocks, off the event loop.

    Calls that were left alone in the meantime may use what it closes, so they end first, unless it
    is not ``is_used`` by them. Where that, or
    the end itself, takes longer than ``seconds`` (``blocking.ANSWER``), ``on_hang`` is called with
    what was entered, and the end comes when it comes; at once where those calls had their time, and
    no cancellation cut it short. Raises Hangs where it is not entered in time.
    """
    limit = blocking.ANSWER if seconds is None else seconds
    opening = blocking.begin(context.__enter__)
    try:
        value = await _answer(opening, limit)
    except BaseException:
        blocking.note(blocking.begin(_leave_late, opening, context))
        raise
    caught: BaseException | None = None
    with blocking.noted() as calls:
        try:
            yield value
        except BaseException as error:
            caught = error
    if not is_used:
        calls.clear()
    if not isinstance(caught, asyncio.CancelledError) and not all(each.done() for each in calls):
        limit = 0.0
    try:
        is_handled = await whole(_answer(blocking.begin(_leave, context, calls, caught), limit))
    except blocking.Hangs:
        on_hang(value)
        is_handled = False
    if caught is not None and not is_handled:
        raise caught


async def _answer(outcome: futures.Future[T], seconds: float) -> T:
    try:
        async with blocking.limited(seconds):
            return await asyncio.wrap_future(outcome)
    finally:
        blocking.note(outcome)  # it uses what contexts around this one close


def _leave(
    context: contextlib.AbstractContextManager[object],
    calls: Sequence[futures.Future[object]],
    caught: BaseException | None,
) -> bool:
    futures.wait(calls)
    kind, traceback = (None, None) if caught is None else (type(caught), caught.__traceback__)
    return bool(context.__exit__(kind, caught, traceback))


def _leave_late(opening: futures.Future[T], context: contextlib.AbstractContextManager[T]) -> None:
    """Leave a context that the caller did not wait for."""
    if opening.exception() is None:
        context.__exit__(None, None, None)
