"""Which destination a restore gets: attached to, started by command, or created by libvirt."""

import contextlib
from collections.abc import AsyncIterator, Callable

from mapsave import config as configuration
from mapsave import domain_xml, errors
from mapsave.config import Config, Guest
from mapsave.image.image import Image
from mapsave.operations import (
    attach,
    destination,
    journal,
    launch,
    locks,
    origin,
    recorded_uri,
    trust,
)
from mapsave.operations.destination import Destination
from mapsave.operations.restore_request import Request
from mapsave.operations.steps import Step

_Choice = tuple[attach.Monitor, contextlib.AbstractAsyncContextManager[Destination]]


@contextlib.asynccontextmanager
async def chosen(
    config: Config, request: Request, opened: Image, name: str, log: journal.Journal
) -> AsyncIterator[Destination]:
    """Attach to or start the destination, whichever the request and the configuration say.

    Raises NoDestination where nothing says how, Busy, LaunchFailed and its kin.
    """
    if request.into is not None:
        monitor = attach.Monitor.at(request.into)
        log.step(Step.ATTACH, monitor=monitor)
        with locks.held(config.state, f"the destination {request.into!r}", monitor.key):
            async with destination.waiting_at(request.into) as target:
                yield target
        return
    guest = config.guests.get(name)
    if guest is None and request.guest is not None:
        guest = config.guest(request.guest)  # an address
    guest = guest or configuration.Guest(name)
    if _is_of_libvirt(request, opened, guest):
        monitor, started = _by_libvirt(config, request, opened, guest, log.unsettled)
    else:
        monitor, started = _by_command(config, request, opened, guest)
    log.step(Step.LAUNCH, monitor=monitor)
    with locks.held(config.state, f"guest {guest.name!r}", monitor.key):
        async with started as target:
            yield target


def _is_of_libvirt(request: Request, opened: Image, guest: Guest) -> bool:
    """Return whether libvirt is to have the guest: it had it, and nothing says otherwise."""
    if guest.libvirt is not None or request.xml is not None or request.through_libvirt:
        return True
    configured = guest.launch or guest.emulator is not None or request.trust_recorded_command
    return not configured and origin.domain_xml(opened) is not None


def _by_libvirt(
    config: Config, request: Request, opened: Image, guest: Guest, on_left: Callable[[], None]
) -> _Choice:
    from mapsave.operations import destination_libvirt, domain_trust

    xml = request.xml if request.xml is not None else origin.domain_xml(opened)
    if xml is None:
        raise errors.NoDestination(
            f"the image contains no domain XML to create the domain of guest {guest.name!r} from",
            hint="pass it with --xml FILE, or restore --into qmp:PATH",
        )
    recorded = opened.metadata.get("domain") or {}
    if guest.libvirt is not None:
        uri = guest.libvirt.uri
    else:
        uri = recorded_uri.followed(recorded.get("uri"))
    try:
        identity = domain_xml.identity(xml)
    except errors.InvalidImage as error:
        if request.xml is None:
            raise
        raise errors.UsageError(f"--xml: {error.message}") from None
    if request.xml is None:
        _check_named(opened, guest, identity)
    monitor = attach.Monitor(uri=uri, domain=identity.uuid)
    vetting = None
    if not request.trust_image:
        what = "--xml" if request.xml is not None else repr(opened.path)
        own = str(opened.metadata.get("guest", {}).get("uuid"))
        vetting = domain_trust.Vetting(
            config.trust, config.state, frozenset((identity.uuid, own)), what
        )
    stall = config.restore.stall
    asked = destination_libvirt.Start(uri, xml, on_left, vetting, stall_seconds=stall)
    if request.through_libvirt:
        return monitor, destination_libvirt.loaded(asked, opened, request)
    # As libvirt does, the CPU that the guest has seen is kept under another definition too.
    cookie = opened.libvirt.cookie if opened.libvirt else None
    cookie = cookie or recorded.get("cookie")
    return monitor, destination_libvirt.created(asked, cookie)


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


def _by_command(config: Config, request: Request, opened: Image, guest: Guest) -> _Choice:
    log = attach.log_path(config, guest.name)
    variables = launch.environment(config, guest)
    if guest.emulator is not None:
        socket = attach.socket_path(guest, config)
        return attach.Monitor.at(socket), destination.emulated(guest, config)
    if guest.launch and guest.qmp is not None:
        socket = str(guest.qmp)
        return attach.Monitor.at(socket), destination.launched(guest.launch, socket, log, variables)
    recorded = opened.metadata.get("command") or {}
    argv = recorded.get("argv")
    if argv and request.trust_recorded_command:
        if not request.trust_image:
            trust.check_program(argv[0])
        own = locks.state_directory(config.state, "monitors") if guest.qmp is None else None
        socket = str(guest.qmp if own is None else own / f"{log.stem[-40:]}.qmp")
        started = destination.launched(argv, socket, log, variables, recorded.get("cwd"))
        return attach.Monitor.at(socket), started
    raise errors.NoDestination(
        f"there is no command to start guest {guest.name!r}",
        hint="set 'launch:' in the configuration, or use --into qmp:PATH, or "
        "--trust-recorded-command",
    )
