"""Accept connections: strangers, who have not shown a role, get few of them and little time.

A user of the host is known by the kernel's word as soon as the connection is there; a client over
TLS only once it has shown its certificate. Until then it may hold one of few places, for some
seconds. ``Connections`` sees to those that are let in but then do nothing.
"""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import socket
import time
from collections.abc import Callable, Coroutine

from aiohttp import web

from mapsave import errors
from mapsave.service import tls
from mapsave.service.peers import Role, Roles
from mapsave.service.tls import Tls

_log = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds until it is tried again to accept, where the host is out of something
_SHUTDOWN = 5.0  # seconds for a client to answer the end of TLS
_QUIET = 60.0  # seconds in which a reason to refuse clients is logged once


@dataclasses.dataclass(frozen=True)
class Limits:
    """What strangers get: seconds for a handshake, handshakes at once, in all and of one address.

    ``open`` is how many connections one user, or address, without a role may have at once.
    """

    handshake: float = 10.0
    handshakes: int = 128
    of_address: int = 32
    open: int = 16


USUAL = Limits()


class Acceptor:
    """Gives the connections of listening sockets to ``server``, the server of aiohttp."""

    def __init__(
        self, server: web.Server, roles: Callable[[], Roles], limits: Limits | None = None
    ) -> None:
        self._server = server
        self._roles = roles
        self._limits = limits or USUAL
        self._places = asyncio.Semaphore(self._limits.handshakes)
        self._shaking: collections.Counter[str] = collections.Counter()
        self._strangers: dict[asyncio.BaseProtocol, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: dict[str, float] = {}

    def serve(self, listener: socket.socket, secured: Tls | None = None) -> None:
        """Accept what connects to ``listener``, over TLS where it is ``secured``."""
        listener.setblocking(False)
        self._begin(self._accept(listener, secured))

    async def close(self) -> None:
        """Accept no more; connections that were let in stay."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name="accept")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("accepting connections: a bug in mapsave", exc_info=error)

    async def _accept(self, listener: socket.socket, secured: Tls | None) -> None:
        while True:
            if secured is None:
                self._begin(self._by_user(await self._next(listener)))
                continue
            # Where all places are taken, further clients wait in the kernel's queue.
            await self._places.acquire()
            try:
                sock = await self._next(listener)
            except asyncio.CancelledError:
                self._places.release()
                raise
            self._begin(self._by_certificate(sock, secured))

    async def _next(self, listener: socket.socket) -> socket.socket:
        """Return the next connection, however long the host is out of what it takes."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
                return sock
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._say(f"cannot accept connections: {error.strerror}")
                await asyncio.sleep(_PAUSE)

    async def _by_user(self, sock: socket.socket) -> None:
        """Let in a user of this host; one without a role not more often than the limit says."""
        try:
            peer = self._roles().of_socket(sock)
        except OSError:
            sock.close()
            return
        if peer.role is Role.NOTHING and not self._has_room(peer.name):
            self._refuse(sock, peer.name)
            return
        _, protocol = await asyncio.get_running_loop().connect_accepted_socket(self._server, sock)
        if peer.role is Role.NOTHING:
            self._strangers[protocol] = peer.name

    async def _by_certificate(self, sock: socket.socket, secured: Tls) -> None:
        """Let in a client whose handshake is good, and note it where it has no role."""
        address = _address(sock)
        self._shaking[address] += 1
        try:
            if self._shaking[address] > self._limits.of_address or not self._has_room(address):
                self._refuse(sock, address)
            else:
                await self._shake(sock, address, secured)
        except OSError as error:  # ssl.SSLError is one
            reason = getattr(error, "verify_message", None) or getattr(error, "reason", None)
            self._say(f"a client over TLS was refused: {reason or error}", address)
        finally:
            self._places.release()
            self._shaking[address] -= 1
            self._shaking += collections.Counter()  # drops those without any

    async def _shake(self, sock: socket.socket, address: str, secured: Tls) -> None:
        transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(
            self._server,
            sock,
            ssl=secured.context,
            ssl_handshake_timeout=self._limits.handshake,
            ssl_shutdown_timeout=_SHUTDOWN,
        )
        role = Role.NOTHING
        with contextlib.suppress(errors.RoleMissing):
            role = tls.peer(self._roles(), transport).role
        if role is Role.NOTHING:
            self._strangers[protocol] = address

    def _has_room(self, who: str) -> bool:
        alive = set(self._server.connections)
        self._strangers = {each: name for each, name in self._strangers.items() if each in alive}
        return list(self._strangers.values()).count(who) < self._limits.open

    def _refuse(self, sock: socket.socket, who: str) -> None:
        sock.close()
        self._say("refused a client without a role: too many connections", who)

    def _say(self, words: str, who: str | None = None) -> None:
        """Log why clients are refused: each reason at most once a minute, however often it is."""
        now = time.monotonic()
        if now - self._said.get(words, -_QUIET) < _QUIET:
            return
        self._said = {each: when for each, when in self._said.items() if now - when < _QUIET}
        self._said[words] = now
        _log.warning("%s%s", words, f" ({who})" if who else "")


def _address(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return "a disconnected client"
