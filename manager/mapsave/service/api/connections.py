"""Connections that hold the service up are closed: no request, or an answer that is not read."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from mapsave.service.tls import Tls

Connection = RequestHandler


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a client may take; all in seconds.

    ``idle`` to send the head of a request, or to read what was answered; ``body`` to send the body;
    ``serving`` for the whole of a request that is no endless one; ``reading`` to read an event. A
    listener without events gets a comment after ``beat``.
    """

    idle: float = 30.0
    body: float = 20.0
    serving: float = 120.0
    reading: float = 20.0
    beat: float = 15.0
    every: float = 5.0


USUAL = Patience()


class Connections:
    """When each connection was last of use. A connection is a protocol of aiohttp's server."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or USUAL
        self._since: dict[Connection, float] = {}
        self._serving: dict[Connection, float | None] = {}

    @contextlib.contextmanager
    def serving(self, connection: Connection, *, endless: bool) -> Iterator[None]:
        """Note that a request is being served; an ``endless`` one may take as long as it likes."""
        self._serving[connection] = None if endless else time.monotonic()
        try:
            yield
        finally:
            self._serving.pop(connection, None)
            self._since[connection] = time.monotonic()

    def retire(self, server: web.Server, secured: Tls | None) -> None:
        """Close the connections of ``server`` that were made before the files of TLS were renewed.

        One whose request is being served ends with its answer (``app.application``).
        """
        for each in list(server.connections):
            finite = self._serving.get(each) is not None
            if secured is not None and secured.is_outdated(each.transport) and not finite:
                _cut(each)

    def overdue(self, connections: Iterable[Connection], now: float) -> list[Connection]:
        """Return those of the open ``connections`` that have to go; forget those that are gone."""
        found = []
        alive = set(connections)
        self._since = {each: self._since.get(each, now) for each in alive}
        for each in alive:
            if each not in self._serving:
                if now - self._since[each] > self.patience.idle:
                    found.append(each)
            elif (begun := self._serving[each]) is not None and now - begun > self.patience.serving:
                found.append(each)
        return found

    async def sweep(self, server: web.Server) -> None:
        """Close overdue connections of ``server``, forever."""
        while True:
            await asyncio.sleep(self.patience.every)
            for each in self.overdue(server.connections, time.monotonic()):
                _cut(each)


def _cut(connection: Connection) -> None:
    transport = connection.transport
    connection.force_close()
    if transport is not None:
        transport.abort()  # closing alone waits until all that was answered is read
