"""Ask several things at once: where one fails the others are cancelled, and its error is raised."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import TypeVar

T = TypeVar("T")


@contextlib.asynccontextmanager
async def group() -> AsyncIterator[asyncio.TaskGroup]:
    """Yield a group of tasks, all of which have ended at the end.

    Raises the first error of a task itself, not a group of errors.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


def shared(work: Coroutine[object, object, T]) -> asyncio.Future[T]:
    """Return the task of ``work``, of which asyncio does not log that no one saw it fail.

    Several may wait for it, shielded; all of them may be cancelled.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def all_of(works: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """Return what each of ``works`` returns, in their order. Raises as ``group`` does."""
    async with group() as tasks:
        begun = [tasks.create_task(work) for work in works]
    return [task.result() for task in begun]
