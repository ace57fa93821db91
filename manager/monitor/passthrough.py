"""A session through libvirt: its monitor passthrough for commands, its own calls for run states.

libvirt owns the monitor of its guests. It passes on commands, one descriptor with each, and events
(``libvirt-qemu.h``: virDomainQemuMonitorCommandWithFiles,
virConnectDomainQemuMonitorEventRegister).
What changes the run state goes through libvirt's own calls, so that what it believes stays true.

When the daemon ends, QEMU goes on. The session then waits for the daemon to come back and repeats
the command, unless the command must not be done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from typing import TYPE_CHECKING, Any

import tenacity

from manager import errors
from manager.monitor import domain, libvirt_connection, process
from manager.monitor.session import COMMAND_TIMEOUT, DRAIN_TIMEOUT, Event, Version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

# Seconds that a libvirtd may take to come back: a restart, or an update of its package.
RECONNECT_TIMEOUT = 60.0
# libvirt tries SIGTERM for 10 s and SIGKILL for 30 s more (util/virprocess.c).
DESTROY_TIMEOUT = 60.0
# libvirt looks every 0.2 s whether a process that it ends is gone.
_NOTICE_TIMEOUT = 0.5
# An event that says why a domain ended comes about as soon as the end itself.
_REASON_TIMEOUT = 0.2
# What may not be repeated: it would be done twice where the first one had come through.
_ONCE = frozenset(("migrate", "migrate-incoming", "add-fd"))


class _Events:
    """The queue of one listener."""

    def __init__(self, session: LibvirtSession, names: tuple[str, ...]) -> None:
        self.names = frozenset(names)
        self.queue: asyncio.Queue[Event] = asyncio.Queue()
        self._session = session

    async def next(self, timeout: float | None = None) -> Event | None:
        if not self.queue.empty():
            return self.queue.get_nowait()
        ended = asyncio.ensure_future(self._session.ended.wait())
        arrived = asyncio.ensure_future(self.queue.get())
        try:
            await asyncio.wait(
                (ended, arrived), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if arrived.done():
                return arrived.result()
            if ended.done():
                raise self._session.lost()
            return None
        finally:
            ended.cancel()
            arrived.cancel()


class LibvirtSession:
    """A session with one active domain. Make one with ``connected``."""

    def __init__(self, uri: str, connection: Any, handle: Any) -> None:
        self.uri = uri
        self.name: str = handle.name()
        self.uuid: str = handle.UUIDString()
        self.ended = asyncio.Event()
        self._connection = connection
        self._handle = handle
        self._how_ended: str | None = None
        self._libvirt = libvirt_connection.library()
        self._loop = asyncio.get_running_loop()
        self._listeners: list[_Events] = []
        self._callbacks: list[Callable[[], Any]] = []
        self._reconnecting = asyncio.Lock()
        self._version = Version(0, 0, 0, "")
        self._pid: int | None = None
        self._process_started: int | None = None

    @property
    def address(self) -> str:
        return f"libvirt+{self.uri}#{self.name}"

    @property
    def version(self) -> Version:
        return self._version

    @property
    def pid(self) -> int | None:
        return self._pid

    async def begin(self) -> None:
        """Listen to events, and learn QEMU's version and process."""
        await libvirt_connection.call(self._listen)
        self._version = _version(await self.execute("query-version"))
        self._pid = await self._find_pid()
        self._process_started = process.start_time(self._pid) if self._pid else None

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = COMMAND_TIMEOUT,
    ) -> Any:
        message = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        text = json.dumps(message)
        send = self._qemu().qemuMonitorCommand
        reply = await self._repeatedly(
            command, lambda: send(self._handle, text, 0), timeout=timeout
        )
        return _value(command, reply)

    async def pass_descriptor(self, fd: int, fdset: int, opaque: str) -> int:
        arguments = {"fdset-id": fdset, "opaque": opaque}
        text = json.dumps({"execute": "add-fd", "arguments": arguments})
        send = self._qemu().qemuMonitorCommandWithFiles
        kept = os.dup(fd)  # the call may outlive its time limit, and the caller's descriptor

        def add() -> tuple[str, list[Any]]:
            try:
                answer: tuple[str, list[Any]] = send(self._handle, text, [kept], 0)
                return answer
            finally:
                os.close(kept)

        reply, _ = await self._repeatedly("add-fd", add)
        return int(_value("add-fd", reply)["fd"])

    @contextlib.contextmanager
    def events(self, *names: str) -> Iterator[_Events]:
        listener = _Events(self, names)
        self._listeners.append(listener)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)

    async def wait_lost(self, timeout: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.ended.wait()
        return self.ended.is_set()

    def lost(self) -> errors.MonitorLost:
        """Return the error that says that the domain runs no more, and why as far as is known."""
        how = self._how_ended or "is not running any more"
        return errors.MonitorLost(f"{self.address}: the domain {how}", how=self._how_ended)

    async def pause(self) -> None:
        await self._repeatedly("suspend", self._suspend, timeout=DRAIN_TIMEOUT)

    async def resume(self) -> None:
        """Let the guest run on; libvirt takes the locks of its disks again before it does."""
        try:
            await self._repeatedly("resume", self._resume, timeout=DRAIN_TIMEOUT)
        except errors.CommandRefused:
            if (await self.execute("query-status"))["status"] != "running":
                raise

    async def end(self, timeout: float) -> None:
        """Destroy the domain: a transient one disappears, a persistent one is shut off.

        Returns when QEMU's process has ended, its disks free, and libvirt has noticed. It cannot
        notice where the host's init has not reaped the process yet; then it does so later, and
        holds the domain's job until it has, so that a start waits for it.

        Raises CommandRefused, MonitorTimeout.
        """
        destroying = asyncio.ensure_future(libvirt_connection.call(self._destroy, grace=0))
        gone = asyncio.ensure_future(self._process_gone())
        try:
            await asyncio.wait(
                (destroying, gone), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if gone.done() and not process.is_zombie(self._pid):
                await asyncio.wait((destroying,), timeout=_NOTICE_TIMEOUT)
            if destroying.done():
                destroying.result()
            elif not gone.done():
                raise errors.MonitorTimeout(f"{self.address}: libvirt does not end the domain")
        except self._libvirt.libvirtError as error:
            raise self._refused("destroy", error) from None
        finally:
            destroying.cancel()
            gone.cancel()

    async def domain(self) -> domain.Domain:
        """Return what libvirt tells of the domain."""
        found: domain.Domain = await self._repeatedly(
            "describe", lambda: domain.describe(self._libvirt, self._handle)
        )
        return found

    async def close(self) -> None:
        """Deregister from events, and close the connection."""
        await libvirt_connection.call(self._unlisten)
        await libvirt_connection.close(self._connection)

    # Blocking parts, run in threads.

    def _suspend(self) -> None:
        self._handle.suspend()

    def _resume(self) -> None:
        self._handle.resume()

    def _destroy(self) -> None:
        try:
            self._handle.destroy()
        except self._libvirt.libvirtError as error:
            if not self._is_over(error):
                raise

    def _is_over(self, error: Any) -> bool:
        """Tell whether ``error`` came because the domain runs no more. Blocks."""
        if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
            return True
        try:
            return not self._handle.isActive()
        except self._libvirt.libvirtError as second:
            return bool(second.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN)

    def _listen(self) -> None:
        """Register for QEMU's events and for those of the domain's life."""
        connection, qemu = self._connection, self._qemu()
        lifecycle = connection.domainEventRegisterAny(
            self._handle,
            self._libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            lambda _c, _d, event, detail, _o: self._soon(self._lived, event, detail),
            None,
        )
        monitor = qemu.qemuMonitorEventRegister(
            connection,
            self._handle,
            None,
            lambda _c, _d, name, _s, _us, details, _o: self._soon(self._heard, name, details),
            None,
            0,
        )
        self._callbacks = [
            functools.partial(connection.domainEventDeregisterAny, lifecycle),
            functools.partial(qemu.qemuMonitorEventDeregister, connection, monitor),
        ]

    def _unlisten(self) -> None:
        for deregister in self._callbacks:
            with contextlib.suppress(self._libvirt.libvirtError):
                deregister()
        self._callbacks = []

    @staticmethod
    def _qemu() -> Any:
        import libvirt_qemu

        return libvirt_qemu

    # Events, from libvirt's thread to ours.

    def _soon(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # our loop has ended meanwhile
            self._loop.call_soon_threadsafe(function, *arguments)

    def _heard(self, name: str, details: str | None) -> None:
        event = Event(name, json.loads(details) if details else {})
        for listener in self._listeners:
            if not listener.names or name in listener.names:
                listener.queue.put_nowait(event)

    def _lived(self, event: int, detail: int) -> None:
        if event == self._libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._how_ended = domain.how_stopped(self._libvirt, detail)
            self.ended.set()

    # Commands, over a daemon that may come and go.

    async def _repeatedly(
        self, command: str, function: Callable[[], Any], *, timeout: float | None = COMMAND_TIMEOUT
    ) -> Any:
        """Call ``function``, again behind a reconnection where ``command`` may be repeated."""
        while True:
            try:
                async with asyncio.timeout(timeout):
                    return await libvirt_connection.call(function)
            except TimeoutError:
                raise errors.MonitorTimeout(
                    f"{self.address}: no answer to {command} within {timeout:g} s", command=command
                ) from None
            except self._libvirt.libvirtError as error:
                await self._judge(command, error)

    async def _judge(self, command: str, error: Any) -> None:
        """Return where the daemon was lost and is back, and ``command`` may be repeated.

        Raises MonitorLost where the domain has ended or the daemon stays away, MonitorBroken where
        the command must not be repeated, CommandRefused with libvirt's words.
        """
        if await libvirt_connection.call(self._is_connected):
            if await libvirt_connection.call(self._is_over, error):
                await self.wait_lost(_REASON_TIMEOUT)
                raise self.lost() from None
            raise self._refused(command, error) from None
        await self._reconnect(error)
        if command in _ONCE:
            raise errors.MonitorBroken(
                f"{self.address}: libvirtd ended during {command}, and is back", command=command
            ) from None

    def _is_connected(self) -> bool:
        try:
            return bool(self._connection.isAlive() == 1)
        except self._libvirt.libvirtError:
            return False

    def _refused(self, command: str, error: Any) -> errors.MapsaveError:
        code = error.get_error_code()
        if code == self._libvirt.VIR_ERR_OPERATION_TIMEOUT:
            return errors.MonitorTimeout(f"{self.address}: {command}: {error}", command=command)
        if code in (self._libvirt.VIR_ERR_ACCESS_DENIED, self._libvirt.VIR_ERR_OPERATION_DENIED):
            return errors.NotPermitted(f"{self.address}: libvirt does not allow {command}: {error}")
        return errors.CommandRefused(command, "libvirt", str(error))

    async def _reconnect(self, reason: Any) -> None:
        """Wait for the daemon to come back, and find the domain again."""
        async with self._reconnecting:
            if await libvirt_connection.call(self._is_connected):
                return  # another command has done it meanwhile
            attempts = tenacity.AsyncRetrying(
                wait=tenacity.wait_exponential(multiplier=0.05, max=1.0),
                stop=tenacity.stop_after_delay(RECONNECT_TIMEOUT),
                retry=tenacity.retry_if_exception_type(errors.Unreachable),
                reraise=True,
            )
            try:
                connection: Any = await attempts(libvirt_connection.connect, self.uri)
            except errors.Unreachable as error:
                raise errors.MonitorLost(
                    f"{self.address}: libvirtd was lost ({reason}) and has not come back within "
                    f"{RECONNECT_TIMEOUT:g} s: {error}"
                ) from None
            with contextlib.suppress(self._libvirt.libvirtError):
                await libvirt_connection.call(self._connection.close)
            self._connection = connection
            try:
                self._handle = await libvirt_connection.call(
                    connection.lookupByUUIDString, self.uuid
                )
                await libvirt_connection.call(self._listen)
            except self._libvirt.libvirtError:
                raise self.lost() from None

    # QEMU's process.

    async def _find_pid(self) -> int | None:
        """Return QEMU's pid, which libvirt does not tell, but QEMU the threads of its processors.

        None where they are not in our sight: another pid namespace, or a machine without any.
        """
        try:
            processors = await self.execute("query-cpus-fast")
            pid = process.of_thread(int(processors[0]["thread-id"]))
        except (errors.CommandRefused, IndexError, KeyError):
            return None
        ours = pid is not None and self.uuid in " ".join(process.command_line(pid))
        return pid if ours else None

    async def _process_gone(self) -> None:
        if self._pid is None or self._process_started is None:
            await asyncio.Event().wait()  # not to be seen: libvirt has to tell
        else:
            await process.ended(self._pid, self._process_started)


def _value(command: str, reply: str) -> Any:
    """Return the value in QEMU's reply. Raises CommandRefused with its words."""
    answer = json.loads(reply)
    if "error" in answer:
        error = answer["error"]
        raise errors.CommandRefused(command, str(error["class"]), str(error["desc"]))
    return answer["return"]


def _version(reply: dict[str, Any]) -> Version:
    number = reply["qemu"]
    return Version(
        int(number["major"]), int(number["minor"]), int(number["micro"]), reply.get("package", "")
    )


@contextlib.asynccontextmanager
async def connected(uri: str, named: str) -> AsyncIterator[LibvirtSession]:
    """Connect to the daemon at ``uri`` and to its active domain ``named``; disconnect at the end.

    Raises Unsupported, Unreachable, NotPermitted, UnknownGuest; WrongRunState where the domain is
    shut off.
    """
    connection: Any = await libvirt_connection.connect(uri)
    try:
        handle = await libvirt_connection.find_domain(connection, uri, named)
        session = LibvirtSession(uri, connection, handle)
        try:
            await session.begin()
        except errors.MonitorLost:
            raise errors.WrongRunState(
                f"{session.address}: the domain is shut off",
                hint=f"start it: virsh start {session.name}",
            ) from None
        connection = None  # is the session's from here on, which may reconnect
        try:
            yield session
        finally:
            await session.close()
    finally:
        if connection is not None:
            await libvirt_connection.close(connection)
