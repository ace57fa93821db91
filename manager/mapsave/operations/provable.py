"""Whether an image of a guest can be proven, and by which command: asked before the save.

The guest's own command line is what a restore would use: that of the configuration, else that of
its process, be it libvirt's.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mapsave import errors, units
from mapsave.config import Config, Guest, SaveSettings
from mapsave.labels.policy import Policy
from mapsave.monitor import process, process_memory
from mapsave.operations import attach, launch
from mapsave.operations.destination import Command
from mapsave.operations.facts import Facts
from mapsave.proof import command_line, confinement, taps


@dataclasses.dataclass(frozen=True)
class Means:
    """What a guest's image is loaded by: as its command line is rewritten to be thrown away.

    ``contexts`` are those that its QEMU runs in, ``policy`` is that of its images.
    """

    config: Config
    command: Command
    start: command_line.Start
    contexts: Mapping[str, str]
    policy: Policy

    def kept(self) -> confinement.Kept:
        """Return how a throwaway QEMU is confined. Raises NotProvable. Blocks."""
        if self.start.is_emulated:
            return confinement.Kept()
        argv, named = confinement.unwrapped(self.command.argv)
        at = command_line.program_at(argv)
        program = self.start.program if at == 0 and self.start.program else argv[0]
        return confinement.of({**self.contexts, **named}, self.policy, program)


def means(config: Config, guest: Guest, found: Facts, policy: Policy) -> Means:
    """Return what an image of the guest is proven by. Raises NotProvable."""
    variables, log = launch.environment(config, guest), Path(os.devnull)
    if guest.emulator is not None:
        socket = attach.socket_path(guest, config)
        argv = attach.emulator_command(guest, socket)
        command = Command(argv, socket, log, attach.emulator_environment(guest, config))
        return Means(config, command, command_line.Start(is_emulated=True), {}, policy)
    contexts = confinement.contexts_of(found.pid)
    if guest.launch and guest.qmp is not None:
        command = Command(guest.launch, str(guest.qmp), log, variables)
        return Means(config, command, command_line.Start(), contexts, policy)
    known = found.command
    if known is None or found.pid is None:
        raise errors.NotProvable("the image cannot be proven: its QEMU's process is not in sight")
    command = Command(known["argv"], "", log, variables, known["cwd"])
    program = known["executable"]
    if shutil.which(program) is None:  # another version has been installed since
        program = known["argv"][0]
    start = command_line.Start(program=program, user=_user(found.pid))
    return Means(config, command, start, contexts, policy)


def _user(pid: int) -> str | None:
    """Return what ``-run-with user=`` takes for another user than ours; None where it is ours."""
    status = process.status(pid)
    uid, gid = (status.get(name, "").split() for name in ("Uid", "Gid"))
    if not uid or not gid or int(uid[0]) == os.geteuid():
        return None
    return f"{uid[0]}:{gid[0]}"


def check_becoming(user: str) -> None:
    """Raise NotProvable where a QEMU that we start could not become another user."""
    if not process.has_capability(process.SETUID, process.status(os.getpid())):
        raise errors.NotProvable(
            f"the image cannot be proven: its QEMU is of user {user}, and mapsave may start none "
            "that becomes that user (CAP_SETUID)",
            hint="for mapsaved see docs/systemd.md",
        )


def check(given: Means, found: Facts, settings: SaveSettings) -> str:
    """Return how an image would be proven; touch nothing. Raises NotProvable. Blocks."""
    replaced: tuple[str, ...] = ()
    if given.start.user is not None:
        check_becoming(given.start.user)
    if not given.start.is_emulated:
        argv, cwd, names = given.command.argv, given.command.cwd, list(found.blocks)
        with taps.taps() as null:
            made = command_line.rewritten(argv, given.start, cwd=cwd, blocks=names, tap=null.make)
        replaced = made.replaced
    kept = given.kept()
    room = process.committable_bytes()
    if room is not None and room < found.memory.total:
        raise errors.NotProvable(
            "the image cannot be proven: the host reserves all memory that is asked for "
            f"(vm.overcommit_memory=2), and has {units.format_size(room)} left for the "
            f"{units.format_size(found.memory.total)} of another such QEMU",
            hint="free memory, or set vm.overcommit_memory to 0",
        )
    if settings.prove == "pages":
        _check_readable(found)
    also = f"; {len(replaced)} backends become null ones" if replaced else ""
    confined = f", {words}" if (words := kept.words()) else ""
    return f"can be loaded into a QEMU that is thrown away{confined}{also}"


def _check_readable(found: Facts) -> None:
    """Raise NotProvable where the guest's RAM cannot be read."""
    why = "its QEMU's process is not in sight"
    places = [block.address for block in found.blocks.values()]
    if found.pid is not None:
        why = "QEMU does not report where it is"
    if found.pid is not None and places and None not in places:
        try:
            process_memory.read(found.pid, [(int(places[0] or 0), 1)])
            return
        except OSError as error:
            why = str(error.strerror)
    raise errors.NotProvable(
        f"the image's pages cannot be compared with the guest's RAM: {why}",
        hint="run mapsave as root, or as the user of its QEMU; or use --prove load",
    )
