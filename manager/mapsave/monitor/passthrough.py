"""A session through libvirt: its monitor passthrough for commands, its own calls for run states.

libvirt owns the monitor of its guests. It passes on commands, one descriptor with each, and events
(``libvirt-qemu.h``: virDomainQemuMonitorCommandWithFiles,
virConnectDomainQemuMonitorEventRegister). What changes the run state goes through libvirt's own
calls, so that what it believes stays true.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.monitor import domain, libvirt_connection, process
from mapsave.monitor import session as limits
from mapsave.monitor.libvirt_link import Link
from mapsave.monitor.session import Version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractContextManager

    from mapsave.monitor.session import Events

# libvirt looks every 0.2 s whether a process that it ends is gone (util/virprocess.c).
_NOTICE_TIMEOUT = 0.5
# An init that waits for its children reaps within a few milliseconds.
_REAP_TIMEOUT = 0.02


class LibvirtSession:
    """A session with one active domain. Make one with ``connected``."""

    def __init__(self, uri: str, connection: Any, handle: Any) -> None:
        self._link = Link(uri, connection, handle)
        self._version = Version(0, 0, 0, "")
        self._pid: int | None = None

    @property
    def address(self) -> str:
        return self._link.address

    @property
    def uuid(self) -> str:
        """The domain's uuid."""
        return self._link.uuid

    @property
    def version(self) -> Version:
        return self._version

    @property
    def pid(self) -> int | None:
        return self._pid

    async def begin(self) -> None:
        """Listen to events, and learn QEMU's version and process."""
        await self._link.listen()
        self._version = _version(await self.execute("query-version"))
        self._pid = await self._find_pid()
        self._link.process = process.identity(self._pid)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        message = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        text = json.dumps(message)
        send = _library().qemuMonitorCommand
        reply = await self._link.repeatedly(
            command, lambda: send(self._link.live(), text, 0), timeout=timeout
        )
        return _value(command, reply)

    async def pass_descriptor(self, fd: int, fdset: int, opaque: str) -> int:
        arguments = {"fdset-id": fdset, "opaque": opaque}
        text = json.dumps({"execute": "add-fd", "arguments": arguments})
        kept = os.dup(fd)  # the call may outlive its time limit, and the caller's descriptor

        def add() -> str:
            try:
                send = _library().qemuMonitorCommandWithFiles
                reply, _ = send(self._link.live(), text, [kept], 0)
                return str(reply)
            finally:
                os.close(kept)

        return int(_value("add-fd", await self._link.repeatedly("add-fd", add))["fd"])

    def events(self, *names: str) -> AbstractContextManager[Events]:
        return self._link.events(*names)

    def abandon(self) -> None:
        self._link.ended.set()

    async def wait_lost(self, timeout: float) -> bool:
        return await self._link.wait_ended(timeout)

    async def pause(self) -> None:
        await self._link.repeatedly(
            "suspend", lambda: self._link.live().suspend(), timeout=limits.DRAIN_TIMEOUT
        )

    async def resume(self) -> None:
        """Let the guest run on; libvirt takes the locks of its disks again before it does."""
        try:
            await self._link.repeatedly(
                "resume", lambda: self._link.live().resume(), timeout=limits.DRAIN_TIMEOUT
            )
        except errors.CommandRefused:
            if (await self.execute("query-status"))["status"] != "running":
                raise

    async def end(self, timeout: float) -> None:
        """Destroy the domain: a transient one disappears, a persistent one is shut off.

        Returns when QEMU's process has ended, its disks free, and libvirt has noticed. It cannot
        notice where the host's init has not reaped the process yet. It does so later then, and
        until that holds the domain's job, for which a start would wait. Raises MonitorLost where
        the domain has ended by itself; one that was restarted is left alone.
        """
        destroying = asyncio.ensure_future(
            self._link.repeatedly("destroy", self._destroy, timeout=timeout, grace=0)
        )
        gone = asyncio.ensure_future(self._process_gone())
        try:
            await asyncio.wait(
                (destroying, gone), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if gone.done():
                await asyncio.wait((destroying,), timeout=_REAP_TIMEOUT)
            if gone.done() and not process.is_zombie(self._pid):
                await asyncio.wait((destroying,), timeout=_NOTICE_TIMEOUT)
            if destroying.done():
                destroying.result()
            elif not gone.done():
                raise errors.MonitorTimeout(f"{self.address}: libvirt could not destroy the domain")
        finally:
            destroying.cancel()
            gone.cancel()

    async def domain(self) -> domain.Domain:
        """Return what libvirt reports about the domain."""
        found: domain.Domain = await self._link.repeatedly(
            "describe", lambda: domain.describe(self._link.libvirt, self._link.live())
        )
        return found

    async def close(self) -> None:
        """Deregister from events, and close the connection."""
        await self._link.close()

    def _destroy(self) -> None:
        handle = self._link.live()
        try:
            handle.destroy()
        except self._link.libvirt.libvirtError as error:
            if not self._link.is_over(error):
                raise

    async def _find_pid(self) -> int | None:
        """Return QEMU's pid, which libvirt does not report, but QEMU the threads of its processors.

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
        if self._link.process is None:
            await asyncio.Event().wait()  # not to be seen: libvirt has to report it
        else:
            await process.ended(*self._link.process)


def _library() -> Any:
    import libvirt_qemu

    return libvirt_qemu


def _value(command: str, reply: str) -> Any:
    """Return the value in QEMU's reply. Raises CommandRefused with its message."""
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
    except BaseException:
        await libvirt_connection.close(connection)
        raise
    try:
        try:
            await session.begin()
        except errors.MonitorLost:
            raise errors.WrongRunState(
                f"{session.address}: the domain is shut off",
                hint=f"start it: virsh start {shlex.quote(handle.name())}",
            ) from None
        yield session
    finally:
        await session.close()
