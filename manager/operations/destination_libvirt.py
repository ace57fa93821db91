"""A destination that libvirt creates: a domain that waits, paused, for its guest to come in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

from manager import domain_xml, errors
from manager.monitor import definition, libvirt_connection, passthrough, undoing
from manager.operations.destination import Destination

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_END_TIMEOUT = 60.0


@contextlib.asynccontextmanager
async def created(uri: str, xml: str, cookie: str | None) -> AsyncIterator[Destination]:
    """Have libvirt at ``uri`` start the domain of ``xml`` to wait; destroy it unless it was kept.

    The extra arguments stand in the live definition only: a persistent one stays as it is.

    Raises Busy where the domain runs already, LaunchFailed with libvirt's words, Unsupported,
    Unreachable, NotPermitted, InvalidImage where ``xml`` is none.
    """
    identity = domain_xml.identity(xml)
    text = definition.waiting(xml, cookie)
    connection = await libvirt_connection.connect(uri)
    try:
        handle = await _create(connection, uri, identity, text)
        session = passthrough.LibvirtSession(uri, connection, handle)
    except BaseException:
        await undoing.whole(libvirt_connection.close(connection))
        raise
    destination = None
    try:
        await session.begin()
        with _words(session.pid) as log:
            destination = Destination(session, stderr=log)
            yield destination
    finally:
        if destination is None or not destination.is_kept:
            with contextlib.suppress(errors.MonitorError):
                await undoing.whole(session.end(_END_TIMEOUT))
        await undoing.whole(session.close())


async def _create(connection: Any, uri: str, identity: domain_xml.Identity, xml: str) -> Any:
    libvirt = libvirt_connection.library()
    await check_free(connection, uri, identity)
    starting = asyncio.ensure_future(
        libvirt_connection.call(connection.createXML, xml, libvirt.VIR_DOMAIN_START_PAUSED)
    )
    try:
        return await asyncio.shield(starting)
    except libvirt.libvirtError as error:
        raise errors.LaunchFailed(
            f"libvirt at {uri!r} does not start domain {identity.name!r}: {error}",
            hint="see libvirt's log of the domain; --xml gives another definition",
        ) from None
    except asyncio.CancelledError:
        await undoing.whole(_end_started(libvirt, starting))
        raise


async def _end_started(libvirt: Any, starting: asyncio.Future[Any]) -> None:
    """Destroy a domain whose start cannot be called off any more."""
    with contextlib.suppress(libvirt.libvirtError):
        handle = await starting
        await libvirt_connection.call(handle.destroy)


async def check_free(connection: Any, uri: str, identity: domain_xml.Identity) -> None:
    """Raise Busy where the domain runs already."""
    with contextlib.suppress(libvirt_connection.library().libvirtError):
        handle = await libvirt_connection.call(connection.lookupByUUIDString, identity.uuid)
        if await libvirt_connection.call(handle.isActive):
            raise errors.Busy(
                f"domain {identity.name!r} of libvirt at {uri!r} runs already",
                hint="it may be the one that was saved; end it first (virsh destroy)",
            )


@contextlib.contextmanager
def _words(pid: int | None) -> Iterator[BinaryIO | None]:
    """Yield what QEMU prints from now on: libvirt has its standard error go to a log file.

    None where it goes to libvirt's log daemon, or is out of our sight.
    """
    if pid is None:
        yield None
        return
    try:
        file = open(f"/proc/{pid}/fd/2", "rb")  # noqa: SIM115
    except OSError:
        yield None
        return
    with file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.seek(0, os.SEEK_END)
            yield file
        else:
            yield None
