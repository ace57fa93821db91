"""A session through libvirt: its monitor passthrough for commands, its own calls for run states.

libvirt owns the monitor of its guests. It passes on commands, one descriptor with each, and events
(``libvirt-qemu.h``: virDomainQemuMonitorCommandWithFiles,
virConnectDomainQemuMonitorEventRegister). What changes the run state goes through libvirt's own
calls, so that what it believes stays true.
"""

import asyncio
import contextlib
import json
import os
import shlex
from collections.abc import AsyncIterator, Mapping
from typing import Any

from mapsave import errors, together
from mapsave.monitor import domain, kept_open, libvirt_connection, process
from mapsave.monitor import session as limits
from mapsave.monitor.libvirt_link import Link
from mapsave.monitor.session import Version

# libvirt looks every 0.2 s whether a process that it ends is gone (util/virprocess.c), or where the
# host is busy once it gets to it.
_NOTICE_TIMEOUT = 5.0
# An init that waits for its children reaps within a few milliseconds; on a busy host they are more.
_REAP_TIMEOUT = 0.3
_REAP_POLL = 0.001
# libvirt kills a QEMU that it ends after ten seconds; one that does not quit is left to it then.
_QUIT_TIMEOUT = 10.0
# They change nothing, so that it does not matter which of them has been asked when one fails.
_QUERIES = ("query-", "x-query-", "qom-get", "qom-list")


class _Batch:
    """Queries that go to libvirt one after another in one thread, after one look-up of the domain.

    That takes half the time of as many calls, for each of which a thread is woken.
    """

    replies: asyncio.Future[list[str]]

    def __init__(self, first: str) -> None:
        self.first = first
        self.texts: list[str] = []


class LibvirtSession(Link):
    """A session with one active domain. Make one with ``connected``."""

    version = Version(0, 0, 0, "")  # until it has begun
    pid: int | None = None
    _described: domain.Domain | None = None
    _processors: asyncio.Future[list[dict[str, Any]]] | None = None
    _batch: _Batch | None = None

    async def begin(self) -> None:
        """Listen to events, and learn QEMU's version and process."""
        async with together.group() as tasks:
            tasks.create_task(self.listen())
            version = tasks.create_task(self.execute("query-version"))
            pid = tasks.create_task(self._find_pid())
        self.version, self.pid = Version.of(version.result()), pid.result()
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
        if timeout is None and command.startswith(_QUERIES):
            return _value(command, await self._asked(command, text))
        send = libvirt_connection.monitor_library().qemuMonitorCommand
        reply = await self.repeatedly(command, lambda: send(self.live(), text, 0), timeout=timeout)
        return _value(command, reply)

    async def _asked(self, command: str, text: str) -> str:
        """Return the reply to a query; those of one turn of the loop go to libvirt together."""
        while True:
            if self._batch is None:
                self._batch = _Batch(command)
                self._batch.replies = together.shared(self._ask(self._batch))
            batch = self._batch
            batch.texts.append(text)
            at = len(batch.texts) - 1
            try:
                # Where this task is cancelled, the others still get their replies.
                replies = await asyncio.shield(batch.replies)
            except errors.CommandRefused:
                if at == 0:
                    raise
                continue  # the first one was refused, by libvirt
            if at < len(replies):
                return replies[at]

    async def _ask(self, batch: _Batch) -> list[str]:
        """Return the replies up to libvirt's first error, or raise it for the first query."""
        self._batch = None
        send = libvirt_connection.monitor_library().qemuMonitorCommand

        def ask() -> list[str]:
            domain_now, replies = self.live(), []
            for text in batch.texts:
                try:
                    replies.append(str(send(domain_now, text, 0)))
                except self.libvirt.libvirtError:
                    if not replies:
                        raise
                    break
            return replies

        return await self.repeatedly(batch.first, ask)

    async def processors(self) -> list[dict[str, Any]]:
        if self._processors is None:  # two may want to know at once
            self._processors = together.shared(self.execute("query-cpus-fast"))
        return await asyncio.shield(self._processors)

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

    async def try_descriptor(self, fd: int) -> None:
        """Do nothing: libvirt is connected to its QEMU itself, and remote ones are refused."""

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
        """Have QEMU quit, or else destroy the domain: it disappears, or is shut off if persistent.

        Returns when QEMU's process has ended, its disks free, and libvirt has noticed. It cannot
        notice where the host's init has not reaped the process yet. It does so later then, and
        until that holds the domain's job, for which a start would wait. Raises MonitorLost where
        the domain has ended by itself; one that was restarted is left alone.
        """
        if not await self._has_quit():
            await self._destroyed(timeout)

    async def _has_quit(self) -> bool:
        """Have QEMU quit and libvirt notice; False where QEMU is to be ended in another way.

        libvirt takes a `quit` for a shutdown of the guest, which a domain may have it follow by a
        restart: such a domain is not shut off but "crashed" then.
        """
        if self.process is None or self._is_silent:
            return False
        try:
            described = await self.domain()
        except (errors.CommandRefused, errors.MonitorTimeout):
            return False
        if described.restarts:
            return False
        with kept_open.connections(*self.process) as count:
            # Without that it would take as long as a destroy, which is sure to come through.
            if not count or not await self._quit(*self.process):
                return False
        if not process.is_zombie(self.pid):
            await self.wait_lost(_NOTICE_TIMEOUT)
        return True

    async def _quit(self, pid: int, started: int) -> bool:
        """Execute `quit`; return whether the process has ended. Its parent has a moment to reap."""
        gone = asyncio.ensure_future(process.ended(pid, started))
        # Its answer may be lost, as QEMU quits.
        quitting = asyncio.ensure_future(self.execute("quit", timeout=_QUIT_TIMEOUT))
        try:
            async with asyncio.timeout(_QUIT_TIMEOUT):
                await asyncio.wait((quitting, gone), return_when=asyncio.FIRST_COMPLETED)
                if not gone.done():
                    await quitting
                await gone
        except (TimeoutError, errors.CommandRefused, errors.MonitorTimeout):
            return False
        finally:
            gone.cancel()
            quitting.add_done_callback(lambda done: done.cancelled() or done.exception())
            quitting.cancel()
        for _ in range(round(_REAP_TIMEOUT / _REAP_POLL)):
            if not process.is_zombie(pid):
                break
            await asyncio.sleep(_REAP_POLL)
        return True

    async def _destroyed(self, timeout: float) -> None:
        """Destroy the domain; returns and raises as ``end`` does."""
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
        if self._described is None:
            self._described = await self.repeatedly(
                "describe", lambda: domain.describe(self.libvirt, self.live())
            )
        return self._described

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
            processors = await self.processors()
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
