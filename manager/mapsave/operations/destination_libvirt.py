"""A destination that libvirt starts: one that waits for its guest to come in, or has read it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import stat
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from mapsave import domain_xml, errors, shielded, together
from mapsave.image.image import Image
from mapsave.migration import parameters, stall
from mapsave.monitor import definition, fdset, libvirt_connection, passthrough, process
from mapsave.monitor.session import Session
from mapsave.operations import domain_trust
from mapsave.operations.destination import Destination
from mapsave.operations.restore_request import Request

if TYPE_CHECKING:
    from libvirt import virConnect

    _Starting = Callable[[virConnect], libvirt_connection.Life]

_log = logging.getLogger(__name__)

_LIBVIRTS = "libvirt-incoming-migrate"
_END_TIMEOUT = 60.0
# A destroy lets the host's init so long to reap QEMU (util/virprocess.c: 200 times 0.2 s).
_ENDING_TIMEOUT = 40.0
# Until libvirt has heard that a QEMU is ending.
_SURELY = 1.0
# What a QEMU has from its start (10.0, migration/options.c); libvirt leaves what its restore used.
_FRESH = {"multifd-channels": 2}


@dataclasses.dataclass(frozen=True)
class Start:
    """A domain that libvirt at ``uri`` is to start.

    ``on_left`` is called where libvirt does not destroy it again; without ``vetting`` the XML may
    name whatever it likes. A start without progress for ``stall_seconds`` is given up.
    """

    uri: str
    xml: str
    on_left: Callable[[], None]
    vetting: domain_trust.Vetting | None
    stall_seconds: float

    @functools.cached_property
    def identity(self) -> domain_xml.Identity:
        """Which domain it is. Raises InvalidImage where the XML is none."""
        return domain_xml.identity(self.xml)

    def watch(self, image_bytes: int) -> stall.Watch:
        """Return what watches the domain's QEMU from before libvirt starts it."""
        uuid = self.identity.uuid
        return stall.Watch(self.stall_seconds, image_bytes, lambda: _pid(self.uri, uuid))


@contextlib.asynccontextmanager
async def created(
    asked: Start, cookie: str | None, memory: Sequence[str] = ()
) -> AsyncIterator[Destination]:
    """Have libvirt start the domain to wait; destroy it unless it was kept.

    ``memory`` are arguments of its RAM's backend. They and those that make it wait are in the live
    definition only: a persistent one stays as it is.

    Raises Busy where the domain runs already, LaunchFailed with libvirt's message,
    RestoreStalled, Unsupported, Unreachable, NotPermitted, InvalidImage where the XML is none,
    ForeignResource.
    """
    libvirt = libvirt_connection.library()
    text = definition.waiting(asked.xml, cookie, memory)

    def start(connection: virConnect) -> libvirt_connection.Life:
        handle = connection.createXML(text, libvirt.VIR_DOMAIN_START_PAUSED)
        return libvirt_connection.life(handle)

    name = asked.identity.name
    if definition.takes_internal_snapshots(asked.xml):
        _log.warning(
            "domain %r can be reverted to internal snapshots only after a restart, or if "
            "restored with --through-libvirt (docs/libvirt.md)",
            name,
        )
    async with _started(asked, start, asked.watch(0)) as target:
        found = await target.session.domain()
        if found is not None and found.is_transient:
            _log.warning(
                "domain %r has no persistent definition; to make it one, define what 'mapsave "
                "inspect --xml' prints, not what 'virsh dumpxml' does (docs/libvirt.md)",
                name,
            )
        yield target


@contextlib.asynccontextmanager
async def loaded(asked: Start, opened: Image, request: Request) -> AsyncIterator[Destination]:
    """Have libvirt restore the image by its path, paused; destroy it unless it was kept.

    ``request`` says by how many channels, and whether past the page cache.

    libvirt 11.3 leaves the image open in QEMU for as long as the guest lives, and capabilities on
    with which the next internal snapshot kills it; here both are put right.

    Raises Unsupported where the image is of the native format, and as ``created`` does.
    """
    if opened.libvirt is None:
        raise errors.Unsupported(
            f"{opened.path!r} is in the native format, which libvirt does not read",
            hint="omit --through-libvirt, or save with --format libvirt",
        )
    libvirt = libvirt_connection.library()
    # Of libvirt 10.6; an older libvirt-python works otherwise, as the one of Debian 12 does.
    if not hasattr(libvirt, "VIR_DOMAIN_SAVE_PARAM_PARALLEL_CHANNELS"):
        raise errors.Unsupported(
            "this libvirt-python is older than 10.6, and cannot restore through libvirt",
            hint="omit --through-libvirt, or install a newer one",
        )
    wanted: dict[str, object] = {
        libvirt.VIR_DOMAIN_SAVE_PARAM_FILE: os.path.realpath(opened.path),
        libvirt.VIR_DOMAIN_SAVE_PARAM_PARALLEL_CHANNELS: request.channels,
    }
    if request.xml is not None:
        wanted[libvirt.VIR_DOMAIN_SAVE_PARAM_DXML] = request.xml
    flags = libvirt.VIR_DOMAIN_SAVE_PAUSED
    if request.direct_io == "on":
        flags |= libvirt.VIR_DOMAIN_SAVE_BYPASS_CACHE

    uuid = asked.identity.uuid

    def start(connection: virConnect) -> libvirt_connection.Life:
        connection.restoreParams(wanted, flags)
        return libvirt_connection.life(connection.lookupByUUIDString(uuid))

    async with _started(asked, start, asked.watch(opened.allocated)) as target:
        await let_go(target.session)
        target.is_loaded = True
        yield target


async def let_go(session: Session) -> None:
    """Have QEMU close the image that libvirt has restored, and switch off what libvirt left on."""
    for each in await fdset.query(session):
        if each.is_of(_LIBVIRTS):
            await fdset.take_back(session, each.id)
    left = (await parameters.query(session)).of_libvirt()
    fresh = parameters.Settings(left.capabilities, {**left.parameters, **_FRESH})
    await parameters.put_back(session, fresh)


@contextlib.asynccontextmanager
async def _started(
    asked: Start, start: _Starting, watch: stall.Watch
) -> AsyncIterator[Destination]:
    connection = await libvirt_connection.connect(asked.uri)
    try:
        await _check_free(connection, asked)
        if asked.vetting is not None:
            await domain_trust.check(connection, asked.xml, asked.vetting)
        life = await _start(connection, asked, start, watch)
        session = passthrough.LibvirtSession(asked.uri, connection, life)
    except BaseException:
        await shielded.whole(libvirt_connection.close(connection))
        raise
    target = None
    try:
        async with together.group() as tasks:
            tasks.create_task(session.begin())
            tasks.create_task(session.domain())  # which the caller wants to know
        with _words(session.pid) as log:
            target = Destination(session, stderr=log, is_ours=True)
            yield target
    finally:
        if target is None or not target.is_kept:
            try:
                await shielded.whole(session.end(_END_TIMEOUT))
            except errors.MonitorLost:
                pass  # it has ended by itself
            except errors.MonitorError:
                asked.on_left()
        await shielded.whole(session.close())


def _pid(uri: str, uuid: str) -> int | None:
    """Return the pid of a domain's QEMU, by its command line; None for a daemon elsewhere."""
    return None if urllib.parse.urlsplit(uri).hostname else process.with_argument(uuid)


async def _start(
    connection: virConnect, asked: Start, start: _Starting, watch: stall.Watch
) -> libvirt_connection.Life:
    """Have ``start`` start the domain, and return its life; cancelled or stalled, end it."""
    libvirt = libvirt_connection.library()
    starting = asyncio.ensure_future(libvirt_connection.call(start, connection, timeout=None))
    try:
        return await watch.until(asyncio.shield(starting))
    except libvirt.libvirtError as error:
        raise errors.LaunchFailed(
            f"libvirt at {asked.uri!r} failed to start domain {asked.identity.name!r}: {error}",
            hint="see libvirt's log of the domain; --xml sets another definition",
        ) from None
    except (asyncio.CancelledError, errors.RestoreStalled):
        if not await shielded.whole(_end_started(connection, asked, starting)):
            asked.on_left()
        raise


async def _end_started(
    connection: virConnect, asked: Start, starting: asyncio.Future[libvirt_connection.Life]
) -> bool:
    """Destroy a domain whose start cannot be called off, as soon as it is there.

    Where another client was quicker, our start fails at once, and the domain is theirs. False where
    libvirt does not end the start within a minute.
    """
    libvirt = libvirt_connection.library()
    # All that libvirt reports about a domain that it is starting: its XML it holds back until then.
    starting_up = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP]

    def destroy(started: libvirt_connection.Life | None) -> None:
        found = connection.lookupByUUIDString(asked.identity.uuid)
        if found.state() == starting_up if started is None else found.ID() == started.id:
            # libvirt would first ask it to end, for ten seconds, which one that hangs ignores.
            if (known := process.identity(_pid(asked.uri, asked.identity.uuid))) is not None:
                process.kill(*known)
            found.destroy()

    deadline = time.monotonic() + _END_TIMEOUT
    while time.monotonic() < deadline:
        await asyncio.wait({starting}, timeout=0.1)
        is_over = starting.done()
        if is_over and starting.exception() is not None:
            return True
        with contextlib.suppress(libvirt.libvirtError, errors.MonitorTimeout):
            await libvirt_connection.call(destroy, starting.result() if is_over else None)
        if is_over:
            return True
    return False


async def _check_free(connection: virConnect, asked: Start) -> None:
    """Raise Busy where the domain runs already; wait for one that is just ending, after a save."""
    libvirt = libvirt_connection.library()
    surely, deadline = time.monotonic() + _SURELY, time.monotonic() + _ENDING_TIMEOUT

    def state() -> int | None:
        handle = connection.lookupByUUIDString(asked.identity.uuid)
        return int(handle.state()[0]) if handle.isActive() else None

    with contextlib.suppress(libvirt.libvirtError):
        while (found := await libvirt_connection.call(state)) is not None:
            is_ending = found == libvirt.VIR_DOMAIN_SHUTDOWN
            if time.monotonic() > (deadline if is_ending else surely):
                name = asked.identity.name
                raise errors.Busy(
                    f"domain {name!r} of libvirt at {asked.uri!r} is already running",
                    hint="it may be the one that was saved; destroy it first (virsh destroy)",
                )
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def _words(pid: int | None) -> Iterator[BinaryIO | None]:
    """Yield what QEMU prints from now on: libvirt's log of its standard error, if in our sight."""
    with contextlib.ExitStack() as stack:
        log = None
        with contextlib.suppress(OSError):
            file = stack.enter_context(open(f"/proc/{pid}/fd/2", "rb"))
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.seek(0, os.SEEK_END)
                log = file
        yield log
