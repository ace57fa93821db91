"""What a QEMU says of the guest it runs: asked once, before anything is touched."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mapsave import errors, together
from mapsave.image.metadata import CommandPart, HardwarePart
from mapsave.migration import guest_state, parameters, run_states
from mapsave.monitor import fdset, process, ram_blocks
from mapsave.monitor.ram_blocks import RamBlock
from mapsave.monitor.session import Session, Version
from mapsave.operations import (
    devices,
    drives,
    in_use,
    known_machines,
    limits,
    memory_backends,
    modes,
    ram_file_notes,
)

if TYPE_CHECKING:
    from mapsave.monitor.domain import Domain

OLDEST_QEMU = (9, 1, 0)


@dataclasses.dataclass(frozen=True)
class Facts:
    """One guest as its QEMU describes it, and libvirt where it is one of libvirt's.

    ``process`` is QEMU's pid and start time, which stays unique when the pid is given away again.
    ``blocked_reasons`` are QEMU's own, ``unsavable`` what it does not tell.
    ``free_fdset`` can be taken for a save; QEMU has not released ``kept_fdsets`` of earlier ones.
    ``lives_on`` is the image that the guest's RAM is mapped from; ``started_as`` what its command
    line would be without a RAM file of ours.
    """

    name: str | None
    uuid: str | None
    version: Version
    machine: str
    hardware: HardwarePart | None
    run_state: str
    memory: ram_blocks.Memory
    settings: parameters.Settings
    migration: str
    blocked_reasons: tuple[str, ...]
    unsavable: tuple[devices.Reason, ...]
    read_only_memory: tuple[str, ...]
    backends: tuple[memory_backends.Backend, ...]
    free_fdset: int
    kept_fdsets: tuple[int, ...]
    pid: int | None
    process: tuple[int, int] | None
    domain: Domain | None
    mode: modes.Mode
    drives: tuple[drives.Drive, ...]
    blocks: dict[str, RamBlock]
    footprint: limits.Footprint
    lives_on: in_use.User | None = None
    started_as: tuple[str, ...] | None = None

    @property
    def command(self) -> CommandPart | None:
        """QEMU's command line and working directory, as far as they can be read.

        As it would be where mapsave has rewritten it, to map RAM from a file.
        """
        return command(self.pid, self.lives_on.argv if self.lives_on else self.started_as)

    @property
    def cpu(self) -> str | None:
        """The type of the guest's processors; None for a machine without any."""
        return self.hardware["model"] if self.hardware else None

    @property
    def runs(self) -> bool:
        """Whether the guest's processors run."""
        return run_states.of(self.run_state).runs


async def gather(session: Session, state: Path) -> Facts:
    """Ask QEMU what the state directory does not say of such a one.

    Raises TooOld where it lacks what we ask, Unreachable where it stops answering.
    """
    if session.version.release < OLDEST_QEMU:
        raise errors.TooOld(
            f"{session.address}: QEMU {session.version}; saving to descriptors needs 9.1 or later",
            hint="older versions truncate the whole file, including its header",
        )
    with answering():
        return await _gather(session, state)


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Raise Unreachable where QEMU stops answering before anything is touched."""
    try:
        yield
    except (errors.MonitorLost, errors.MonitorTimeout) as error:
        raise errors.Unreachable(error.message) from None


async def _gather(session: Session, state: Path) -> Facts:
    async with together.group() as tasks:
        ask = tasks.create_task
        # First of all: of a QEMU without a machine it says so.
        asked_migration = ask(modes.migration(session))
        identity = ask(_identity(session))
        settings = ask(parameters.query(session))
        memory_size = ask(ram_blocks.memory(session))
        fdsets = ask(fdset.query(session))
        asked_machine = ask(known_machines.query(session, state))
        run_state = ask(guest_state.run_state(session))
        blocks = ask(ram_blocks.query(session))
        asked_backends = ask(memory_backends.query(session))
        footprint = ask(limits.footprint(session, memory_size, blocks))
        mode = ask(modes.query(session))
        opened = ask(drives.query(session))
        found_devices = ask(devices.query(session))
    domain, name, uuid = identity.result()
    found, machine = settings.result(), asked_machine.result()
    migration, backends = asked_migration.result(), asked_backends.result()
    return Facts(
        name=name,
        uuid=uuid,
        version=session.version,
        machine=machine.type,
        hardware=machine.hardware,
        run_state=run_state.result(),
        memory=memory_size.result(),
        settings=found if domain is None else found.of_libvirt(),
        migration=migration.status,
        blocked_reasons=migration.blocked_reasons,
        unsavable=tuple(devices.unsavable(machine.type, found_devices.result())),
        read_only_memory=memory_backends.read_only(backends, blocks.result()),
        backends=tuple(backends),
        free_fdset=fdset.free_id(fdsets.result()),
        kept_fdsets=tuple(fdset.kept(fdsets.result())),
        pid=session.pid,
        process=process.identity(session.pid),
        domain=domain,
        mode=mode.result(),
        drives=opened.result(),
        blocks=blocks.result(),
        footprint=footprint.result(),
        lives_on=in_use.of_process(state, process.identity(session.pid)),
        started_as=ram_file_notes.argv(state, process.identity(session.pid)),
    )


async def _identity(session: Session) -> tuple[Domain | None, str | None, str | None]:
    """Return the guest's domain, if libvirt has it, its name and its uuid."""
    if (domain := await session.domain()) is not None:
        return domain, domain.name, domain.uuid
    async with together.group() as tasks:
        name = tasks.create_task(session.execute("query-name"))
        uuid = tasks.create_task(_uuid(session))
    return None, name.result().get("name"), uuid.result()


async def _uuid(session: Session) -> str | None:
    found = str((await session.execute("query-uuid"))["UUID"])
    return None if found == "00000000-0000-0000-0000-000000000000" else found


def command(pid: int | None, started_as: Sequence[str] | None = None) -> CommandPart | None:
    """Return the command line and working directory of the QEMU process, if they can be read.

    ``started_as`` is what the command line would be, where it is another.
    """
    argv = process.command_line(pid) if pid is not None else []
    if pid is None or not argv:
        return None
    try:
        executable = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        executable = argv[0]
    argv = list(started_as) if started_as is not None else argv
    return {"argv": argv, "cwd": process.working_directory(pid), "executable": executable}
