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
from collections.abc import AsyncIterator, Mapping
from typing import Any

from mapsave import errors
from mapsave.monitor import domain, libvirt_connection, process
from mapsave.monitor import session as limits
from mapsave.monitor.libvirt_link import Link
from mapsave.monitor.session import Version

# libvirt looks every 0.2 s whether a process that it ends is gone (util/virprocess.c).
_NOTICE_TIMEOUT = 0.5
# An init that waits for its children reaps within a few milliseconds.
_REAP_TIMEOUT = 0.02


class LibvirtSession(Link):
    """A session with one active domain. Make one with ``connected``."""

    version = Version(0, 0, 0, "")  # until it has begun
    pid: int | None = None

    async def begin(self) -> None:
        """Listen to events, and learn QEMU's version and process."""
        await self.listen()
        self.version = Version.of(await self.execute("query-version"))
        self.pid = await self._find_pid()
        self.process = process.identity(self.pid)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        message = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        text = json.dumps(message)
        send = libvirt_connection.monitor_library().qemuMonitorCommand
        reply = await self.repeatedly(command, lambda: send(self.live(), text, 0), timeout=timeout)
        return _value(command, reply)

    async def pass_descriptor(self, fd: int, fdset: int, opaque: str) -> int:
        arguments = {"fdset-id": fdset, "opaque": opaque}
        text = json.dumps({"execute": "add-fd", "arguments": arguments})
        kept = os.dup(fd)  # the call may outlive its time limit, and the caller's descriptor

        def add() -> str:
            try:
                send = libvirt_connection.monitor_library().qemuMonitorCommandWithFiles
                reply, _ = send(self.live(), text, [kept], 0)
                return str(reply)
            finally:
                os.close(kept)

        return int(_value("add-fd", await self.repeatedly("add-fd", add))["fd"])

    async def pause(self) -> None:
        await self.repeatedly(
            "suspend", lambda: self.live().suspend(), timeout=limits.DRAIN_TIMEOUT
        )

    async def resume(self) -> None:
        """Let the guest run on; libvirt takes the locks of its disks again before it does."""
        try:
            await self.repeatedly(
                "resume", lambda: self.live().resume(), timeout=limits.DRAIN_TIMEOUT
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
            self.repeatedly("destroy", self._destroy, timeout=timeout, grace=0)
        )
        gone = asyncio.ensure_future(self._process_gone())
        try:
            await asyncio.wait(
                (destroying, gone), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if gone.done():
                await asyncio.wait((destroying,), timeout=_REAP_TIMEOUT)
            if gone.done() and not process.is_zombie(self.pid):
                await asyncio.wait((destroying,), timeout=_NOTICE_TIMEOUT)
            if destroying.done():
                destroying.result()
            elif not gone.done():
                raise errors.MonitorTimeout(f"{self.address}: libvirt could not destroy the domain")
        finally:
            destroying.cancel()
            gone.cancel()

    async def domain(self) -> domain.Domain:
        return await self.repeatedly("describe", lambda: domain.describe(self.libvirt, self.live()))

    def _destroy(self) -> None:
        handle = self.live()
        try:
            handle.destroy()
        except self.libvirt.libvirtError as error:
            if not self.is_over(error):
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
        if self.process is None:
            await asyncio.Event().wait()  # not to be seen: libvirt has to report it
        else:
            await process.ended(*self.process)


def _value(command: str, reply: str) -> Any:
    """Return the value in QEMU's reply. Raises CommandRefused with its message."""
    answer = json.loads(reply)
    if "error" in answer:
        error = answer["error"]
        raise errors.CommandRefused(command, str(error["class"]), str(error["desc"]))
    return answer["return"]


@contextlib.asynccontextmanager
async def connected(uri: str, named: str) -> AsyncIterator[LibvirtSession]:
    """Connect to the daemon at ``uri`` and to its active domain ``named``; disconnect at the end.

    Raises Unsupported, Unreachable, NotPermitted, UnknownGuest; WrongRunState where the domain is
    shut off.
    """
    connection = await libvirt_connection.connect(uri)
    try:
        life = await libvirt_connection.find_domain(connection, uri, named)
        session = LibvirtSession(uri, connection, life)
    except BaseException:
        await libvirt_connection.close(connection)
        raise
    try:
        try:
            await session.begin()
        except errors.MonitorLost:
            raise errors.WrongRunState(
                f"{session.address}: the domain is shut off",
                hint=f"start it: virsh start {shlex.quote(life.name)}",
            ) from None
        yield session
    finally:
        await session.close()
