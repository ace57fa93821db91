"""The one thread that writes the history: what is queued goes into few transactions."""

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from mapsave.history import schema

T = TypeVar("T")

_BATCH = 500  # writes in one transaction


class _Write(NamedTuple):
    work: Callable[[sqlite3.Connection], object]
    done: Future[Any]


class Writer:
    """A queue to the thread that owns the writing connection; ``running`` makes one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()

    def put(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue ``work``; the future has what it returns once that is on stable storage.

        Writes are done in the order in which they were put. ``work`` may be called twice, since a
        write that fails must not cost the others of its transaction theirs. A future that is
        cancelled in time is never written.
        """
        done: Future[T] = Future()
        self._queue.put(_Write(work, done))
        return done

    def run(self) -> None:
        """Write what comes, until the end is asked for, and all that came before that."""
        while self._write_next():
            pass

    def end(self) -> None:
        """Ask for the end; nothing may be put any more."""
        self._queue.put(None)

    def _write_next(self) -> bool:
        """Write what comes next, and keep nothing of it; return whether more may come."""
        found = self._next()
        writes = [each for each in found if each is not None]
        self._write([each for each in writes if each.done.set_running_or_notify_cancel()])
        return None not in found

    def _next(self) -> list[_Write | None]:
        found = [self._queue.get()]
        with contextlib.suppress(queue.Empty):
            while len(found) < _BATCH:
                found.append(self._queue.get_nowait())
        return found

    def _write(self, writes: Sequence[_Write]) -> None:
        if not writes:
            return
        try:
            with schema.transaction(self._connection):
                results = [write.work(self._connection) for write in writes]
        except Exception as error:
            if len(writes) == 1:
                writes[0].done.set_exception(error)
                return
            for write in writes:
                self._write([write])
            return
        for write, result in zip(writes, results, strict=True):
            write.done.set_result(result)


@contextlib.contextmanager
def running(connection: sqlite3.Connection) -> Iterator[Writer]:
    """Start the thread; at the end wait until it has written everything. Blocks in the meantime."""
    writer = Writer(connection)
    thread = threading.Thread(target=writer.run, name="history-writer")
    thread.start()
    try:
        yield writer
    finally:
        writer.end()
        thread.join()
