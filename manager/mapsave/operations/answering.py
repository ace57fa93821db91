"""Storage that does not answer: asked before the event loop would wait for it, and reported."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, TypeVar

from mapsave import blocking, errors, shielded
from mapsave.image import descriptors, store

T = TypeVar("T")

_log = logging.getLogger(__name__)

# The calls that hang, by their directories: who tries again and again must not add to them.
_hung: dict[str, list[futures.Future[Any]]] = {}


async def within(
    directory: str | os.PathLike[str], function: Callable[..., T], *arguments: object
) -> T:
    """Return what ``function`` returns, which is about that directory. Raises BadDirectory."""
    name = os.fspath(directory)
    with reported(name), blocking.noted() as left:
        try:
            async with blocking.limited(blocking.ANSWER):
                hung = map(asyncio.wrap_future, _hanging(name))
                await asyncio.gather(*hung, return_exceptions=True)
                return await blocking.call(function, *arguments)
        finally:
            if left:
                _hung.setdefault(name, []).extend(left)


def _hanging(name: str) -> list[futures.Future[Any]]:
    """Return the calls on that directory that still hang; those that have ended are forgotten."""
    hung = [outcome for outcome in _hung.pop(name, ()) if not outcome.done()]
    if hung:
        _hung[name] = hung
    return hung


@contextlib.contextmanager
def reported(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Raise BadDirectory for a call on that directory which has not ended in time."""
    try:
        yield
    except blocking.Hangs as error:
        raise errors.BadDirectory(
            f"the file system of {os.fspath(directory)!r} gives {error.strerror}",
            hint="check its disk or server (dmesg, findmnt), or choose another directory",
        ) from None


async def check(directory: str | os.PathLike[str], *, writable: bool = False) -> None:
    """Raise BadDirectory unless the directory answers, if ``writable`` to a write as well.

    What else may be wrong with it is left to the caller.
    """
    await within(directory, _look, directory, writable)


async def noted(function: Callable[..., object], *arguments: object) -> None:
    """Do what only helps later; that it could not be done in time is logged."""
    try:
        await shielded.in_time(function, *arguments)
    except blocking.Hangs as error:
        _log.warning("%s in the state directory: %s", function.__name__, error.strerror)


def _look(directory: str | os.PathLike[str], writable: bool) -> None:
    with contextlib.suppress(errors.MapsaveError, OSError), store.directory(directory) as held:
        os.fstatvfs(held.fd)
        if writable:
            with descriptors.unnamed(held.fd):
                pass
