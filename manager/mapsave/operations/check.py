"""Preflight: everything that would make a save fail, asked before the guest is touched.

Each check is one small function that raises what it finds. A save stops at the first; the command
``mapsave check`` runs all of them and lists the outcome.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

from mapsave import errors, units
from mapsave.config import Config, Guest
from mapsave.image import partial_names, store
from mapsave.labels.labelling import Labelling
from mapsave.migration import parameters, run_states
from mapsave.migration.status import IDLE
from mapsave.monitor import process
from mapsave.operations import (
    amplification,
    domain_check,
    drives,
    in_use,
    kept,
    learning,
    modes,
    replacing,
    save_request,
    shared_ram,
    trust,
)
from mapsave.operations import limits as qemu_limits
from mapsave.operations.facts import Facts
from mapsave.operations.save_request import Request
from mapsave.operations.shared_ram import SharedRam
from mapsave.plan import strategy
from mapsave.plan.planner import Learned

if TYPE_CHECKING:
    from mapsave.operations import provable

# Every RAM block starts at a multiple of 1 MiB after its bitmap, and there is device state.
_OVERHEAD = 64 * units.MIB


@dataclasses.dataclass
class Preflight:
    """What is to be saved where; ``strategy`` is the outcome once the checks have passed."""

    facts: Facts
    directory: store.Directory
    name: str
    request: Request
    labelling: Labelling
    config: Config
    guest: Guest
    kept: str | None = None
    direct_io_refusal: str | None = None
    most_channels: strategy.Most | None = None
    learned: Learned | str | None = None
    shared_ram: SharedRam | None = None  # of which a checkpoint is taken
    no_checkpoint: str | None = None  # why none is taken, though one would have been

    @classmethod
    def of(
        cls,
        config: Config,
        guest: Guest,
        found: Facts,
        held: store.Directory,
        name: str,
        request: Request,
    ) -> Preflight:
        """Return what is to be checked. Raises LabelUnavailable."""
        labels = save_request.policy_labelling(request.policy, found.domain)
        known = kept.known(config.state, found.process)
        return cls(found, held, name, request, labels, config, guest, known)

    @property
    def means(self) -> provable.Means:
        """What the image can be proven by. Raises NotProvable."""
        from mapsave.operations import provable  # which a save loads where that is asked for

        return provable.means(self.config, self.guest, self.facts, self.labelling.policy)

    async def learn(self, config: Config, *, measures: bool) -> None:
        """Learn what the strategy is planned from; with ``measures`` as ``learning.learn`` does."""
        self.learned = await learning.learn(
            config, self.facts, self.directory, self.request, measures=measures
        )

    def strategy(self, shared: strategy.Most | None = None) -> strategy.Strategy:
        """Choose how to save; ``shared``: how many channels are left where other guests are."""
        if self.shared_ram is not None:
            return strategy.of_checkpoint()
        limits = (most for most in (self.most_channels, shared) if most is not None)
        found = strategy.choose(
            self.request.settings,
            bandwidth=self.request.bandwidth,
            direct_io_refusal=self.direct_io_refusal,
            most=min(limits, key=lambda most: most.channels, default=None),
            learned=self.learned,
        )
        if self.no_checkpoint is not None:
            found.reasons["method"] = self.no_checkpoint
        return found


def run_state(found: Preflight) -> str:
    """The guest is in a run state from which it can be saved and restored."""
    state = found.facts.run_state
    known = run_states.of(state)
    if known.refusal is not None:
        raise errors.WrongRunState(
            f"the guest cannot be saved in run state {state!r}: {known.refusal}",
            hint=known.hint,
            run_state=state,
        )
    return state


def migration(found: Preflight) -> str:
    """QEMU is not migrating or saving already."""
    # A status that is not known to us is one of a migration in progress: QEMU 11 has new ones.
    if found.facts.migration not in IDLE:
        raise errors.AlreadyMigrating(
            f"QEMU is already migrating ({found.facts.migration}) for another client",
            hint="wait until it has finished; if a mapsave process died, run 'mapsave recover'",
        )
    return "none in progress"


def let_go(found: Preflight) -> str:
    """QEMU keeps nothing of an earlier save: a further one could abort it."""
    sets = found.facts.kept_fdsets
    if found.kept is None and not sets:
        return "QEMU has released everything of earlier saves"
    what = found.kept or f"QEMU still holds descriptor set {sets[0]}"
    raise errors.QemuKeeps(
        "this QEMU process has not released what an earlier save or restore passed to it "
        f"({what}) and could crash in another save",
        hint="it can be saved again after it was shut down and restarted",
    )


def migratable(found: Preflight) -> str:
    """No device or state of the guest prevents saving."""
    if found.facts.blocked_reasons:
        raise errors.NotMigratable(
            "QEMU cannot save this guest: " + "; ".join(found.facts.blocked_reasons),
            blocked_reasons=list(found.facts.blocked_reasons),
        )
    if found.facts.unsavable:
        raise errors.NotMigratable(
            "the guest cannot be saved: " + "; ".join(each.text for each in found.facts.unsavable),
            hint=found.facts.unsavable[0].hint,
        )
    return "no blocked reasons"


def memory(found: Preflight) -> str:
    """A QEMU can load the guest's memory."""
    if names := found.facts.read_only_memory:
        raise errors.NotMigratable(
            f"RAM blocks {', '.join(names)} are in read-only memory (readonly=on): QEMU would "
            "save them, but crash when loading them",
            hint="unplug the device, or start the guest with rom=off for that memory backend",
        )
    in_use.check_whole(found.facts.lives_on)
    return "can be loaded"


def capabilities(found: Preflight) -> str:
    """This QEMU has the capabilities and parameters that a save needs."""
    missing = parameters.missing(found.facts.settings)
    if missing:
        raise errors.MissingCapability(
            f"QEMU {found.facts.version} lacks {', '.join(missing)}", missing=missing
        )
    return f"QEMU {found.facts.version} has mapped-ram, multifd and direct-io"


def mode(found: Preflight) -> str:
    """QEMU is in no mode in which a save would kill it, or fail at its end."""
    then = found.request.then_for(runs=found.facts.runs)
    return modes.check(found.facts.mode, goes_on=then == "resume")


def disks(found: Preflight) -> str:
    """The files of the guest's disks are where QEMU has opened them."""
    return drives.check(found.facts.pid, found.facts.drives)


def limits(found: Preflight) -> str:
    """The kernel's limits on QEMU, and on mapsave, leave room for the save."""
    is_ours = found.shared_ram is not None or found.request.settings.preallocate == "on"
    preallocated = found.facts.memory.total if is_ours else 0
    qemu_limits.check_own_files(preallocated)
    limited = qemu_limits.for_save(
        found.facts.footprint,
        found.strategy().channels,
        is_demanded=found.request.settings.channels != "auto",
    )
    found.most_channels = limited.most
    return limited.detail


def image_name(found: Preflight) -> str:
    """The image's name is free, or may be replaced."""
    store.check_name(found.name)
    if found.directory.exists(found.name):
        _replaceable(found)
    partial = partial_names.partial_name(found.name)
    if found.directory.exists(partial):
        raise partial_names.partial_exists(os.path.join(found.directory.path, partial))
    return found.name


def _replaceable(found: Preflight) -> None:
    """Only files are replaced: a directory would fail the rename, after all has been written."""
    path = os.path.join(found.directory.path, found.name)
    if not found.request.replace:
        raise errors.ImageExists(
            f"{path!r} already exists", hint="choose another name, or use --replace"
        )
    try:
        mode = os.stat(found.name, dir_fd=found.directory.fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return  # removed in the meantime: the name is free
    if not stat.S_ISREG(mode):
        raise errors.ImageExists(
            f"{path!r} exists and is not a regular file, so it is not replaced",
            hint="choose another name, or remove it",
        )
    replacing.check(
        found.config.state, found.directory, found.name, found.request, found.facts.process
    )


def directory(found: Preflight) -> str:
    """The image directory can be written."""
    held = found.directory
    if os.fstatvfs(held.fd).f_flag & os.ST_RDONLY:
        raise errors.BadDirectory(f"the file system of {held.path!r} is mounted read-only")
    if not os.access(f"/proc/self/fd/{held.fd}", os.W_OK | os.X_OK):
        raise errors.denied(
            f"cannot write in {held.path!r}, which mapsave has to, not QEMU",
            held.path,
            os.W_OK | os.X_OK,
        )
    return held.path


def ownership(found: Preflight) -> str:
    """No one but the trusted users can write the image directory, or exchange it."""
    trusted = trust.users(found.labelling.policy)
    if found.request.settings.managed == "on":
        trusted |= {os.fstat(found.directory.fd).st_uid}  # whom libvirt trusts with it
    trust.check_directory(found.directory.given, trusted)
    return "writable only by uid " + ", ".join(map(str, sorted(trusted))) + " alone"


def direct_io(found: Preflight) -> str:
    """The directory takes direct writes, where they are wanted."""
    if found.request.settings.direct_io == "off":
        return "off, as requested"
    found.direct_io_refusal = found.directory.direct_io_refusal()
    if found.direct_io_refusal and found.request.settings.direct_io == "on":
        raise errors.NoDirectIO(
            f"{found.directory.path!r}: {found.direct_io_refusal}",
            hint="set direct_io to auto or off",
        )
    return found.direct_io_refusal or "taken"


def room(found: Preflight) -> str:
    """There is room for what the guest has touched of its RAM (all of it if zeros are written)."""
    if os.fstatvfs(found.directory.fd).f_blocks == 0:
        return "not reported by the file system"  # ramfs; statfs(2): what is undefined is 0
    # It is QEMU that writes, perhaps as another user than we are.
    privileged = process.may_use_reserved_blocks(found.facts.pid)
    free = found.directory.free_bytes(with_reserved=privileged)
    most = found.facts.memory.total + _OVERHEAD
    least = most
    if found.request.settings.zero_pages != "none" and found.request.settings.preallocate != "on":
        touched = process.resident_bytes(found.facts.pid) if found.facts.pid else None
        mapped = found.facts.lives_on.data_bytes if found.facts.lives_on else 0
        # QEMU itself is in the resident size as well; a few MiB of data always go to the disk.
        least = min(most, max((touched or 0) - 256 * units.MIB, mapped, 2 * units.MIB))
    figures = f"{units.format_size(free)} free, at most {units.format_size(most)} needed"
    if free < least:
        raise errors.NoRoom(
            f"{found.directory.path!r}: {figures}, likely {units.format_size(least)}",
            hint="free some space, or save to another file system",
            free_bytes=free,
            needed_bytes=least,
        )
    return figures + ("" if free >= most else " (zero pages need none)")


def checkpoint(found: Preflight) -> str:
    """The guest's RAM is in shared files whose extents the image can share."""
    try:
        shared = shared_ram.find(found.facts, found.directory)
    except errors.Refused as error:
        if found.request.settings.method == "checkpoint":
            raise
        found.no_checkpoint = f"RAM is written: {error.message}"
        return found.no_checkpoint
    found.shared_ram = shared
    return amplification.shown(found.facts, shared)


def label(found: Preflight) -> str:
    """The policy allows the directory, and the label can be had."""
    names = (partial_names.partial_name(found.name), found.name)
    wanted = found.labelling.check(found.directory.path, found.facts.pid, "save", names)
    return f"{wanted.module}: {wanted.value}" if wanted.value else wanted.module


def domain(found: Preflight) -> str:
    """libvirt is not at the guest itself, and has nothing that a save would make wrong."""
    return domain_check.check(found.facts, found.request)


def proof(found: Preflight) -> str:
    """The image can be proven, if it is to be."""
    from mapsave.operations import provable

    try:
        return provable.check(found.means, found.facts, found.request.settings)
    except errors.NotProvable as error:
        if found.request.settings.prove != "none":
            raise
        return f"not asked for; {error.message}"


CHECKS: tuple[Callable[[Preflight], str], ...] = (
    run_state,
    migration,
    let_go,
    migratable,
    memory,
    capabilities,
    mode,
    disks,
    limits,
    directory,
    ownership,
    image_name,
    direct_io,
    room,
    label,
)


def _checks(found: Preflight) -> tuple[Callable[[Preflight], str], ...]:
    checks = CHECKS if found.facts.domain is None else (domain, *CHECKS)
    if not found.request.wants_checkpoint:
        return checks
    others = [check for check in checks if check is not limits]
    place = others.index(room)
    return (*others[:place], checkpoint, limits, *others[place:])


def all_pass(found: Preflight) -> None:
    """Run the checks. Raises what the first failing one raises."""
    for check in _checks(found):
        check(found)
    if found.request.settings.prove != "none":
        proof(found)


class Line(TypedDict):
    """The outcome of one check."""

    check: str
    ok: bool
    detail: str
    error: errors.ErrorDict | None


def report(found: Preflight) -> tuple[list[Line], errors.MapsaveError | None]:
    """Run every check; return a line for each, and the first error."""
    lines: list[Line] = []
    first: errors.MapsaveError | None = None
    for check in (*_checks(found), proof):
        name = check.__name__
        try:
            lines.append({"check": name, "ok": True, "detail": check(found), "error": None})
        except errors.MapsaveError as error:
            first = first or error
            lines.append(
                {"check": name, "ok": False, "detail": error.message, "error": error.as_dict()}
            )
    return lines, first
