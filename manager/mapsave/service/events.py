"""Events, sent to all listeners: a listener that does not keep up is disconnected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping

from mapsave import errors, strict_json

MOST_LISTENERS = 10_000
_BEHIND = 256  # events that a listener may lag behind


class Listener:
    """One who listens: to everything, or to one operation."""

    def __init__(self, operation: str | None) -> None:
        self.operation = operation
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(_BEHIND)
        self.dropped = False

    async def next(self, timeout: float) -> bytes | None:
        """Return the next event as server-sent events write it.

        A comment comes after ``timeout`` seconds without one, so that a dead connection is found;
        None once there will be no more.
        """
        if self.dropped:
            return None
        try:
            async with asyncio.timeout(timeout):
                return await self._queue.get()
        except TimeoutError:
            return b": nothing new\n\n"

    def offer(self, event: bytes | None) -> None:
        """Put an event into the queue; one that is full belongs to a listener that is too slow."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped = True
            while not self._queue.empty():
                self._queue.get_nowait()
            self._queue.put_nowait(None)


class Hub:
    """All listeners, and the number of the last event."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._number = 0

    def __len__(self) -> int:
        return len(self._listeners)

    @contextlib.contextmanager
    def listening(self, operation: str | None = None) -> Iterator[Listener]:
        """Listen from now on, to everything or to ``operation`` alone. Raises ServiceStopping."""
        if len(self._listeners) >= MOST_LISTENERS:
            raise errors.ServiceStopping(
                f"{MOST_LISTENERS} clients listen to events already, the maximum",
                hint="ask for the operation instead: GET /v1/operations/ID?wait=30",
            )
        listener = Listener(operation)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def publish(self, kind: str, data: Mapping[str, object], operation: str | None = None) -> None:
        """Tell all listeners, and those of ``operation`` alone, that something happened."""
        self._number += 1
        if not self._listeners:
            return
        text = strict_json.dumps(data, default=str)
        event = f"id: {self._number}\nevent: {kind}\ndata: {text}\n\n".encode()
        for listener in self._listeners:
            if listener.operation in (None, operation):
                listener.offer(event)

    def close(self) -> None:
        """Tell all listeners that there will be no more."""
        for listener in self._listeners:
            listener.offer(None)
