"""Threads of their own for looking into images: a slow file system must cost saves none of theirs.

A save needs the threads of the event loop for its fsync and for the proof of its image; readers
must not take them all, least of all where the file system never answers.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent import futures
from typing import ParamSpec, Self, TypeVar

from mapsave import errors

P = ParamSpec("P")
T = TypeVar("T")


class Looking:
    """So many threads that do what blocks, and a queue of ``waiting`` requests before them.

    A context: at the end the threads go, but for one that hangs, which ends with the process.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._threads = threads
        self._room = threading.Semaphore(threads + waiting)
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        for number in range(self._threads):
            # A daemon: one that hangs in the file system must not keep the process from ending.
            name = f"looking-{number}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for _number in range(self._threads):
            self._queue.put(None)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``function`` returns, off the event loop.

        Cancelled, it does not wait for a function that has begun. Raises ServiceBusy where too many
        wait already, and what ``function`` raises.
        """
        if not self._room.acquire(blocking=False):
            raise errors.ServiceBusy(
                "too many requests are reading images already", hint="ask again in a moment"
            )
        done: futures.Future[T] = futures.Future()
        done.add_done_callback(lambda _: self._room.release())

        def work() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(function(*args, **kwargs))
            except BaseException as error:
                done.set_exception(error)

        self._queue.put(work)
        return await asyncio.wrap_future(done)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            del work  # with its result, which would be kept until there is other work
