"""Which destination a restore gets: attached to, started by command, or created by libvirt."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from mapsave import config as configuration
from mapsave import domain_xml, errors
from mapsave.config import Config, Guest
from mapsave.image import descriptors
from mapsave.image.image import Image
from mapsave.image.validation import Contents
from mapsave.key_types import Switch
from mapsave.labels.policy import BUILT_IN, Policy
from mapsave.operations import (
    answering,
    attach,
    destination,
    instant,
    journal,
    launch,
    locks,
    origin,
    ram_file,
    recorded_uri,
    restore_labels,
    trust,
)
from mapsave.operations.destination import Command, Destination
from mapsave.operations.restore_request import Request
from mapsave.operations.steps import Step
from mapsave.operations.warming import Wanted, Warming
from mapsave.plan import generation
from mapsave.restore_settings import RestoreSettings

if TYPE_CHECKING:
    from mapsave.operations import domain_trust
    from mapsave.operations.verifying import Verifying

_Choice = tuple[
    attach.Monitor, contextlib.AbstractAsyncContextManager[Destination], instant.Decision
]


@dataclasses.dataclass(frozen=True)
class Beside:
    """What reads the image beside a restore that maps RAM from it."""

    warming: Warming | None = None
    verifying: Verifying | None = None

    def stop(self) -> None:
        """End it."""
        if self.warming is not None:
            self.warming.stop()
        if self.verifying is not None:
            self.verifying.stop()


NOTHING = Beside()


async def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a destination is wanted for: the restore that was asked for, as it was settled.

    ``name`` is of the guest that it becomes. Where its RAM is mapped, ``policy`` labels the image
    and it is read ``beside``; else ``verify`` is done before.
    """

    config: Config
    request: Request
    settings: RestoreSettings
    opened: Image
    contents: Contents
    name: str
    policy: Policy = BUILT_IN["none"]
    beside: Beside = NOTHING
    verify: Callable[[], Awaitable[None]] = _nothing

    @property
    def guest(self) -> Guest:
        """The guest as it is configured, or as its address says."""
        found = self.config.named(self.name)
        if found is None and self.request.guest is not None:
            found = self.config.guest(self.request.guest)  # an address
        return found or configuration.Guest(self.name)

    @property
    def shared_file(self) -> Switch:
        """Whether a command is to start it with its RAM in a shared file.

        Clones share the image's pages in memory, which such files would not.
        """
        own = self.guest.memory.settings() if self.guest.memory is not None else {}
        wanted: Switch = own.get("shared_file", self.config.memory.shared_file)
        is_left_out = wanted == "auto" and self.request.is_clone
        return "off" if is_left_out or self.guest.emulator is not None else wanted


@contextlib.asynccontextmanager
async def chosen(asked: Asked, log: journal.Journal) -> AsyncIterator[Destination]:
    """Attach to or start the destination, whichever the request and the configuration say.

    Raises NoDestination where nothing says how, Busy, NotInstant, LaunchFailed and its kin.
    """
    config, request = asked.config, asked.request
    if request.into is not None:
        await asked.verify()
        why_not = instant.not_launched(asked.settings.instant, "a QEMU that waits").why_not
        monitor = attach.Monitor.at(request.into)
        await log.step(Step.ATTACH, monitor=monitor)
        with locks.held(config.state, f"the destination {request.into!r}", monitor.key):
            async with destination.waiting_at(request.into) as target:
                target.why_not_instant = why_not
                yield target
        return
    guest, start = asked.guest, _start(asked, log)
    directory = os.path.dirname(asked.opened.path)
    if _is_of_libvirt(request, asked.opened, guest):
        monitor, started, decision = await answering.within(
            directory, _by_libvirt, asked, log, start
        )
    else:
        command = command_of(asked)
        monitor = attach.Monitor.at(command.socket)
        shared = await answering.within(directory, _in_ram_file, asked, command)
        decision = instant.Decision()
        if shared.mapping is None:
            decision = await answering.within(directory, _by_command, asked, command)
        started = _launched(asked, command, shared, decision, start)
    if decision.mapped:
        await _begin_to_read(asked, decision)
    else:
        await asked.verify()
    await log.step(Step.LAUNCH, monitor=monitor)
    with locks.held(config.state, f"guest {guest.name!r}", monitor.key):
        async with started as target:
            if not target.mapped and not target.why_not_instant:
                target.why_not_instant = decision.why_not
            if decision.mapped and not target.mapped:
                # QEMU does not map it after all.
                asked.beside.stop()
                await asked.verify()
            yield target


def _in_ram_file(asked: Asked, command: Command) -> ram_file.Decision:
    """Decide whether its RAM becomes a shared file. Blocks. Raises NoCheckpoint, NotInstant."""
    return ram_file.decide(
        asked.shared_file,
        ram_file.Source(command.argv, asked.opened, asked.contents, asked.settings.instant),
        asked.config.images,
    )


def _by_command(asked: Asked, command: Command) -> instant.Decision:
    """Decide whether its RAM is mapped from the image. Blocks. Raises NotInstant and its kin."""
    return instant.decide(asked.settings.instant, command, asked.opened, asked.contents)


@contextlib.asynccontextmanager
async def _launched(
    asked: Asked,
    command: Command,
    shared: ram_file.Decision,
    decision: instant.Decision,
    start: instant.Start,
) -> AsyncIterator[Destination]:
    """Start it as was decided; where QEMU does not take a RAM file, without one, if it may be."""
    why_not = shared.why_not
    async with contextlib.AsyncExitStack() as stack:
        if shared.mapping is not None:
            launching = ram_file.launched(
                command, shared, asked.opened, asked.policy, asked.config.state
            )
            try:
                target = await stack.enter_async_context(launching)
            except (errors.LaunchFailed, errors.NotPermitted) as error:
                if shared.is_demanded:
                    raise
                why_not = error.message
                directory = os.path.dirname(asked.opened.path)
                decision = await answering.within(directory, _by_command, asked, command)
            else:
                yield target
                return
        target = await stack.enter_async_context(instant.launched(command, decision, start))
        target.why_no_ram_file = why_not
        yield target


async def _begin_to_read(asked: Asked, decision: instant.Decision) -> None:
    """Begin to read what the guest will need, while its destination starts, and to verify it."""
    if asked.settings.verify_data:
        if asked.beside.verifying is None:
            await asked.verify()
        else:
            rate = asked.settings.warm_rate
            await asked.beside.verifying.begin(
                asked.opened, asked.contents.stream, decision.mapped, rate
            )
    if asked.beside.warming is not None:
        wanted = Wanted(asked.settings.warm, asked.settings.warm_rate, asked.settings.warm_time)
        with descriptors.reading(asked.opened.path):
            asked.beside.warming.begin(asked.opened, asked.contents.stream, wanted)


def _start(asked: Asked, log: journal.Journal) -> instant.Start:
    opened, loop = asked.opened, asyncio.get_running_loop()

    def on_acl(before: bytes) -> None:
        inode = os.fstat(opened.fd).st_ino
        uuid = str(opened.block.uuid)
        log.step_for(loop, Step.LAUNCH, acl=before.hex(), uuid=uuid, inode=inode)

    def on_acl_left(error: OSError) -> None:
        log.unsettled()
        words = f"{opened.path!r} is still readable by the user of its QEMU: {error.strerror}"
        log.warnings.append(f"{words} (run 'mapsave recover')")

    def on_link(path: str) -> None:
        log.step_for(loop, Step.LINK, link=path)

    return instant.Start(
        opened=opened,
        contents=asked.contents,
        guest=asked.name,
        state=asked.config.state,
        on_acl=on_acl,
        on_acl_left=on_acl_left,
        on_link=on_link,
        on_left=log.unsettled,
        labelled=lambda: restore_labels.before_start(asked.policy, opened, log),
    )


def is_by_command(asked: Asked) -> bool:
    """Return whether a command starts the destination, not libvirt, and it is none that waits."""
    return asked.request.into is None and not _is_of_libvirt(
        asked.request, asked.opened, asked.guest
    )


def _is_of_libvirt(request: Request, opened: Image, guest: Guest) -> bool:
    """Return whether libvirt is to have the guest: it had it, and nothing says otherwise."""
    if guest.libvirt is not None or request.xml is not None or request.through_libvirt:
        return True
    configured = guest.launch or guest.emulator is not None or request.trust_recorded_command
    return not configured and origin.domain_xml(opened) is not None


def domain_of(asked: Asked) -> tuple[str, str]:
    """Return the XML that libvirt is to start the guest from, and libvirt's URI.

    Raises NoDestination, and as ``recorded_uri.followed`` does.
    """
    request, opened, guest = asked.request, asked.opened, asked.guest
    xml = request.xml if request.xml is not None else origin.domain_xml(opened)
    if xml is None:
        raise errors.NoDestination(
            f"the image contains no domain XML to create the domain of guest {guest.name!r} from",
            hint="pass it with --xml FILE, or restore --into qmp:PATH",
        )
    if guest.libvirt is not None:
        return xml, guest.libvirt.uri
    return xml, recorded_uri.followed((opened.metadata.get("domain") or {}).get("uri"))


@dataclasses.dataclass(frozen=True)
class Definition:
    """What libvirt is to start a guest from; ``vetting`` is None where the XML is trusted.

    As libvirt does, the CPU that the guest has seen, which ``cookie`` has, is kept under another
    definition too.
    """

    xml: str
    uri: str
    identity: domain_xml.Identity
    vetting: domain_trust.Vetting | None
    cookie: str | None


def definition_of(asked: Asked) -> Definition:
    """Return what libvirt starts the guest from. Raises as ``domain_of``, and UsageError,
    InvalidImage where that is no definition, or another guest's. Blocks."""
    from mapsave.monitor import definition
    from mapsave.operations import domain_trust

    config, request, opened, guest = asked.config, asked.request, asked.opened, asked.guest
    xml, uri = domain_of(asked)
    if not request.through_libvirt:
        xml = definition.without_restore(xml)
    try:
        identity = domain_xml.identity(xml)
    except errors.InvalidImage as error:
        if request.xml is None:
            raise
        raise errors.UsageError(f"--xml: {error.message}") from None
    if request.xml is None:
        _check_named(opened, guest, identity)
    vetting = None
    if not request.trust_image:
        what = "--xml" if request.xml is not None else repr(opened.path)
        own = str(opened.metadata.get("guest", {}).get("uuid"))
        vetting = domain_trust.Vetting(
            config.trust, config.state, frozenset((identity.uuid, own)), what
        )
    cookie = opened.libvirt.cookie if opened.libvirt else None
    cookie = cookie or (opened.metadata.get("domain") or {}).get("cookie")
    return Definition(xml, uri, identity, vetting, cookie)


def _by_libvirt(asked: Asked, log: journal.Journal, mapping: instant.Start) -> _Choice:
    """Return the domain's monitor, how it is started, and whether its RAM is mapped. Blocks."""
    from mapsave.operations import destination_libvirt, domain_contexts, instant_libvirt

    request, opened, found = asked.request, asked.opened, definition_of(asked)
    xml, uri = found.xml, found.uri
    monitor = attach.Monitor(uri=uri, domain=found.identity.uuid)
    stall = asked.settings.stall
    start = destination_libvirt.Start(uri, xml, log.unsettled, found.vetting, stall_seconds=stall)
    wanted = asked.settings.instant
    if request.through_libvirt:
        instant_libvirt.check_own(opened, asked.contents)
        decision = instant.not_launched(wanted, "libvirt itself")
        return monitor, destination_libvirt.loaded(start, opened, request), decision
    decision = instant_libvirt.decide(wanted, xml, uri, opened, asked.contents)
    labelled = functools.partial(
        domain_contexts.labelled, asked.policy, opened, log, found.xml, uri
    )
    mapping = dataclasses.replace(mapping, labelled=labelled)
    started = instant_libvirt.created(start, found.cookie, decision, mapping)
    return monitor, started, decision


def _check_named(opened: Image, guest: Guest, identity: domain_xml.Identity) -> None:
    """Raise UsageError where the guest is another domain than the one that would be started."""
    named = guest.libvirt.domain if guest.libvirt is not None else identity.name
    plain = named.replace("-", "").lower()  # as libvirt takes a uuid
    if named == identity.name or plain == identity.uuid.replace("-", ""):
        return
    # An id is of one life only, but may be what the guest was saved by.
    if named.isdecimal() and guest.name == opened.metadata.get("guest", {}).get("name"):
        return
    raise errors.UsageError(
        f"{opened.path!r} is of domain {identity.name!r} ({identity.uuid}), and guest "
        f"{guest.name!r} is domain {named!r}",
        hint="use --guest libvirt+URI#DOMAIN with that domain, or another definition with --xml",
    )


def command_of(asked: Asked) -> Command:
    """Return the command that starts the destination. Raises NoDestination, UntrustedProgram."""
    config, request, guest = asked.config, asked.request, asked.guest
    log = attach.log_path(config, guest.name)
    variables = launch.environment(config, guest)
    if guest.emulator is not None:
        socket = attach.socket_path(guest, config)
        argv = attach.emulator_command(guest, socket)
        return Command(argv, socket, log, attach.emulator_environment(guest, config))
    if guest.launch and guest.qmp is not None:
        words = generation.renewed(guest.launch) if request.is_clone else guest.launch
        return Command(words, str(guest.qmp), log, variables)
    recorded = asked.opened.metadata.get("command") or {}
    argv = recorded.get("argv") or []
    if argv and request.trust_recorded_command:
        if not request.trust_image:
            trust.check_program(argv[0])
        own = locks.state_directory(config.state, "monitors") if guest.qmp is None else None
        socket = str(guest.qmp if own is None else own / f"{log.stem[-40:]}.qmp")
        return Command(argv, socket, log, variables, recorded.get("cwd"))
    raise errors.NoDestination(
        f"there is no command to start guest {guest.name!r}",
        hint="set 'launch:' in the configuration, or use --into qmp:PATH, or "
        "--trust-recorded-command",
    )
