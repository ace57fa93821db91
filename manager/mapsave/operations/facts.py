"""What a QEMU says of the guest it runs: asked once, before anything is touched."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from mapsave import errors
from mapsave.image.metadata import CommandPart, HardwarePart
from mapsave.migration import guest_state, outgoing, parameters, run_states
from mapsave.monitor import fdset, process, ram_blocks
from mapsave.monitor.session import Session, Version
from mapsave.operations import devices, drives, hardware, limits, memory_backends, modes

if TYPE_CHECKING:
    from mapsave.monitor.domain import Domain

OLDEST_QEMU = (9, 1, 0)


@dataclasses.dataclass(frozen=True)
class Memory:
    """The sizes of a guest's RAM in bytes: at start, and plugged in since."""

    base: int
    plugged: int

    @property
    def total(self) -> int:
        """All of the guest's RAM, ROMs and video memory not counted."""
        return self.base + self.plugged


@dataclasses.dataclass(frozen=True)
class Facts:
    """One guest as its QEMU describes it, and libvirt where it is one of libvirt's.

    ``process`` is QEMU's pid and start time, which stays unique when the pid is given away again.
    ``blocked_reasons`` are QEMU's own, ``unsavable`` what it does not tell.
    ``free_fdset`` can be taken for a save; QEMU has not released ``kept_fdsets`` of earlier ones.
    """

    name: str | None
    uuid: str | None
    version: Version
    machine: str
    hardware: HardwarePart | None
    run_state: str
    memory: Memory
    settings: parameters.Settings
    migration: str
    blocked_reasons: tuple[str, ...]
    unsavable: tuple[devices.Reason, ...]
    read_only_memory: tuple[str, ...]
    free_fdset: int
    kept_fdsets: tuple[int, ...]
    pid: int | None
    process: tuple[int, int] | None
    domain: Domain | None
    mode: modes.Mode
    drives: tuple[drives.Drive, ...]
    footprint: limits.Footprint

    @property
    def cpu(self) -> str | None:
        """The type of the guest's processors; None for a machine without any."""
        return self.hardware["model"] if self.hardware else None

    @property
    def runs(self) -> bool:
        """Whether the guest's processors run."""
        return run_states.of(self.run_state).runs


async def gather(session: Session) -> Facts:
    """Ask QEMU. Raises TooOld where it lacks what we ask, Unreachable where it stops answering."""
    if session.version.release < OLDEST_QEMU:
        raise errors.TooOld(
            f"{session.address}: QEMU {session.version}; saving to descriptors needs 9.1 or later",
            hint="older versions truncate the whole file, including its header",
        )
    await modes.check_made(session)
    try:
        return await _gather(session)
    except (errors.MonitorLost, errors.MonitorTimeout) as error:
        raise errors.Unreachable(error.message) from None


async def _gather(session: Session) -> Facts:
    migration = await outgoing.query(session)
    domain = await session.domain()
    settings = await parameters.query(session)
    size = await memory(session)
    fdsets = await fdset.query(session)
    machine = await machine_type(session)
    return Facts(
        name=domain.name if domain else (await session.execute("query-name")).get("name"),
        uuid=domain.uuid if domain else await _uuid(session),
        version=session.version,
        machine=machine,
        hardware=await hardware.query(session),
        run_state=await guest_state.run_state(session),
        memory=size,
        settings=settings if domain is None else settings.of_libvirt(),
        migration=migration.status,
        blocked_reasons=migration.blocked_reasons,
        unsavable=tuple(devices.unsavable(machine, await devices.query(session))),
        read_only_memory=await memory_backends.read_only(session),
        free_fdset=fdset.free_id(fdsets),
        kept_fdsets=tuple(fdset.kept(fdsets)),
        pid=session.pid,
        process=process.identity(session.pid),
        domain=domain,
        mode=await modes.query(session),
        drives=await drives.query(session),
        footprint=await limits.footprint(session, size.total, await ram_blocks.query(session)),
    )


async def machine_type(session: Session) -> str:
    """Return the machine type as resolved (``pc`` is ``pc-i440fx-10.0``): what the stream names."""
    found = await session.execute("qom-get", {"path": "/machine", "property": "type"})
    return str(found).removesuffix("-machine")


async def memory(session: Session) -> Memory:
    """Return the sizes of the guest's RAM."""
    found = await session.execute("query-memory-size-summary")
    return Memory(int(found["base-memory"]), int(found.get("plugged-memory", 0)))


async def _uuid(session: Session) -> str | None:
    found = str((await session.execute("query-uuid"))["UUID"])
    return None if found == "00000000-0000-0000-0000-000000000000" else found


def command(pid: int | None) -> CommandPart | None:
    """Return the command line and working directory of the QEMU process, if they can be read."""
    argv = process.command_line(pid) if pid is not None else []
    if pid is None or not argv:
        return None
    try:
        executable = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        executable = argv[0]
    return {"argv": argv, "cwd": process.working_directory(pid), "executable": executable}
