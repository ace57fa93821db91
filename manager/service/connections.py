"""Connections that hold the service up are closed: no request, or an answer that is not read."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_IDLE = 30.0  # seconds to send the head of a request, or to read what was answered
_SERVING = 120.0  # seconds that a request may take; what takes longer is an operation
_EVERY = 5.0


class Connections:
    """When each connection was last of use. A connection is a protocol of aiohttp's server."""

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}
        self._serving: dict[Any, float | None] = {}

    @contextlib.contextmanager
    def serving(self, connection: Any, *, endless: bool) -> Iterator[None]:
        """Note that a request is being served; an ``endless`` one may take as long as it likes."""
        self._serving[connection] = None if endless else time.monotonic()
        try:
            yield
        finally:
            self._serving.pop(connection, None)
            self._since[connection] = time.monotonic()

    def overdue(self, connections: Iterable[Any], now: float) -> list[Any]:
        """Return those of the open ``connections`` that have to go; forget those that are gone."""
        found = []
        alive = set(connections)
        self._since = {each: self._since.get(each, now) for each in alive}
        for each in alive:
            if each not in self._serving:
                if now - self._since[each] > _IDLE:
                    found.append(each)
            elif (begun := self._serving[each]) is not None and now - begun > _SERVING:
                found.append(each)
        return found

    async def sweep(self, server: Any) -> None:
        """Close overdue connections of ``server``, for ever."""
        while True:
            await asyncio.sleep(_EVERY)
            for each in self.overdue(server.connections, time.monotonic()):
                each.force_close()
