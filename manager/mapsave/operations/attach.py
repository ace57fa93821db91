"""Reach a guest: its monitor, and for an emulated guest its start on demand."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import mapsave
from mapsave import errors, guest_address, shielded, units
from mapsave.config import Config, Guest
from mapsave.monitor.session import Session
from mapsave.operations import launch, locks

EMULATOR_START_TIMEOUT = 20.0
_END_PATIENCE = 5.0


@dataclasses.dataclass(frozen=True)
class Monitor:
    """Where a guest's monitor is, as locks and the journal name it: a socket, or a libvirt domain.

    ``domain`` is the domain's uuid, which is the same under all its names.
    """

    socket: str | None = None
    uri: str | None = None
    domain: str | None = None

    @classmethod
    def at(cls, socket: str) -> Monitor:
        """Return the monitor at a QMP socket."""
        return cls(socket=os.path.realpath(socket))

    @property
    def key(self) -> str:
        """What names the guest across processes."""
        return f"guest:{self.socket}" if self.socket else f"guest:libvirt:{self.domain}"

    @property
    def address(self) -> str:
        """Its address; that of a domain has the uuid."""
        if self.socket is not None:
            return guest_address.of_socket(self.socket)
        return guest_address.of_domain(str(self.domain), str(self.uri))

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Session]:
        """Connect to it. Raises as ``attached`` does."""
        if self.socket is not None:
            from mapsave.monitor import qmp  # which a libvirt guest does without

            async with qmp.connected(self.socket) as session:
                yield session
        else:
            from mapsave.monitor import passthrough  # only where there is such a guest

            async with passthrough.connected(str(self.uri), str(self.domain)) as session:
                yield session


def socket_path(guest: Guest, config: Config) -> str:
    """Return the path of the QMP socket of a guest that is not one of libvirt."""
    if guest.qmp is not None:
        return str(guest.qmp)
    assert guest.emulator is not None
    # A digest, since a guest's name may be longer than a socket's path may be.
    digest = hashlib.sha256(guest.name.encode()).hexdigest()[:16]
    return str(locks.state_directory(config.state, "emulated") / f"{digest}.qmp")


@contextlib.asynccontextmanager
async def attached(
    guest: Guest, config: Config, *, only_look: bool = False
) -> AsyncIterator[Session]:
    """Connect to the guest's monitor; an emulated guest that does not run is started first.

    It stays, unless the caller will ``only_look``: then it is ended with the context.

    Raises Unreachable, NotPermitted; for a libvirt guest also Unsupported (no libvirt-python),
    UnknownGuest and WrongRunState (shut off).
    """
    async with contextlib.AsyncExitStack() as stack:
        if guest.libvirt is not None:
            monitor = Monitor(uri=guest.libvirt.uri, domain=guest.libvirt.domain)
        else:
            path = socket_path(guest, config)
            if guest.emulator is not None and not await answers(path):
                process = await start_emulator(guest, config, path)
                if only_look:
                    stack.push_async_callback(shielded.in_time, _end, process)
            monitor = Monitor(socket=path)
        async with monitor.connected() as session:
            yield session


def _end(process: subprocess.Popen[bytes]) -> None:
    """End an emulated guest, which removes its socket."""
    process.terminate()
    try:
        process.wait(_END_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def exclusive(guest: Guest, config: Config) -> AsyncIterator[tuple[Session, Monitor]]:
    """Connect to the guest's monitor, no other mapsave being at the guest. Raises Busy too.

    A QMP socket is locked before it is connected to, since it serves one client at a time; a
    libvirt domain after that, since only libvirt knows what its name means.
    """
    who = f"guest {guest.name!r}"
    async with contextlib.AsyncExitStack() as stack:
        if guest.libvirt is None:
            monitor = Monitor.at(socket_path(guest, config))
            stack.enter_context(locks.held(config.state, who, monitor.key))
            session = await stack.enter_async_context(attached(guest, config))
        else:
            from mapsave.monitor import passthrough

            found = guest.libvirt
            connected = passthrough.connected(found.uri, found.domain)
            session = of_libvirt = await stack.enter_async_context(connected)
            monitor = Monitor(uri=found.uri, domain=of_libvirt.uuid)
            stack.enter_context(locks.held(config.state, who, monitor.key))
        yield session, monitor


async def connected_when_up(
    path: str, process: subprocess.Popen[bytes] | None, timeout: float
) -> None:
    """Wait until a new monitor listens. Raises Unreachable, at once if ``process`` has failed."""

    import tenacity  # slow to import, and there is time while QEMU starts

    def still_coming(_: BaseException) -> bool:
        return process is None or process.poll() in (None, 0)

    attempts = tenacity.AsyncRetrying(
        # QEMU listens after some 30 ms; a pause that goes on doubling would add as much again.
        wait=tenacity.wait_exponential(multiplier=0.002, max=0.008),
        stop=tenacity.stop_after_delay(timeout),
        retry=tenacity.retry_if_exception_type((OSError, errors.Unreachable))
        & tenacity.retry_if_exception(still_coming),
        reraise=True,
    )
    async for attempt in attempts:
        with attempt:
            if not await answers(path):
                raise errors.Unreachable(
                    f"qmp:{path}: no monitor there after {units.format_duration(timeout)}"
                )


async def answers(path: str) -> bool:
    """Return whether anything listens on the socket; the connection is dropped at once."""
    from mapsave.monitor import qmp

    try:
        with contextlib.closing(await qmp.connect(path, timeout=1.0)):
            return True
    except errors.Unreachable:
        return False


def emulator_command(guest: Guest, path: str) -> list[str]:
    """Return the command that starts the emulated QEMU of a guest with its monitor at ``path``."""
    assert guest.emulator is not None
    return [
        sys.executable,
        *(["-B"] if sys.dont_write_bytecode else []),
        *["-m", "mapsave", "emulate", "--qmp", path, "--name", guest.name],
        *["--memory", str(guest.emulator.memory), "--pattern", guest.emulator.pattern],
        *["--as", guest.emulator.version],
        *(["--writer"] if guest.emulator.writer else []),
    ]


def emulator_environment(guest: Guest, config: Config) -> dict[str, str]:
    """Return the environment of the emulated QEMU of a guest."""
    # Our own package is found as we found it.
    ours = {"PYTHONPATH": str(Path(mapsave.__file__).parents[1])}
    return launch.environment(config, guest) | ours


async def start_emulator(guest: Guest, config: Config, path: str) -> subprocess.Popen[bytes]:
    """Start the emulated QEMU of a guest at ``path``; it outlives us. Raises Unreachable."""
    log = log_path(config, guest.name)
    arguments, variables = emulator_command(guest, path), emulator_environment(guest, config)
    process = launch.started(arguments, log, variables)
    try:
        await connected_when_up(path, process, EMULATOR_START_TIMEOUT)
    except errors.Unreachable as error:
        process.kill()
        words = log.read_text(errors="replace").strip()[-2000:]
        raise errors.Unreachable(
            f"the emulated guest {guest.name!r} failed to start: {words or error.message}"
        ) from None
    except asyncio.CancelledError:
        process.kill()
        raise
    return process


def log_path(config: Config, name: str) -> Path:
    """Return where the output of a QEMU that we start goes."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:100]
    return locks.state_directory(config.state, "logs") / f"{readable}-{digest}.log"
