"""Prove an image: load it into a throwaway QEMU with the guest's own command line.

RAM is mapped from the image as by an instant restore, so it costs the same whatever its size, and
the devices' state is loaded from the stub. The guest's disks stay inactive, its processors
stopped, and what it has open is not touched (``command_line.py``); it is confined like the guest or
tighter (``confinement.py``). A throwaway QEMU is compared
with the image as the destination of a restore is, and then asked which devices it has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import TypedDict

from mapsave import blocking, errors, open_files, shielded
from mapsave.config import Config
from mapsave.image import acl, descriptors, image, stub
from mapsave.image.image import Image
from mapsave.image.validation import Contents
from mapsave.labels import labelling
from mapsave.labels.policy import Policy
from mapsave.migration import guest_state, incoming, parameters, progress, stall
from mapsave.migration.run_states import RunState
from mapsave.monitor import fdset, process
from mapsave.operations import (
    answering,
    bounds,
    destination,
    destination_choice,
    instant,
    proof_labels,
    provable,
    restore_labels,
    save_request,
    throwaway,
    trust,
)
from mapsave.operations.destination import Destination
from mapsave.operations.restore_request import Request as RestoreRequest
from mapsave.plan import instant as plan
from mapsave.proof import command_line, confinement, devices, taps

# Of a QEMU whose disks are never to be activated (qapi/migration.json).
_INACTIVE = "late-block-activate"
# Lines that QEMU prints about what does not keep it from loading.
_APART = re.compile(r": (?:warning|info): ")
_LINES = 4


class Proven(TypedDict):
    """What ``mapsave prove --json`` prints: the image could be loaded, by what, and what of it.

    ``replaced`` says which backends of the guest were null ones.
    """

    image: str
    guest: str
    proven: bool
    qemu: dict[str, str]
    machine: str
    ram_bytes: int
    devices: list[str]
    device_bytes: int
    replaced: list[str]
    resident_bytes: int | None
    duration_s: float
    phases_s: dict[str, float]
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a proof. ``program``: a QEMU to take in place of the guest's own."""

    guest: str | None = None
    program: str | None = None
    trust_recorded_command: bool = False
    trust_image: bool = False


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is proven: an image, and by what means: those that start its guest."""

    opened: Image
    contents: Contents
    guest: str
    means: provable.Means


async def prove(
    config: Config, path: str, request: Request, report: progress.Report = progress.silent
) -> Proven:
    """Prove the image at ``path``.

    Raises NotProvable or one of its kin with nothing started, InvalidImage or one of its kin;
    NotProven where the image could not be loaded.
    """
    phases = progress.Phases(report)
    async with chosen(config, path, request, phases) as subject:
        return await proven(config, subject, phases)


@contextlib.asynccontextmanager
async def chosen(
    config: Config, path: str, request: Request, phases: progress.Phases
) -> AsyncIterator[Subject]:
    """Open and validate the image at ``path``; find by what it is loaded. Raises as ``prove``."""
    phases.enter("verify")
    await answering.check(config.state, writable=True)
    async with open_files.reserved(), _opened(path) as opened:
        with descriptors.reading(path):
            async with blocking.limited(stall.limit(opened.allocated)):
                contents = await blocking.call(opened.validate)
        name = request.guest or bounds.owner(opened.metadata) or "guest"
        policy = save_request.policy_of(config, config.named(name))
        if not request.trust_image:
            trust.check_image(opened, trust.users(policy))
        yield await _subject(config, request, opened, contents, name, policy)


@contextlib.asynccontextmanager
async def _opened(path: str) -> AsyncIterator[Image]:
    with descriptors.reading(path):
        async with contextlib.AsyncExitStack() as stack:
            opened = await stack.enter_async_context(shielded.entered(image.opened(path)))
            held = stack.pop_all()
    async with held:
        yield opened


async def _subject(
    config: Config,
    request: Request,
    opened: Image,
    contents: Contents,
    name: str,
    policy: Policy,
) -> Subject:
    """Return what is proven. Raises NotProvable, NoDestination, UsageError."""
    restore = RestoreRequest(
        opened.path,
        guest=request.guest,
        trust_recorded_command=request.trust_recorded_command,
        trust_image=request.trust_image,
    )
    asked = destination_choice.Asked(
        config, restore, restore.settings(config, name), opened, contents, name
    )
    if not destination_choice.is_by_command(asked):
        from mapsave.operations import domain_contexts, prove_libvirt

        found = await answering.within(
            os.path.dirname(opened.path), destination_choice.definition_of, asked
        )
        command, start = await prove_libvirt.means(found, request.program)
        contexts = await domain_contexts.of(found.xml, found.uri, opened)
        return Subject(
            opened, contents, name, provable.Means(config, command, start, contexts, policy)
        )
    if (is_emulated := asked.guest.emulator is not None) and request.program is not None:
        raise errors.UsageError(f"--with is for guests of QEMU, and {name!r} is emulated")
    command = destination_choice.command_of(asked)
    start = command_line.Start(is_emulated, request.program)
    means = provable.Means(config, command, start, restore_labels.contexts(opened), policy)
    return Subject(opened, contents, name, means)


async def proven(config: Config, subject: Subject, phases: progress.Phases) -> Proven:
    """Load the subject into a throwaway QEMU, and look at it. Raises as ``prove`` does."""
    async with loaded(config, subject, phases) as (target, made):
        with _reasons(subject, target):
            return await _described(subject, target, phases, made)


@contextlib.asynccontextmanager
async def loaded(
    config: Config, subject: Subject, phases: progress.Phases, written: int | None = None
) -> AsyncIterator[tuple[Destination, command_line.Rewritten]]:
    """Load the subject into a throwaway QEMU, which is gone at the end. Raises as ``prove`` does.

    Yields that QEMU, and what its command line was rewritten to. ``written``: a file that it is to
    write.
    """
    phases.enter("start")
    opened = subject.opened
    directory = os.path.dirname(opened.path)
    uid = instant.uid_of(plan.user(subject.means.command.argv))
    if uid is not None and not await answering.within(directory, acl.may_read, opened.fd, uid):
        raise errors.NotProvable(
            f"the image cannot be proven: QEMU's user {uid} may not read {opened.path!r}",
            hint="setfacl -m u:USER:r IMAGE, or start QEMU as root and have it change its user "
            "(-run-with user=...)",
        )
    kept = await answering.within(directory, subject.means.kept)
    async with shielded.entered(throwaway.place(config.state, uid, kept.label)) as there:
        reading = await answering.within(directory, proof_labels.reopened, opened.fd)
        with (
            descriptors.closing(reading),
            descriptors.inherited(reading) as fd,
            taps.taps() as null,
        ):
            try:
                made = await blocking.within(blocking.ANSWER, _rewritten, subject, there, null)
            except blocking.Hangs as error:
                raise errors.NotProvable(
                    f"the image cannot be proven: the guest's disks do not answer: {error.strerror}"
                ) from None
            mapping, mapped = await answering.within(directory, _mapping, subject, made, kept)
            command = dataclasses.replace(
                subject.means.command,
                argv=mapping.arguments(f"{instant.PATH}{fd}"),
                socket=there.socket,
                log=there.log,
            )
            confined = confinement.applied(kept, there.directory, fd, command.argv, written)
            async with contextlib.AsyncExitStack() as stack:
                entry = await stack.enter_async_context(shielded.entered(confined))
                started = throwaway.running(command, there, (fd, *null.descriptors), entry)
                async with proof_labels.labelled(
                    config, subject.means.policy, opened, subject.guest, kept
                ):
                    with _reasons(subject):
                        target = await stack.enter_async_context(started)
                    with _reasons(subject, target):
                        pid = target.identity[0] if target.identity is not None else 0
                        await answering.within(directory, instant.check_mapped, pid, fd, mapped)
                target.mapped = mapped
                with _reasons(subject, target):
                    phases.enter("compare")
                    await destination.compare(
                        target, opened, subject.contents, config.state, force=False
                    )
                    phases.enter("load")
                    await _load(config, subject, target)
                yield target, made


def _rewritten(subject: Subject, there: throwaway.Place, null: taps.Taps) -> command_line.Rewritten:
    """Return the throwaway QEMU's command line. Raises NotProvable."""
    command, start = subject.means.command, subject.means.start
    if start.is_emulated:  # it has nothing but its monitor
        words = (there.socket if word == command.socket else word for word in command.argv)
        return command_line.Rewritten(tuple(words), ())
    blocks = [block.name for block in subject.contents.stream.blocks]
    argv, _ = confinement.unwrapped(command.argv)  # it is confined by ourselves
    return command_line.rewritten(argv, start, cwd=command.cwd, blocks=blocks, tap=null.make)


def _mapping(
    subject: Subject, made: command_line.Rewritten, kept: confinement.Kept
) -> tuple[plan.Mapping, tuple[stub.Mapped, ...]]:
    """Return how the throwaway QEMU maps its RAM. Raises NotProven, NotProvable."""
    placed, reasons = plan.place(made.argv, subject.contents)
    if reasons:
        raise _not_proven(subject, "; ".join(reasons))
    mapping, reasons = plan.planned(made.argv, placed, subject.contents, [])
    if mapping is not None:
        with descriptors.reading(subject.opened.path):
            mapped, reasons = instant.blocks(mapping, subject.opened.fd)
        if mapped:
            # It changes hardly any of it; but there is a policy that reserves whatever there is.
            # To reserve nothing QEMU reads the kernel's setting, which SELinux may keep from it.
            reserves = process.overcommits() == process.NEVER
            reserves = reserves or (kept.context is not None and mapping.reserves)
            return dataclasses.replace(mapping, reserves=reserves), mapped
    raise errors.NotProvable(f"the image cannot be proven: {'; '.join(reasons)}", reasons=reasons)


async def _described(
    subject: Subject,
    target: Destination,
    phases: progress.Phases,
    made: command_line.Rewritten,
) -> Proven:
    """Compare the devices of what was loaded with the image's. Raises NotProven."""
    session, contents = target.session, subject.contents
    phases.enter("devices")
    added = await devices.added(session, contents.stream.devices)
    if added is None and not subject.means.start.is_emulated:
        target.warnings.append("whether QEMU has more devices than the image could not be compared")
    elif added:
        more = f"QEMU has devices that the image does not have: {', '.join(added)}"
        # A newer one may save the state of more parts of the same machine.
        if subject.opened.metadata.get("qemu", {}).get("version") == str(session.version):
            raise _not_proven(subject, more, added=added)
        target.warnings.append(more)
    seconds = phases.seconds()
    return Proven(
        image=subject.opened.path,
        guest=subject.guest,
        proven=True,
        qemu={"version": str(session.version), "package": session.version.package},
        machine=contents.stream.machine,
        ram_bytes=contents.stream.ram_bytes,
        devices=[device.name for device in contents.stream.devices],
        device_bytes=sum(device.length for device in contents.stream.devices),
        replaced=list(made.replaced),
        resident_bytes=process.resident_bytes(session.pid) if session.pid is not None else None,
        duration_s=round(phases.total, 6),
        phases_s=seconds,
        warnings=target.warnings,
    )


async def _load(config: Config, subject: Subject, target: Destination) -> None:
    session, opened = target.session, subject.opened
    found, sets = await parameters.query(session), await fdset.query(session)
    watch = stall.Watch(config.restore.stall, subject.contents.used_bytes, lambda: session.pid)

    def dropped(words: str) -> errors.LabelRefused:
        return labelling.describe_refusal(words, opened.fd, opened.path, session.pid)

    paired = instant.paired(opened, subject.contents, target, direct_io=False)
    wanted = {"direct-io": False, "multifd-channels": 1}
    async with (
        shielded.entered(paired) as pair,
        parameters.configured(session, found, wanted, is_fresh=True),
        fdset.handed_over(session, (pair.first, pair.second), fdset.free_id(sets), dropped) as path,
    ):
        if _INACTIVE in found.capabilities:  # the emulator has no disks
            states = [{"capability": _INACTIVE, "state": True}]
            await session.execute("migrate-set-capabilities", {"capabilities": states})
        await incoming.restore(session, path, opened.block.stream_offset, watch)
        await guest_state.left(session, RunState.INMIGRATE)


@contextlib.contextmanager
def _reasons(subject: Subject, target: Destination | None = None) -> Iterator[None]:
    """Turn what a restore would fail of into NotProven, with QEMU's own reason."""
    try:
        yield
    except errors.NotProven:
        raise
    except errors.RestoreStalled as error:
        raise errors.ProofStalled(
            f"{subject.opened.path!r} could not be proven: {error.message}", hint=error.hint
        ) from None
    except (
        errors.DestinationMismatch,
        errors.DestinationNotZero,
        errors.MissingCapability,
        errors.OlderQemu,
        errors.TooOld,
    ) as error:
        raise _not_proven(subject, error.message, found=error.as_dict()) from None
    except (errors.LaunchFailed, errors.RestoreFailed, errors.MonitorError) as error:
        words = _words(target.words()) if target is not None else ""
        said = str(error.data.get("qemu_error", error.message))
        if isinstance(error, errors.MonitorLost):
            said = "QEMU exited while it loaded the image"
        reason = f"{said} ({words})" if words and words not in said else said
        raise _not_proven(subject, reason, qemu=words or said) from None


def _words(text: str) -> str:
    """Return why QEMU did not load, of what it has printed."""
    lines = [line for line in text.splitlines() if line and not _APART.search(line)]
    return "; ".join(lines[:_LINES])


def _not_proven(subject: Subject, reason: str, **data: object) -> errors.NotProven:
    return errors.NotProven(
        f"{subject.opened.path!r} cannot be loaded as guest {subject.guest!r}: {reason}",
        hint="compare the guest's 'launch:' with the command line that 'mapsave inspect' shows",
        reason=reason,
        **data,
    )
