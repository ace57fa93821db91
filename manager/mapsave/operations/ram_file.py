"""Start a destination whose RAM is a shared file beside the images: checkpoints can be taken of it.

The file has no name. QEMU opens it through a descriptor that it inherits (``/proc/self/fd/N``), so
the kernel frees it once no process has it open or mapped, in whichever order they die, and the file
system does when it is mounted again after a crash of the host. So none ever has to be found and
removed.

What it has is the image's, by a reflink, so the destination loads the stub alone; from an image
that cannot be shared so, QEMU reads into it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from typing import TYPE_CHECKING

from mapsave import blocking, errors, shielded, units
from mapsave.image import (
    descriptors,
    extents,
    reflink,
    reflink_probe,
    small_folios,
    spans,
    store,
    stub,
)
from mapsave.migration import stall
from mapsave.monitor import process
from mapsave.operations import answering, destination, instant, ram_file_notes, restore_labels
from mapsave.plan import instant as plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from mapsave.image.image import Image
    from mapsave.image.spans import Span
    from mapsave.image.validation import Contents
    from mapsave.key_types import Switch
    from mapsave.labels.policy import Policy
    from mapsave.operations.destination import Command, Destination

_ENDLESS = 1 << 63
_OFF = "it is off"


@dataclasses.dataclass(frozen=True)
class Source:
    """What a destination is started by and from; ``instant`` is the setting of that name."""

    argv: Sequence[str]
    opened: Image
    contents: Contents
    instant: Switch


@dataclasses.dataclass(frozen=True)
class Decision:
    """Whether RAM becomes a file in ``directory``: how, or ``why_not`` where that was wanted.

    ``mapped`` is what the file shares with the image; ``why_read`` says why it is nothing.
    ``is_demanded``: it must be such a file.
    """

    directory: str = ""
    mapping: plan.Mapping | None = None
    mapped: tuple[stub.Mapped, ...] = ()
    why_read: tuple[str, ...] = ()
    why_not: str = ""
    is_demanded: bool = False

    @property
    def parts(self) -> list[Span]:
        """The parts of the file that are RAM: those of the image."""
        placed = self.mapping.placed if self.mapping is not None else ()
        return spans.joined((each.block.pages_offset, each.block.end) for each in placed)

    @property
    def bytes(self) -> int:
        """How much RAM is in the file."""
        return sum(end - start for start, end in self.parts)


def decide(setting: Switch, source: Source, images: Path) -> Decision:
    """Decide for a destination that a command starts; ``images`` is the image directory. Blocks.

    Raises NoCheckpoint where ``on`` was asked for and it cannot be; NotInstant where an instant
    restore was, and RAM would be read; TruncatedImage, UnreadableImage.
    """
    if setting == "off":
        return Decision()
    mapping, reasons = plan.plan(source.argv, source.contents, shares=True)
    if mapping is not None:
        try:
            with store.directory(images) as held:
                found = Decision(held.path, mapping, is_demanded=setting == "on")
                if (why_not := _obstacle(held, found.bytes)) is None:
                    return _filled(found, source, held)
                reasons = [why_not]
        except (errors.BadDirectory, errors.NotPermitted) as error:
            reasons = [error.message]
    words = "; ".join(reasons)
    if setting == "on":
        raise errors.NoCheckpoint(
            f"the guest's RAM cannot be a shared file beside the images: {words}",
            hint="with 'memory: {shared_file: auto}' it is as its launch: says then",
            reasons=reasons,
        )
    return Decision(why_not=words)


def _obstacle(held: store.Directory, size: int) -> str | None:
    """Return why there can be no such file in the directory, of so many bytes of RAM."""
    if reflink.file_system(held.fd) is None:
        return f"{held.path!r} is not on XFS or btrfs, so images there cannot share it"
    try:
        reflink_probe.probe(held.fd, held.fd)
    except OSError as error:
        return f"no file in {held.path!r} can share its blocks with an image: {error.strerror}"
    # Each page that the guest changes needs a block of its own; where there is none QEMU is killed.
    free = held.free_bytes()
    if free >= size:
        return None
    needed, there = units.format_size(size), units.format_size(free)
    return f"{held.path!r}: {there} free, {needed} needed: as much as the guest can change of it"


def _filled(found: Decision, source: Source, held: store.Directory) -> Decision:
    """Return the decision with what the file shares with the image, or why that is read."""
    assert found.mapping is not None
    mapped: tuple[stub.Mapped, ...] = ()
    opened = source.opened
    with descriptors.reading(opened.path):
        reasons = [_OFF] if source.instant == "off" else _not_shared(found.parts, opened, held)
        if not reasons:
            mapped, reasons = instant.blocks(found.mapping, opened.fd)
    if reasons and source.instant == "on":
        raise errors.NotInstant(
            f"the guest's RAM cannot be a shared file of what the image has: {'; '.join(reasons)}",
            hint="with --instant auto a restore reads the image then",
            reasons=reasons,
        )
    return dataclasses.replace(found, mapped=mapped, why_read=tuple(reasons))


def _not_shared(parts: list[Span], opened: Image, held: store.Directory) -> list[str]:
    """Return why an image cannot share its RAM with a file in the directory, if it cannot."""
    block = reflink.block_size(held.fd)
    if any(start % block or end % block for start, end in parts):
        return [f"RAM does not begin and end at multiples of {block} bytes in the image"]
    try:
        with descriptors.unnamed(held.fd) as target:
            reflink.share(opened.fd, parts[0][0], block, target, 0)
    except OSError as error:
        return [f"the image cannot share its blocks with a file in {held.path!r}: {error.strerror}"]
    return []


@contextlib.asynccontextmanager
async def launched(
    command: Command, decision: Decision, opened: Image, policy: Policy, state: Path
) -> AsyncIterator[Destination]:
    """Start a destination with such a file as its RAM; end it unless it was kept.

    The file has the label of ``policy`` for it. Raises as ``destination.launched`` does,
    LaunchFailed also where there is no such file, LabelRefused and its kin.
    """
    mapping = decision.mapping
    assert mapping is not None
    async with contextlib.AsyncExitStack() as started:
        async with contextlib.AsyncExitStack() as making:
            try:
                fd = await making.enter_async_context(
                    shielded.entered(_made(decision, opened, command), seconds=_limit(decision))
                )
                name = os.path.join(decision.directory, "(the RAM of the guest)")
                await shielded.in_time(restore_labels.give, policy, opened, fd, name)
                await _fill(decision, fd)
            except OSError as error:
                raise errors.LaunchFailed(
                    f"a file for the guest's RAM cannot be made in {decision.directory!r}: "
                    f"{error.strerror}"
                ) from None
            with descriptors.inherited(fd) as number:
                argv = mapping.arguments(path := f"{instant.PATH}{number}")
                inheriting = dataclasses.replace(command, argv=argv, inherited=(number,))
                target = await started.enter_async_context(destination.launched(inheriting))
            called = process.command_line(target.identity[0]) if target.identity else []
            await _lives_on(target, decision, opened, fd)
        work = f"note in {str(state)!r} how the guest is started"
        with errors.explained(work, state, os.W_OK | os.X_OK, otherwise=errors.LaunchFailed):
            before = mapping.undone(called, path)
            await shielded.in_time(ram_file_notes.note, state, target.identity, before)
        target.mapped, target.has_ram_file = decision.mapped, True
        target.why_not_instant = decision.why_read
        yield target


def _limit(decision: Decision) -> float:
    return stall.limit(decision.bytes)


@contextlib.contextmanager
def _made(decision: Decision, opened: Image, command: Command) -> Iterator[int]:
    """Make the file, of QEMU's user, with what it shares with the image; yield its descriptor.

    RAM is in the same place as in the image. Raises OSError, BadDirectory, NotPermitted.
    """
    uid = instant.uid_of(plan.user(command.argv))
    with store.directory(decision.directory) as held, descriptors.unnamed(held.fd) as fd:
        if uid is not None:
            os.fchown(fd, uid, -1)
        os.ftruncate(fd, decision.parts[-1][1])
        for block in (each.block for each in decision.mapped):
            start = block.pages_offset
            reflink.share(opened.fd, start, block.used_length, fd, start)
        yield fd


async def _fill(decision: Decision, fd: int) -> None:
    """Fill the page cache of the file, as far as memory is free. Raises OSError."""
    if not small_folios.are_needed(reflink.file_system(fd)):
        return
    stop = threading.Event()
    most = process.available_bytes()
    try:
        await blocking.within(_limit(decision), small_folios.fill, fd, decision.parts, most, stop)
    finally:
        stop.set()


async def _lives_on(target: Destination, decision: Decision, opened: Image, fd: int) -> None:
    """See that a destination has the file as its RAM, as it was made. Raises LaunchFailed."""
    if target.identity is None:
        raise errors.LaunchFailed("the process of the destination is not in sight")
    assert decision.mapping is not None
    placed = [stub.Mapped(each.block) for each in decision.mapping.placed]
    pid, directory = target.identity[0], decision.directory
    await answering.within(directory, instant.check_mapped, pid, fd, placed)
    try:
        await blocking.within(_limit(decision), _check_unchanged, decision, opened.fd, fd)
    except OSError as error:
        raise errors.LaunchFailed(
            f"cannot see whether QEMU has changed the guest's RAM file: {error.strerror}"
        ) from None


def _check_unchanged(decision: Decision, image: int, fd: int) -> None:
    """Raise LaunchFailed where the file is not what the image has: the stub puts nothing right.

    What two files share is never overwritten in its place: what was written is elsewhere. OSError.
    """
    os.fdatasync(fd)
    for block in (each.block for each in decision.mapped):
        span = (block.pages_offset, block.end)
        if _places(fd, span) != _places(image, span):
            raise errors.LaunchFailed(
                f"the machine writes to RAM block {block.name!r} before it is loaded"
            )


def _places(fd: int, span: Span) -> list[extents.Extent]:
    """Return where a part of a file is on the disk, in as few extents as can be."""
    start, end = span
    sure, unsure = extents.places(fd, start, end)
    return spans.without([*sure, *unsure], [(0, start), (end, _ENDLESS)])
