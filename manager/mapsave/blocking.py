"""Calls that block, each in a thread of its own, and with a limit.

Storage that hangs holds a thread for as long as it likes. Threads of a pool would all be held after
a few such calls, and both asyncio and Python wait for them at the end: these are daemons, of which
any number may be left alone.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from mapsave import units

if TYPE_CHECKING:
    from concurrent import futures

    _Calls = list[futures.Future[Any]]

T = TypeVar("T")

# Seconds that a file system gets for a few names or a few kilobytes, be its disk ever so busy.
ANSWER = 60.0
_TURNS = 10  # in which a limit is waited for

_left: contextvars.ContextVar[tuple[_Calls, ...]] = contextvars.ContextVar("left", default=())


class Hangs(OSError):
    """A call has not ended in time; it goes on, and may yet do what it was to do."""


class NoThread(OSError):
    """No thread can be had now: the limit on them is reached."""


def begin(function: Callable[..., T], *arguments: object) -> futures.Future[T]:
    """Begin ``function`` in a thread, or do it at once if none can be had; return its outcome."""
    outcome, work = _prepared(function, *arguments)
    with contextlib.suppress(NoThread):
        _start(work)
        return outcome
    work()  # what undoes has to be done all the same
    return outcome


def begin_apart(function: Callable[..., T], *arguments: object) -> futures.Future[T]:
    """Do as ``begin`` with what would hold its caller for long. Raises NoThread."""
    outcome, work = _prepared(function, *arguments)
    _start(work)
    return outcome


def _start(work: Callable[[], None]) -> None:
    try:
        threading.Thread(target=work, name="blocking", daemon=True).start()
    except RuntimeError:
        raise NoThread(errno.EAGAIN, "no thread can be had now for what takes long") from None


def _prepared(
    function: Callable[..., T], *arguments: object
) -> tuple[futures.Future[T], Callable[[], None]]:
    """Return the outcome of ``function``, and what does it."""
    from concurrent import futures  # which commands that wait for nothing do without

    outcome: futures.Future[T] = futures.Future()
    outcome.set_running_or_notify_cancel()  # from now on it cannot be cancelled
    context = contextvars.copy_context()

    def work() -> None:
        try:
            result = context.run(function, *arguments)
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    return outcome, work


async def call(function: Callable[..., T], *arguments: object) -> T:
    """Return what ``function`` returns, off the event loop. Cancelled, it leaves it alone."""
    import asyncio  # as well

    outcome = begin(function, *arguments)
    try:
        return await asyncio.wrap_future(outcome)
    finally:
        note(outcome)


async def within(seconds: float, function: Callable[..., T], *arguments: object) -> T:
    """Do as ``call``. Raises Hangs after ``seconds``.

    Those in which this process was stopped itself (SIGSTOP, a host that stands still) hardly count.
    """
    import asyncio

    outcome = begin(function, *arguments)
    waited = asyncio.wrap_future(outcome)
    try:
        for _ in range(_TURNS):
            await asyncio.wait((waited,), timeout=seconds / _TURNS)
            if waited.done():
                return waited.result()
        raise hangs(seconds)
    finally:
        waited.cancel()
        note(outcome)


@contextlib.asynccontextmanager
async def limited(seconds: float) -> AsyncIterator[None]:
    """Leave what is called within alone after ``seconds``. Raises Hangs then."""
    import asyncio

    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise hangs(seconds) from None


def joined(seconds: float, function: Callable[..., T], *arguments: object) -> T:
    """Do as ``within`` in a thread that may wait itself."""
    outcome = begin(function, *arguments)
    try:
        return outcome.result(seconds)
    except TimeoutError:
        if outcome.done():
            return outcome.result()  # it was the call's own
        raise hangs(seconds) from None
    finally:
        note(outcome)


@contextlib.contextmanager
def noted() -> Iterator[_Calls]:
    """Yield the list of the calls that are left alone within, by this task or those it begins."""
    calls: _Calls = []
    token = _left.set((*_left.get(), calls))
    try:
        yield calls
    finally:
        _left.reset(token)


def note(outcome: futures.Future[T]) -> None:
    """Note a call that is left alone, if it has not ended."""
    if not outcome.done():
        for calls in _left.get():
            calls.append(outcome)


def hangs(seconds: float) -> Hangs:
    """Return the error for a call that has not ended in ``seconds``."""
    return Hangs(
        errno.ETIMEDOUT, f"no answer within {units.format_duration(seconds)}: its storage hangs"
    )
