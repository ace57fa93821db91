"""Run what moves an image, in a thread that undoes what it did where it is stopped."""

import asyncio
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

from mapsave import errors, shielded
from mapsave.migration.progress import Phases
from mapsave.operations import digesting
from mapsave.operations.digesting import Watch

T = TypeVar("T")

# Seconds that undoing gets, of the five in which a command ends.
_UNDO = 3.0
# Seconds that the other end of a pipe gets for its next byte: it may ask for a passphrase first.
PEER = 3600.0


async def to_its_end(work: Callable[[Watch], T], phases: Phases, left: str) -> T:
    """Return what ``work`` returns, as ``digesting.watched`` does.

    Cancelled, it waits until ``work`` has undone what it did; what is done by then is returned all
    the same. Raises Interrupted, with what is ``left``, where that takes too long.
    """
    outcome: futures.Future[T] = futures.Future()

    def whole(watch: Watch) -> None:
        try:
            result = work(watch)
        except BaseException as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    try:
        await digesting.watched(whole, phases)
    except asyncio.CancelledError:
        ended = asyncio.wrap_future(outcome)
        ended.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({ended}, timeout=_UNDO)
        if not ended.done():
            raise errors.Interrupted(
                f"interrupted, but storage does not answer; what may be left: {left}",
                hint="'mapsave recover' removes a partial image",
            ) from None
        if ended.exception() is not None:
            raise
        shielded.drop_cancellation()
        return ended.result()
    return outcome.result()
