"""A session over a QMP unix socket, by qemu.qmp.

Three traps of that library are handled here and nowhere else: its descriptor passing writes to the
socket beside its own message queue, needs asyncio's own event loop (uvloop hides the socket), and
with out-of-band execution, which it always enables, two ``add-fd`` under way at once lose a
descriptor: so one lock is held from sending the descriptor to the reply. It has no time limits.
"""

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import qemu.qmp
from qemu.qmp.error import QMPError
from qemu.qmp.qmp_client import GreetingError, NegotiationError

from mapsave import errors, guest_address, shielded, together, units, unix_socket
from mapsave.monitor import session as limits
from mapsave.monitor.listening import is_set_within, next_unless_lost
from mapsave.monitor.session import Event, Version

GREETING_TIMEOUT = 10.0
_TRIES = 4

# Its warnings are about connections that ended, which we report ourselves.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class _Events:
    """The queue of one listener, which also ends when the connection does."""

    def __init__(self, listener: qemu.qmp.EventListener, lost: asyncio.Event, address: str) -> None:
        self._listener = listener
        self._lost = lost
        self._address = address

    async def next(self, timeout: float | None = None) -> Event | None:
        if not self._listener.empty():
            return _event(await self._listener.get())
        arrival = self._listener.get()
        message = await next_unless_lost(arrival, self._lost, self._closed, timeout)
        return None if message is None else _event(message)

    def _closed(self) -> errors.MonitorLost:
        return errors.MonitorLost(f"{self._address}: QEMU closed the monitor")


def _event(message: Mapping[str, object]) -> Event:
    data = message.get("data")
    return Event(str(message["event"]), data if isinstance(data, dict) else {})


# As -qmp takes it: tcp:HOST:PORT,OPTIONS. Relative paths have been made absolute.
_HOST_AND_PORT = re.compile(r"(?:^|/)(?:tcp:|telnet:)?[^/]*:\d+(?:,[^/]*)?$")


class QmpSession:
    """A session on a connected QMP client. Make one with ``connected``."""

    def __init__(
        self, client: qemu.qmp.QMPClient, path: str, version: Version, pid: int | None
    ) -> None:
        self.address = guest_address.of_socket(path)
        self.version = version
        self.pid = pid
        self._client = client
        self._descriptor_lock = asyncio.Lock()
        self._lost = asyncio.Event()
        self._is_abandoned = False
        self._is_silent = False
        self._processors: asyncio.Future[list[dict[str, Any]]] | None = None

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        if self._is_silent:
            # QEMU would do later what it does not do now, whatever may have come of it by then.
            await self._ask("query-version", None, limits.SILENT_TIMEOUT)
        return await self._ask(
            command, arguments, limits.COMMAND_TIMEOUT if timeout is None else timeout
        )

    async def _ask(
        self, command: str, arguments: Mapping[str, object] | None, timeout: float
    ) -> Any:
        if self._is_abandoned:
            raise errors.MonitorLost(f"{self.address}: QEMU did not answer and was left as it is")
        try:
            async with asyncio.timeout(timeout):
                answer = await self._client.execute(command, arguments)
        except TimeoutError:
            self._is_silent = True
            raise errors.MonitorTimeout(
                f"{self.address}: no answer to {command} within {units.format_duration(timeout)}",
                command=command,
            ) from None
        except qemu.qmp.ExecuteError as error:
            self._is_silent = False
            raise errors.CommandRefused(command, error.error_class, str(error)) from None
        except (QMPError, OSError, EOFError) as error:
            raise errors.MonitorLost(
                f"{self.address}: the monitor was lost during {command}: {error}", command=command
            ) from None
        self._is_silent = False
        return answer

    async def processors(self) -> list[dict[str, Any]]:
        if self._processors is None:  # two may want to know at once
            self._processors = together.shared(self.execute("query-cpus-fast"))
        return await asyncio.shield(self._processors)

    async def pass_descriptor(self, fd: int, fdset: int, opaque: str) -> int:
        async with self._descriptor_lock:
            await self._send_descriptor(fd)
            added = await self.execute("add-fd", {"fdset-id": fdset, "opaque": opaque})
        return int(added["fd"])

    async def try_descriptor(self, fd: int) -> None:
        name = {"fdname": "mapsave"}
        async with self._descriptor_lock:
            await self._send_descriptor(fd)
            await self.execute("getfd", name)
        await self.execute("closefd", name)

    async def _send_descriptor(self, fd: int) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limits.COMMAND_TIMEOUT
        while True:
            try:
                self._client.send_fd_scm(fd)
                return
            except BlockingIOError:
                if loop.time() > deadline:
                    raise errors.MonitorTimeout(
                        f"{self.address}: QEMU has not read from its monitor for "
                        f"{units.format_duration(limits.COMMAND_TIMEOUT)}",
                        command="add-fd",
                    ) from None
                await asyncio.sleep(0.01)  # QEMU reads its socket between two turns of its loop
            except (QMPError, OSError) as error:
                raise errors.MonitorLost(
                    f"{self.address}: cannot pass a descriptor: {error}"
                ) from None

    async def pause(self) -> None:
        await self.execute("stop", timeout=limits.DRAIN_TIMEOUT)

    async def resume(self) -> None:
        await self.execute("cont", timeout=limits.DRAIN_TIMEOUT)

    async def end(self, timeout: float) -> None:
        await self.execute("quit", timeout=timeout)
        await self.wait_lost(timeout)

    async def domain(self) -> None:
        return None

    @contextlib.contextmanager
    def events(self, *names: str) -> Iterator[_Events]:
        with self._client.listener(names) as listener:
            yield _Events(listener, self._lost, self.address)

    def abandon(self) -> None:
        self._is_abandoned = True

    async def wait_lost(self, timeout: float) -> bool:
        return await is_set_within(self._lost, timeout)

    async def watch(self) -> None:
        """Set the lost mark once the connection is no longer running."""
        while self._client.runstate is qemu.qmp.Runstate.RUNNING:
            await self._client.runstate_changed()
        self._lost.set()


@contextlib.asynccontextmanager
async def connected(path: str, *, timeout: float | None = None) -> AsyncIterator[QmpSession]:
    """Connect to the QMP socket at ``path`` and negotiate; disconnect at the end.

    A QMP socket serves one client at a time; a further one gets no greeting, which after
    ``timeout`` seconds (GREETING_TIMEOUT) is reported as such. Raises Unreachable, NotPermitted.
    """
    sock, client = await _opened(path, GREETING_TIMEOUT if timeout is None else timeout)
    with contextlib.closing(sock):
        try:
            session = QmpSession(client, path, _version(client), _peer_pid(sock))
            watcher = asyncio.create_task(session.watch())
            try:
                yield session
            finally:
                watcher.cancel()
        finally:
            # Before its socket is closed below it, whose number another one may get then.
            await shielded.whole(_disconnected(client))


async def _opened(path: str, timeout: float) -> tuple[socket.socket, qemu.qmp.QMPClient]:
    """Connect and negotiate; a QEMU that answers with something else is tried again.

    One that has just begun to listen may greet twice, which looks like a wrong answer: it greets
    the connected client, and again when its monitor is set up (10.0, ``monitor/qmp.c``). One
    that was stopped may first answer to us what the client before us had asked, or hang up on us
    when it notices that this client has gone.
    """
    first: errors.Unreachable | None = None
    for _ in range(_TRIES):
        try:
            return await _opened_once(path, timeout)
        except errors.Unreachable as error:
            first = first or error
            reason = getattr(error.__cause__, "exc", error.__cause__)
            if not isinstance(reason, NegotiationError | GreetingError | ConnectionResetError):
                break
    assert first is not None
    raise first


async def _opened_once(path: str, timeout: float) -> tuple[socket.socket, qemu.qmp.QMPClient]:
    client = qemu.qmp.QMPClient(path)
    with contextlib.ExitStack() as on_error:
        sock = await connect(path, timeout)
        on_error.callback(sock.close)
        try:
            await _greeted(client, sock, timeout)
        except TimeoutError:
            raise errors.Unreachable(
                f"qmp:{path}: no greeting within {units.format_duration(timeout)}",
                hint="another client is connected to this monitor (one at a time), or QEMU hangs; "
                "give the guest a separate monitor for mapsave",
            ) from None
        except AssertionError:
            # The library's own: the other end hung up as soon as it had answered.
            raise errors.Unreachable(
                f"qmp:{path}: no QMP monitor answered: it hung up"
            ) from ConnectionResetError()
        except (QMPError, OSError, EOFError) as error:
            raise errors.Unreachable(f"qmp:{path}: no QMP monitor answered: {error}") from error
        on_error.pop_all()
    return sock, client


async def _greeted(client: qemu.qmp.QMPClient, sock: socket.socket, timeout: float) -> None:
    """Have the client negotiate. Raises TimeoutError, and what the client raises.

    The client undoes what it began when it is cancelled, and says that it has a bug when it is
    cancelled again meanwhile, as by two limits that expire at once: no second one gets to it.
    """
    negotiating = together.shared(client.connect(sock))
    try:
        async with asyncio.timeout(timeout):
            await asyncio.shield(negotiating)
    except BaseException:
        negotiating.cancel()
        await shielded.whole(_undone(client, negotiating))
        raise


async def _undone(client: qemu.qmp.QMPClient, negotiating: asyncio.Future[None]) -> None:
    """Wait until the client has undone what it began; it may just have finished it instead."""
    await asyncio.wait((negotiating,), timeout=limits.SILENT_TIMEOUT)
    await _disconnected(client)


async def _disconnected(client: qemu.qmp.QMPClient) -> None:
    """Disconnect; what QEMU has not read by then it does not get."""
    with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
        async with asyncio.timeout(limits.SILENT_TIMEOUT):
            await client.disconnect()


async def connect(path: str, timeout: float) -> socket.socket:
    """Return a socket connected to ``path``, of any length.

    Raises Unreachable, NotPermitted; NoDescriptors where it looks like an address of TCP.
    """
    with contextlib.ExitStack() as on_error:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        on_error.callback(sock.close)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                with unix_socket.to_connect(path) as address:
                    await asyncio.get_running_loop().sock_connect(sock, address)
        except PermissionError as error:
            raise errors.denied(
                f"cannot connect to qmp:{path}: {error.strerror}", path, os.W_OK
            ) from None
        except (OSError, ValueError) as error:
            if _HOST_AND_PORT.search(path) and not os.path.lexists(path):
                raise errors.NoDescriptors(
                    f"qmp:{path}: descriptors are passed only through a unix socket, not over TCP",
                    hint="start the guest with -qmp unix:PATH,server=on,wait=off as well",
                ) from None
            reason = getattr(error, "strerror", None) or str(error) or "timed out"
            raise errors.Unreachable(
                f"cannot connect to qmp:{path}: {reason}",
                hint="is the guest running, with -qmp unix:PATH,server=on,wait=off?",
            ) from None
        on_error.pop_all()
    return sock


def _peer_pid(sock: socket.socket) -> int | None:
    """Return the pid of the process that listens (unix(7): SO_PEERCRED), if it is in our sight."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError as error:
        if error.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            return None
        raise
    pid: int = struct.unpack("3i", raw)[0]
    return pid if pid > 0 and os.path.exists(f"/proc/{pid}") else None


def _version(client: qemu.qmp.QMPClient) -> Version:
    greeting = client.greeting
    assert greeting is not None
    return Version.of(greeting.QMP.version)
