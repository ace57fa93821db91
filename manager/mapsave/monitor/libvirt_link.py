"""A link to one libvirt domain: calls on it, its events, and a daemon that may come and go.

When the daemon ends, QEMU goes on. The link then waits for the daemon to come back and repeats the
call, unless it must not be made twice.

libvirt's calls name a domain by its uuid, which it keeps when it is ended and started again:
that is another QEMU, and not ours to touch. The id distinguishes one life from the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from mapsave import errors, guest_address, units
from mapsave.monitor import domain, libvirt_connection, process
from mapsave.monitor import session as limits
from mapsave.monitor.listening import is_set_within, next_unless_lost
from mapsave.monitor.session import Event

if TYPE_CHECKING:
    from libvirt import libvirtError, virConnect, virDomain

T = TypeVar("T")
# Seconds that a libvirtd may take to come back: a restart, or an update of its package.
RECONNECT_TIMEOUT = 60.0
# An event that says why a domain ended comes about as soon as the end itself.
_REASON_TIMEOUT = 0.2
# libvirt takes a domain for ended once the host's init has reaped its QEMU.
_NOTICE_TIMEOUT = 3.0
_QUESTION = '{"execute": "query-version"}'
# What may not be repeated: it would be done twice where the first one had come through.
_ONCE = frozenset(("migrate", "migrate-incoming", "add-fd"))


class DomainEvents:
    """The queue of one listener to QEMU's events, which also ends when the domain does."""

    def __init__(self, link: Link, names: tuple[str, ...]) -> None:
        self.names = frozenset(names)
        self.queue: asyncio.Queue[Event] = asyncio.Queue()
        self._link = link

    async def next(self, timeout: float | None = None) -> Event | None:
        if not self.queue.empty():
            return self.queue.get_nowait()
        link = self._link
        return await next_unless_lost(self.queue.get(), link.ended, link.lost, timeout)


class Link:
    """Calls on one life of a domain.

    ``ended`` is set once it is over; from then on every call raises MonitorLost. ``process`` is pid
    and start time of its QEMU, where they are known.
    """

    def __init__(self, uri: str, connection: virConnect, life: libvirt_connection.Life) -> None:
        self.uri = uri
        self.name = life.name
        self.uuid = life.uuid
        self.address = guest_address.of_domain(self.name, uri)
        self.process: tuple[int, int] | None = None
        self.libvirt = libvirt_connection.library()
        self.ended = asyncio.Event()
        self._connection = connection
        self._id = life.id
        self._how_ended: str | None = None
        self._loop = asyncio.get_running_loop()
        self._listeners: list[DomainEvents] = []
        self._deregister: list[Callable[[], object]] = []
        self._reconnecting = asyncio.Lock()
        self._given_up = False
        self._is_silent = False

    def lost(self) -> errors.MonitorLost:
        """Return the error that says that the domain runs no more, and why as far as is known."""
        how = self._how_ended or "is no longer running"
        return errors.MonitorLost(f"{self.address}: the domain {how}", how=self._how_ended)

    def live(self) -> virDomain:
        """Return the ``virDomain``, which is still in the life that it was in at first. Blocks.

        Between this and the call on it the domain may be ended and started again: no call of
        libvirt names an id. Raises MonitorLost where that life is over, and libvirt's own errors.
        """
        # By the uuid: to look for the id, libvirt would wait for the locks of all other domains.
        handle = self._connection.lookupByUUIDString(self.uuid)
        if self.ended.is_set() or self._id < 0 or handle.ID() != self._id:
            raise self.lost()
        return handle

    @contextlib.contextmanager
    def events(self, *names: str) -> Iterator[DomainEvents]:
        listener = DomainEvents(self, names)
        self._listeners.append(listener)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)

    async def wait_lost(self, timeout: float) -> bool:
        """Wait until the domain runs no more; False after ``timeout`` seconds."""
        return await is_set_within(self.ended, timeout)

    def abandon(self) -> None:
        self.ended.set()

    async def listen(self) -> None:
        """Begin to listen to libvirt. Raises what ``repeatedly`` raises."""
        await self.repeatedly("listen", self._register)

    async def close(self) -> None:
        try:
            with contextlib.suppress(errors.MonitorTimeout):
                limit = libvirt_connection.CLOSE_TIMEOUT
                await libvirt_connection.call(self._unregister, timeout=limit)
        finally:
            await libvirt_connection.close(self._connection)

    async def repeatedly(
        self,
        command: str,
        function: Callable[[], T],
        *,
        timeout: float | None = None,
        grace: float | None = None,
    ) -> T:
        """Call ``function``, again after a reconnection where ``command`` may be repeated.

        It gets the domain from ``live``. Cancelled, it still waits ``grace`` seconds for it. Raises
        MonitorTimeout after ``timeout`` seconds, or where the daemon stays away; MonitorLost where
        the domain has ended; MonitorBroken where the daemon was lost and ``command`` must not be
        repeated; CommandRefused, NotPermitted with libvirt's message.
        """
        timeout = limits.COMMAND_TIMEOUT if timeout is None else timeout
        while True:
            if self._is_silent:
                await self._asked_first()
            try:
                async with asyncio.timeout(timeout):
                    result = await libvirt_connection.call(function, grace=grace, timeout=None)
                self._is_silent = False
                return result
            except TimeoutError:
                self._is_silent = True
                limit = units.format_duration(timeout)
                raise errors.MonitorTimeout(
                    f"{self.address}: no answer to {command} within {limit}", command=command
                ) from None
            except errors.MonitorLost:
                raise await self._over() from None
            except self.libvirt.libvirtError as error:
                await self._judge(command, error)

    async def _asked_first(self) -> None:
        """Raise MonitorTimeout unless QEMU answers now: it would do later what it is told now."""
        send, text = libvirt_connection.monitor_library().qemuMonitorCommand, _QUESTION
        with contextlib.suppress(self.libvirt.libvirtError):
            await libvirt_connection.call(
                lambda: send(self.live(), text, 0), timeout=limits.SILENT_TIMEOUT
            )

    def refused(self, command: str, error: libvirtError) -> errors.MapsaveError:
        code = error.get_error_code()
        if code == self.libvirt.VIR_ERR_OPERATION_TIMEOUT:
            return errors.MonitorTimeout(f"{self.address}: {command}: {error}", command=command)
        if code in (self.libvirt.VIR_ERR_ACCESS_DENIED, self.libvirt.VIR_ERR_OPERATION_DENIED):
            return errors.NotPermitted(f"{self.address}: libvirt does not allow {command}: {error}")
        return errors.CommandRefused(command, "libvirt", str(error), by="libvirt")

    def is_over(self, error: libvirtError) -> bool:
        """Return whether ``error`` came because the domain runs no more. Blocks."""
        if error.get_error_code() == self.libvirt.VIR_ERR_NO_DOMAIN:
            return True
        try:
            self.live()
        except errors.MonitorLost:
            return True
        except self.libvirt.libvirtError as second:
            return bool(second.get_error_code() == self.libvirt.VIR_ERR_NO_DOMAIN)
        return False

    async def _over(self) -> errors.MonitorLost:
        """Return what ``lost`` does, for a life that is over, once libvirt has said why."""
        await self.wait_lost(_REASON_TIMEOUT)
        self.ended.set()
        return self.lost()

    async def _judge(self, command: str, error: libvirtError) -> None:
        """Return where the daemon was lost and is back, and ``command`` may be repeated."""
        if await libvirt_connection.call(self._is_connected):
            if await libvirt_connection.call(self.is_over, error):
                raise await self._over() from None
            # A monitor that cannot be read, or that ends, is that of a QEMU which died: libvirt
            # says so once it has noticed (the codes are those of qemu_monitor.c).
            broken = (self.libvirt.VIR_ERR_SYSTEM_ERROR, self.libvirt.VIR_ERR_INTERNAL_ERROR)
            if error.get_error_code() in broken and await self.wait_lost(_NOTICE_TIMEOUT):
                raise self.lost() from None
            raise self.refused(command, error) from None
        await self._reconnect(error)
        if command in _ONCE:
            raise errors.MonitorBroken(
                f"{self.address}: libvirtd exited during {command}, and is back", command=command
            ) from None

    def _is_connected(self) -> bool:
        try:
            return bool(self._connection.isAlive() == 1)
        except self.libvirt.libvirtError:
            return False

    async def _reconnect(self, reason: libvirtError) -> None:
        async with self._reconnecting:
            if await libvirt_connection.call(self._is_connected):
                return  # another call has done it in the meantime
            import tenacity  # slow to import, and hardly ever needed

            attempts = tenacity.AsyncRetrying(
                wait=tenacity.wait_exponential(multiplier=0.05, max=1.0),
                # Once in vain, no one waits again: what has to be undone makes several calls.
                stop=tenacity.stop_after_delay(0 if self._given_up else RECONNECT_TIMEOUT),
                retry=tenacity.retry_if_exception_type(errors.Unreachable),
                reraise=True,
            )
            try:
                connection: virConnect = await attempts(libvirt_connection.connect, self.uri)
            except errors.Unreachable as error:
                self._given_up = True
                # Not MonitorLost: QEMU lives, and what it was told is still in force.
                raise errors.MonitorTimeout(
                    f"{self.address}: libvirtd was lost ({reason}) and has not come back within "
                    f"{units.format_duration(RECONNECT_TIMEOUT)}: {error}"
                ) from None
            self._given_up = False
            await libvirt_connection.close(self._connection)
            self._connection = connection
            try:
                await libvirt_connection.call(self._register)
            except (self.libvirt.libvirtError, errors.MonitorLost):
                raise await self._over() from None
            # A daemon that found no domain alive when it started counts ids from the first again.
            if self.process is not None and not process.alive(*self.process):
                raise await self._over()

    def _register(self) -> None:
        """Register for QEMU's events and for those of the domain's life. Blocks."""
        events = libvirt_connection.monitor_library()
        handle = self.live()
        lifecycle = self._connection.domainEventRegisterAny(
            handle,
            self.libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            lambda _c, _d, event, detail, _o: self._soon(self._lived, event, detail),
            None,
        )
        monitor = events.qemuMonitorEventRegister(
            self._connection,
            handle,
            None,
            lambda _c, _d, name, _s, _us, details, _o: self._soon(self._heard, name, details),
            None,
            0,
        )
        self._deregister = [
            functools.partial(self._connection.domainEventDeregisterAny, lifecycle),
            functools.partial(events.qemuMonitorEventDeregister, self._connection, monitor),
        ]

    def _unregister(self) -> None:
        for deregister in self._deregister:
            with contextlib.suppress(self.libvirt.libvirtError):
                deregister()
        self._deregister = []

    # Events, from libvirt's thread to our loop.

    def _soon(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # our loop has ended in the meantime
            self._loop.call_soon_threadsafe(function, *arguments)

    def _heard(self, name: str, details: str | None) -> None:
        if self.ended.is_set():
            return  # it is of the next life
        event = Event(name, json.loads(details) if details else {})
        for listener in self._listeners:
            if not listener.names or name in listener.names:
                listener.queue.put_nowait(event)

    def _lived(self, event: int, detail: int) -> None:
        if event == self.libvirt.VIR_DOMAIN_EVENT_STOPPED and not self.ended.is_set():
            self._how_ended = domain.how_stopped(self.libvirt, detail)
            self.ended.set()
