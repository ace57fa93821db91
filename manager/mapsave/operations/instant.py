"""Start a destination that maps its RAM from the image, or say why it reads the image instead.

QEMU opens the image again through a descriptor that it inherits (``/proc/self/fd/N``): its user
needs leave to read the file, but none for the directories. That is all it needs it for, so leave is
given until it has started. Of a file that is mapped nothing more is read at the load than the stub.
"""

import contextlib
import dataclasses
import errno
import os
import pwd
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

from mapsave import errors, instant_names, shielded, units
from mapsave.image import acl, descriptors, holes, stub, syscalls
from mapsave.image.descriptors import Pair
from mapsave.image.image import Image
from mapsave.image.mapped_ram import RamBlock
from mapsave.image.validation import Contents
from mapsave.key_types import Switch
from mapsave.monitor import mappings, process
from mapsave.operations import answering, destination, in_use, turns
from mapsave.operations.destination import Command, Destination
from mapsave.plan import instant as plan

# Stale pages become memory of the guest's own.
_MOST_STALE = 256 * units.MIB
_HANGS = OSError(errno.ETIMEDOUT, "its storage does not answer")
_OFF = "it is off"
PATH = "/proc/self/fd/"
_HINTS = {
    "Permission denied": "QEMU's user must be able to read the image (setfacl -m u:USER:r IMAGE); "
    "SELinux must allow it to open, read and map the file, AppArmor to read its path",
    "No such file": "a program of the launch command closes descriptors, as sudo does",
}


@dataclasses.dataclass(frozen=True)
class Decision:
    """Whether RAM is mapped: how, and what; or ``why_not``. ``is_demanded``: or not at all."""

    mapping: plan.Mapping | None = None
    mapped: tuple[stub.Mapped, ...] = ()
    why_not: tuple[str, ...] = ()
    is_demanded: bool = False


def not_launched(setting: Switch, what: str) -> Decision:
    """Return the decision for a destination that mapsave does not start by a command.

    Raises NotInstant.
    """
    return _not(setting, [_OFF] if setting == "off" else [f"{what} reads the image"])


def decide(setting: Switch, command: Command, opened: Image, contents: Contents) -> Decision:
    """Decide for a destination that ``command`` starts. Blocks.

    Raises NotInstant where ``on`` was asked for, TruncatedImage, UnreadableImage.
    """
    if setting == "off":
        return _not(setting, [_OFF])
    mapping, reasons = plan.plan(command.argv, contents)
    return decided(setting, mapping, reasons, opened)


def decided(
    setting: Switch, mapping: plan.Mapping | None, reasons: list[str], opened: Image
) -> Decision:
    """Return the decision where RAM could be mapped but for ``reasons``. Raises as ``decide``."""
    with descriptors.reading(opened.path):
        if syscalls.file_system_type(opened.fd) not in plan.FILE_SYSTEMS:
            known = ", ".join(plan.FILE_SYSTEMS.values())
            reasons.insert(0, f"the image's file system is none of {known}")
        if mapping is None or reasons:
            return _not(setting, reasons)
        mapped, reasons = blocks(mapping, opened.fd)
    if reasons:
        return _not(setting, reasons)
    return Decision(mapping, mapped, is_demanded=setting == "on")


def blocks(mapping: plan.Mapping, fd: int) -> tuple[tuple[stub.Mapped, ...], list[str]]:
    """Return what a destination maps of the image ``fd``, and why it must not. Blocks."""
    mapped, left = [], _MOST_STALE
    for placed in mapping.placed:
        runs = _stale(fd, placed.block, left)
        left -= sum(pages for _, pages in runs) * placed.block.page_size
        has_alias = placed.id == instant_names.alias(placed.block.name)
        mapped.append(stub.Mapped(placed.block, runs, has_alias))
    if left >= 0:
        return tuple(mapped), []
    most = units.format_size(_MOST_STALE)
    return (), [f"the file has more than {most} of pages that became zeros in a live save"]


def _stale(fd: int, block: RamBlock, most: int) -> tuple[tuple[int, int], ...]:
    """Return the stale runs of a block, as far as they have hardly more bytes than ``most``."""
    found: list[tuple[int, int]] = []
    for run in holes.stale(fd, block):
        found.append(run)
        most -= run[1] * block.page_size
        if most < 0:
            break
    return tuple(found)


def _not(setting: Switch, reasons: list[str]) -> Decision:
    if setting == "on":
        raise errors.NotInstant(
            f"RAM cannot be mapped from the image: {'; '.join(reasons)}",
            hint="with --instant auto a restore reads the image then; clones cannot do without",
            reasons=reasons,
        )
    return Decision(why_not=tuple(reasons))


@dataclasses.dataclass(frozen=True)
class Start:
    """What a destination is started for: the image, its ``guest``, and where users are noted.

    ``on_acl`` records how the image's ACL is restored, ``on_link`` a link to the image, before
    either is made; ``on_acl_left`` reports why the ACL could not be restored, ``on_left`` that
    ``mapsave recover`` has something to do; all of these in any thread. ``labelled`` is entered
    while QEMU opens the image.
    """

    opened: Image
    contents: Contents
    guest: str
    state: Path
    on_acl: Callable[[bytes], None]
    on_acl_left: Callable[[OSError], None]
    on_link: Callable[[str], None]
    on_left: Callable[[], None]
    labelled: Callable[[], contextlib.AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def launched(
    command: Command, decision: Decision, start: Start
) -> AsyncIterator[Destination]:
    """Start a destination as was decided; end it unless it was kept.

    Where QEMU does not take the mapping, and it was not demanded, it is started again to read the
    image. Raises as ``destination.launched`` does.
    """
    why_not = decision.why_not
    async with contextlib.AsyncExitStack() as stack:
        if decision.mapping is not None:
            try:
                target = await stack.enter_async_context(_mapping(command, decision, start))
            except errors.NotPermitted as error:  # a security module would refuse it
                if decision.is_demanded:
                    raise
                why_not = (error.message,)
            except errors.LaunchFailed as error:
                if decision.is_demanded:
                    raise _explained(error) from None
                # Whatever it was: a QEMU that is confined cannot even print that it was refused.
                why_not = (f"QEMU cannot map it: {error.message}",)
            else:
                yield target
                return
        target = await stack.enter_async_context(destination.launched(command))
        target.why_not_instant = why_not
        yield target


@contextlib.asynccontextmanager
async def _mapping(
    command: Command, decision: Decision, start: Start
) -> AsyncIterator[Destination]:
    mapping = decision.mapping
    assert mapping is not None
    async with contextlib.AsyncExitStack() as started:
        uid = uid_of(plan.user(command.argv))
        with descriptors.inherited(start.opened.fd) as fd:
            async with start.labelled(), readable(start.opened.fd, uid, start):
                argv = mapping.arguments(path := f"{PATH}{fd}")
                inheriting = dataclasses.replace(command, argv=argv, inherited=(fd,))
                target = await started.enter_async_context(destination.launched(inheriting))
        called = process.command_line(target.identity[0]) if target.identity is not None else []
        await lives_on(target, decision, start, mapping.undone(called, path))
        yield target


async def lives_on(
    target: Destination, decision: Decision, start: Start, argv: Sequence[str]
) -> None:
    """See that a destination maps what was decided, and note that it does, durably.

    ``argv`` is its command line as it would be without that. Raises LaunchFailed.
    """
    if target.identity is None:
        raise errors.LaunchFailed(
            "the process of the destination is not in sight: the memory that it maps could "
            "not be protected"
        )
    fd = start.opened.fd
    directory = os.path.dirname(start.opened.path)
    pid, _ = target.identity
    await answering.within(directory, check_mapped, pid, fd, decision.mapped)
    user = in_use.User(
        guest=start.guest,
        image=await answering.within(directory, os.path.realpath, start.opened.path),
        uuid=str(start.opened.block.uuid),
        inode=os.fstat(fd).st_ino,
        pid=target.identity[0],
        started=target.identity[1],
        data_bytes=start.contents.data_bytes,
        end=max(each.block.end for each in decision.mapped),
        argv=tuple(argv),
    )
    work = f"note in {str(start.state)!r} that the image is in use"
    need = os.W_OK | os.X_OK
    with errors.explained(work, start.state, need, otherwise=errors.LaunchFailed):
        await shielded.in_time(in_use.note, start.state, user)
    target.mapped = decision.mapped


def check_mapped(pid: int, fd: int, mapped: Sequence[stub.Mapped]) -> None:
    """Raise LaunchFailed unless a process maps all of these blocks of a file, and changed none.

    What starts QEMU may have another file by the number of our descriptor, and of what a machine
    writes to its memory before it is loaded the stub puts nothing right.
    """
    work = "look what QEMU maps"
    with errors.explained(work, f"/proc/{pid}/smaps", otherwise=errors.LaunchFailed):
        parts = mappings.of_file(pid, mappings.File.of(fd))
    for block in (each.block for each in mapped):
        here = [each for each in parts if each.offset < block.end and each.end > block.pages_offset]
        covered = sum(min(e.end, block.end) - max(e.offset, block.pages_offset) for e in here)
        if covered != block.used_length or any(each.changed for each in here):
            raise errors.LaunchFailed(
                f"the memory of QEMU's RAM block {block.name!r} is not just what the image has"
            )


@contextlib.asynccontextmanager
async def readable(fd: int, uid: int | None, start: Start) -> AsyncIterator[None]:
    """Let a user read the image while QEMU starts; where that cannot be, QEMU says so.

    Clones of one image take turns: what one found as the ACL before is what no other had changed.
    Raises Busy where its turn does not come, BadDirectory where the image's storage hangs.
    """
    directory = os.path.dirname(start.opened.path)
    if uid is None or await answering.within(directory, acl.may_read, fd, uid):
        yield
        return
    opened = start.opened
    letting_in = acl.readable(fd, uid, start.on_acl, start.on_acl_left)
    async with (
        turns.taken(start.state, "ACL", opened.block.uuid),
        contextlib.AsyncExitStack() as stack,
    ):
        try:
            with answering.reported(os.path.dirname(opened.path)):
                await stack.enter_async_context(
                    shielded.entered(letting_in, lambda _: start.on_acl_left(_HANGS))
                )
        except OSError as error:
            if not acl.refuses(error):
                raise
        yield


def uid_of(user: str | None) -> int | None:
    """Return the uid of a user by name or number; None for none, or one who is not known."""
    if user is None or user.isdecimal():
        return None if user is None else int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None  # the launch command says so


def _explained(error: errors.LaunchFailed) -> errors.LaunchFailed:
    hint = next((hint for words, hint in _HINTS.items() if words in error.message), error.hint)
    return errors.LaunchFailed(error.message, hint=hint)


@contextlib.contextmanager
def paired(
    opened: Image, contents: Contents, target: Destination, *, direct_io: bool
) -> Iterator[Pair]:
    """Make the pair that QEMU loads from: of the image, or of its stub where its RAM is mapped.

    Raises as ``descriptors.paired`` and ``stub.made`` do.
    """
    with contextlib.ExitStack() as stack:
        fd = opened.fd
        if target.mapped:
            with descriptors.reading(opened.path):
                fd = stack.enter_context(stub.made(opened.fd, contents.stream, target.mapped))
        yield stack.enter_context(
            descriptors.paired(fd, os.O_RDONLY, direct_io=direct_io and not target.mapped)
        )
