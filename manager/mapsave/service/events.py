"""Events, sent to all listeners: a listener that does not keep up is disconnected."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
from collections.abc import Iterator, Mapping

from mapsave import errors, strict_json

MOST_LISTENERS = 10_000
_BEHIND = 256  # events that a listener may lag behind
_PIECE = 16 << 10  # bytes that are sent together; a larger event alone, one copy for all
# Listeners that are woken between two looks at everything else, and seconds for each of them until
# they are woken again: thousands get events together, in a small part of the processor's time.
_AT_ONCE = 50
_PAUSE = 0.0003


def written(number: int, kind: str, data: Mapping[str, object]) -> bytes:
    """Return an event as server-sent events are written."""
    head = f"id: {number}\nevent: {kind}\ndata: ".encode()
    return b"".join((head, strict_json.encoded(data), b"\n\n"))


class _Channel:
    """The last events of all operations, or of one, and those who wait for the next.

    ``end`` is the number of events that there ever were.
    """

    def __init__(self) -> None:
        self.events: collections.deque[bytes] = collections.deque(maxlen=_BEHIND)
        self.end = 0
        self.listeners = 0
        self.waiting: dict[asyncio.Future[None], None] = {}  # in the order in which they came
        self._is_waking = False

    def add(self, event: bytes) -> None:
        """Add an event: it costs the same however many listen, and nothing where none waits."""
        self.events.append(event)
        self.end += 1
        self._begin_waking()

    def _begin_waking(self) -> None:
        if self.waiting and not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_later(_PAUSE * len(self.waiting), self._wake)

    def _wake(self, left: int | None = None, end: int | None = None) -> None:
        """Wake some of those who wait, and the others once everything else had its turn.

        ``left`` are still to be woken, for the events before ``end``: at first all, for all. Those
        who wait again by then are not among them, and are woken for events that came since.
        """
        left = len(self.waiting) if left is None else left
        end = self.end if end is None else end
        for each in list(itertools.islice(self.waiting, min(_AT_ONCE, left))):
            self._wake_one(each)
        left -= _AT_ONCE
        if left > 0:
            asyncio.get_running_loop().call_later(_PAUSE, self._wake, left, end)
            return
        self._is_waking = False
        if self.end > end:
            self._begin_waking()

    async def change(self) -> None:
        """Return once there may be another event, or there will be no more."""
        changed = asyncio.get_running_loop().create_future()
        self.waiting[changed] = None
        try:
            await changed
        finally:
            self.waiting.pop(changed, None)

    def wake_all(self) -> None:
        """Wake all who wait."""
        for each in list(self.waiting):
            self._wake_one(each)

    def _wake_one(self, waiting: asyncio.Future[None]) -> None:
        del self.waiting[waiting]
        if not waiting.done():
            waiting.set_result(None)


class Listener:
    """One who listens: to everything, or to one operation."""

    def __init__(self, hub: Hub, channel: _Channel) -> None:
        self._hub = hub
        self._channel = channel
        self._position = channel.end

    async def next(self, timeout: float) -> bytes | None:
        """Return the next events as server-sent events are written.

        A comment comes after ``timeout`` seconds without one, so that a dead connection is found;
        None once there will be no more, or where it has missed some.
        """
        channel = self._channel
        try:
            async with asyncio.timeout(timeout):
                while self._position == channel.end and not self._hub.is_closed:
                    await channel.change()
        except TimeoutError:
            return b": nothing new\n\n"
        missing = channel.end - self._position
        if not 0 < missing <= len(channel.events):
            return None
        found = b""
        while self._position < channel.end:
            event = channel.events[self._position - channel.end]
            if found and len(found) + len(event) > _PIECE:
                break
            found += event
            self._position += 1
        return found


class Hub:
    """All listeners, and the number of the last event."""

    def __init__(self) -> None:
        self._channels: dict[str | None, _Channel] = {}
        self.number = 0
        self.is_closed = False

    def __len__(self) -> int:
        return sum(each.listeners for each in self._channels.values())

    @contextlib.contextmanager
    def listening(self, operation: str | None = None) -> Iterator[Listener]:
        """Listen from now on, to everything or to ``operation`` alone. Raises ServiceStopping."""
        if len(self) >= MOST_LISTENERS:
            raise errors.ServiceStopping(
                f"{MOST_LISTENERS} clients listen to events already, the maximum",
                hint="ask for the operation instead: GET /v1/operations/ID?wait=30",
            )
        channel = self._channels.setdefault(operation, _Channel())
        channel.listeners += 1
        try:
            yield Listener(self, channel)
        finally:
            channel.listeners -= 1
            if not channel.listeners:
                del self._channels[operation]

    def publish(self, kind: str, data: Mapping[str, object], operation: str | None = None) -> None:
        """Tell all listeners, and those of ``operation`` alone, that something happened."""
        self.number += 1
        channels = [self._channels[name] for name in {None, operation} if name in self._channels]
        if not channels:
            return
        event = written(self.number, kind, data)
        for channel in channels:
            channel.add(event)

    def close(self) -> None:
        """Tell all listeners that there will be no more."""
        self.is_closed = True
        for channel in self._channels.values():
            channel.wake_all()
