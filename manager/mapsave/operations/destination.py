"""The destination of a restore: started or attached to, and compared with the image.

QEMU compares little by itself: RAM of another size is loaded "successfully", and pages that the
image does not hold are never written, so stale memory stays (QEMU 10.0, ``migration/ram.c``).
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from mapsave import blocking, errors, shielded, together
from mapsave.image import page_size, stub
from mapsave.image.image import Image
from mapsave.image.validation import Contents
from mapsave.migration import guest_state, stall
from mapsave.migration.run_states import RunState
from mapsave.migration.status import Status
from mapsave.monitor import process as processes
from mapsave.monitor import qmp, ram_blocks
from mapsave.monitor.ram_blocks import Memory, RamBlock
from mapsave.monitor.session import Session
from mapsave.operations import (
    attach,
    ending,
    facts,
    hardware,
    known_machines,
    launch,
    limits,
    memory_backends,
    modes,
    stale_memory,
)

_log = logging.getLogger(__name__)

START_TIMEOUT = 60.0
# RAM blocks that QEMU resizes to what the stream says, up to their largest (hw/core/loader.c).
_RESIZABLE_PREFIX = "/rom@"


@dataclasses.dataclass
class Destination:
    """A QEMU that waits for an incoming migration; ``process`` is set where we started it.

    What it prints goes to the file ``log``, or is read from the open file ``stderr``. ``is_loaded``
    where libvirt has read the image already, ``is_ours`` where mapsave had it started. ``identity``
    is pid and start time. ``warnings`` is what could not be compared. ``mapped`` is what it maps
    from the image; ``why_not_instant`` says why nothing is. ``has_ram_file``: its RAM is a shared
    file that mapsave has made, of which ``mapped`` shares the image's; ``why_no_ram_file`` says why
    it is none that was wanted.
    """

    session: Session
    log: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    stderr: BinaryIO | None = None
    is_loaded: bool = False
    is_kept: bool = False
    is_ours: bool = False
    identity: tuple[int, int] | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    mapped: tuple[stub.Mapped, ...] = ()
    why_not_instant: tuple[str, ...] = ()
    has_ram_file: bool = False
    why_no_ram_file: str = ""

    def __post_init__(self) -> None:
        self.is_ours = self.is_ours or self.process is not None
        self.identity = processes.identity(self.session.pid)

    def words(self) -> str:
        """Return what QEMU has printed: before 10.2 only there are the reasons of a failure."""
        if self.stderr is not None:
            return self.stderr.read().decode(errors="replace").strip()[-4000:]
        if self.log is None:
            return ""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace").strip()[-4000:]
        return ""


def launch_arguments(argv: Sequence[str], socket: str) -> list[str]:
    """Return the command that starts a destination: paused, waiting, its monitor at ``socket``."""
    arguments = list(argv)
    while "-incoming" in arguments:
        at = arguments.index("-incoming")
        del arguments[at : at + 2]
    if "-S" not in arguments:
        arguments.append("-S")
    if not any(socket in argument for argument in arguments):
        escaped = socket.replace(",", ",,")  # QEMU's option syntax
        arguments += ["-qmp", f"unix:{escaped},server=on,wait=off"]
    return [*arguments, "-incoming", "defer"]


@dataclasses.dataclass(frozen=True)
class Command:
    """How a destination is started: its command, monitor socket, log, environment, directory.

    ``inherited`` are descriptors that it gets under their own numbers.
    """

    argv: Sequence[str]
    socket: str
    log: Path
    variables: Mapping[str, str]
    cwd: str | None = None
    inherited: tuple[int, ...] = ()


@contextlib.asynccontextmanager
async def launched(command: Command) -> AsyncIterator[Destination]:
    """Start a destination by command and connect; end it unless it was kept.

    Raises Busy where a guest answers at its socket already, LaunchFailed with QEMU's message.
    """
    socket = command.socket
    if await attach.answers(socket):
        raise errors.Busy(
            f"a guest is already running at qmp:{socket}",
            hint="it may be the one that was saved; shut it down first, or restore --into another",
        )
    arguments = launch_arguments(command.argv, socket)
    if (
        "/" in arguments[0]
        and os.path.isfile(arguments[0])
        and not os.access(arguments[0], os.X_OK)
    ):
        raise errors.denied(
            f"cannot start the destination: {arguments[0]!r} may not be executed",
            arguments[0],
            os.X_OK,
        )
    if (program := shutil.which(arguments[0])) is None:
        raise errors.LaunchFailed(
            f"cannot start the destination: {arguments[0]!r} not found",
            hint="check 'launch:' of the guest in the configuration",
        )
    work = f"start the destination {arguments[0]!r}"
    with errors.explained(work, program, os.X_OK, otherwise=errors.LaunchFailed):
        process = launch.started(
            arguments, command.log, command.variables, command.cwd, command.inherited
        )
    async with _connected(process, socket, command.log) as destination:
        yield destination


@contextlib.asynccontextmanager
async def _connected(
    process: subprocess.Popen[bytes], socket: str, log: Path
) -> AsyncIterator[Destination]:
    destination = None
    try:
        async with contextlib.AsyncExitStack() as stack:
            try:
                await attach.connected_when_up(socket, process, START_TIMEOUT)
                session = await _greeted(stack, socket, process)
            except errors.Unreachable as error:
                words = log.read_text(errors="replace").strip()[-4000:]
                raise errors.LaunchFailed(
                    f"the destination failed to start: {words or error.message}",
                    hint="start the command by hand to see why",
                ) from None
            destination = Destination(session, log, process)
            try:
                yield destination
            finally:
                if not destination.is_kept:
                    # Also where it made itself a daemon, and our child is only its parent.
                    with contextlib.suppress(errors.MonitorError):
                        await session.end(5.0)
    finally:
        if destination is None or not destination.is_kept:
            process.kill()
            # Storage that hangs keeps a killed process as well.
            if not await shielded.whole(ending.ended(process.pid, ending.KILL_TIMEOUT)):
                _log.warning(
                    "%r (pid %d) was killed, but has not exited", process.args, process.pid
                )
            process.poll()


async def _greeted(
    stack: contextlib.AsyncExitStack, socket: str, process: subprocess.Popen[bytes]
) -> Session:
    """Connect to a QEMU that listens before it makes its devices. Raises Unreachable.

    It may yet end over one of them, or take long; and it may never answer a client that comes just
    when it sets its monitor up (10.0, seen once in some thousand starts), but the next one.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            return await stack.enter_async_context(qmp.connected(socket))
        except errors.Unreachable as error:
            is_silent = isinstance(error.__context__, TimeoutError)
            if time.monotonic() > deadline or not (is_silent or process.poll() is None):
                raise
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def waiting_at(socket: str) -> AsyncIterator[Destination]:
    """Attach to a QEMU that was started by hand with ``-incoming defer``."""
    async with qmp.connected(socket) as session:
        yield Destination(session)


async def compare(
    destination: Destination, image: Image, contents: Contents, state: Path, *, force: bool
) -> limits.Footprint:
    """Compare the destination with the image: everything that QEMU would not notice.

    ``state`` is the state directory. Returns of which process a restore takes what.

    Raises WrongRunState, DestinationMismatch, OlderQemu, DestinationNotZero.
    """
    session = destination.session
    _compare_version(session, image, force=force)
    async with together.group() as tasks:
        ask = tasks.create_task
        # First of all: of a QEMU without a machine it says so.
        asked_migration = ask(modes.migration(session))
        asked_state = ask(guest_state.run_state(session))
        asked_machine = ask(known_machines.query(session, state))
        size = ask(ram_blocks.memory(session))
        blocks = ask(ram_blocks.query(session))
        backends = ask(memory_backends.query(session))
        takes = ask(limits.footprint(session, size, blocks))
    tried, run_state = asked_migration.result(), asked_state.result()
    if run_state != RunState.INMIGRATE:
        raise errors.WrongRunState(
            f"{session.address}: the destination is in run state {run_state!r}, not waiting for an "
            "incoming migration",
            hint="start it with -incoming defer",
        )
    if tried.status != Status.NONE:
        raise errors.WrongRunState(
            f"{session.address}: an incoming migration has been tried on it before",
            hint="QEMU cannot try twice: start a new destination",
        )
    machine = asked_machine.result()
    _compare_machine(machine.type, contents)
    _compare_page_size(await hardware.architecture(session, machine.hardware), contents)
    destination.warnings += hardware.compare(machine.hardware, image.metadata, force=force)
    modes.compare_icount(session, image, contents)
    await _compare_memory(session, size.result(), image)
    own = frozenset(each.block.name for each in destination.mapped)
    _compare_blocks(blocks.result(), contents, own)
    there = stale_memory.Destination(session.pid, blocks.result(), backends.result(), own)
    try:
        async with blocking.limited(stall.limit(contents.stream.ram_bytes)):
            destination.warnings += await stale_memory.check(there, image.fd, contents)
    except blocking.Hangs as error:
        raise errors.DestinationNotZero(
            f"the destination's memory could not be compared with the image: {error.strerror}",
            hint="check the disks of the image and of the destination's memory files (dmesg)",
        ) from None
    return takes.result()


def _compare_version(session: Session, image: Image, *, force: bool) -> None:
    if session.version.release < facts.OLDEST_QEMU:
        raise errors.TooOld(f"{session.address}: QEMU {session.version}; 9.1 or later is needed")
    saved = str(image.metadata.get("qemu", {}).get("version", ""))
    try:
        saved_release = tuple(int(part) for part in saved.split("."))
    except ValueError:
        return
    if session.version.release < saved_release and not force:
        raise errors.OlderQemu(
            f"the image was saved by QEMU {saved}, the destination is QEMU {session.version}",
            hint="use that QEMU version or later, or --force",
        )


def _compare_machine(machine: str, contents: Contents) -> None:
    if machine != contents.stream.machine:
        raise errors.DestinationMismatch(
            f"the image has machine type {contents.stream.machine!r}, the destination has "
            f"{machine!r}",
            hint="start the destination with -machine of the image's type",
        )


def _compare_page_size(target: str, contents: Contents) -> None:
    here = page_size.of_target(target, contents.stream.page_bits)
    saved = contents.stream.blocks[0].page_size
    if here is not None and saved != here:
        raise errors.DestinationMismatch(
            f"the image has pages of {saved} bytes, the destination ({target}) has {here}: QEMU "
            "would load wrong RAM contents",
            hint="use a QEMU of the architecture that was saved; if it is, the image is damaged",
        )


async def _compare_memory(session: Session, found: Memory, image: Image) -> None:
    saved = image.metadata.get("memory", {})
    base, plugged = saved.get("base"), saved.get("plugged")
    if not saved or (base, plugged) == (found.base, found.plugged):
        return
    least, most = await ram_blocks.plugged_once_loaded(session, found)
    if base != found.base or not isinstance(plugged, int) or not least <= plugged <= most:
        raise errors.DestinationMismatch(
            f"the image has {saved.get('base')} bytes of RAM and {saved.get('plugged')} "
            f"hotplugged, the destination {found.base} and {found.plugged}",
            hint="start the destination with the same -m, -numa and DIMMs",
        )


def _compare_blocks(found: Mapping[str, RamBlock], contents: Contents, own: frozenset[str]) -> None:
    for block in contents.stream.blocks if found else ():
        there = found.get(block.name)
        used, largest = (there.used, there.total) if there is not None else (0, 0)
        if there is not None and there.has_alias != block.has_alias and block.name not in own:
            raise errors.DestinationMismatch(
                f"RAM block {block.name!r} has another name in the image: it was saved by libvirt "
                "while it was mapped from another image",
                hint="have libvirt start the destination: omit --into and --guest",
            )
        resizable = block.name.startswith(_RESIZABLE_PREFIX)
        if block.used_length == used or (resizable and block.used_length <= largest):
            continue
        here = f"of {used} bytes" if there is not None else "missing"
        raise errors.DestinationMismatch(
            f"RAM block {block.name!r} has {block.used_length} bytes in the image and is {here} "
            "in the destination",
            hint="start the destination with the same RAM, devices and ROMs",
        )
