"""Which guests there are: how each is reached, how it is, and its last image.

They are those of the configuration, the domains of the host's libvirt that none of these is, and
those that only an image knows.
"""

import asyncio
import dataclasses
import os
from collections.abc import Iterable

from mapsave import errors, guest_address, units
from mapsave.config import Config, Guest
from mapsave.errors import MapsaveError
from mapsave.evacuation import guests
from mapsave.guest_address import LIBVIRT_URI
from mapsave.operations import attach, domains, locks
from mapsave.operations.domains import Line
from mapsave.strict_json import Facts

NOT_RUNNING = "not running"
BUSY = "busy"  # a mapsave saves or restores it just now, and its monitor serves no one else
_AT_ONCE = 8
_PATIENCE = 5.0  # seconds for one guest, or one libvirt daemon
# Where the daemons of qemu:///system listen, the monolithic and the modular one: "Libvirt Daemons"
# of libvirt.org. Without either there is no libvirt here that anyone would miss.
_SOCKETS = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
_NOTHING = dict.fromkeys(("address", "policy", "state", "error", "operation"))


@dataclasses.dataclass
class Asked:
    """What guests answered, by their names.

    ``states`` are run states of QEMU, or libvirt's words for a domain's, or NOT_RUNNING or BUSY;
    ``errors`` say why a guest has none. ``clones`` are those that run, ``others`` domains that are
    not configured, ``unreachable`` why libvirt daemons could not be asked, or clones
    that run are not shown.
    """

    states: dict[str, str] = dataclasses.field(default_factory=dict)
    errors: dict[str, MapsaveError] = dataclasses.field(default_factory=dict)
    clones: list[Guest] = dataclasses.field(default_factory=list)
    others: list[Guest] = dataclasses.field(default_factory=list)
    unreachable: list[MapsaveError] = dataclasses.field(default_factory=list)


NOT_ASKED = Asked()


def lines(found: Iterable[Guest], asked: Asked, latest: Iterable[Facts]) -> list[Facts]:
    """Return a line for each guest, and for each that only one of the images ``latest`` knows."""
    images = {str(line["guest"]): line for line in latest if line["guest"] is not None}
    shown = [_line(guest, asked, images.pop(guest.name, None)) for guest in found]
    for name, image in sorted(images.items()):
        shown.append(
            {"name": name, "kind": "image", "priority": 0, "launch": False, **_NOTHING}
            | {"last_image": image}
        )
    return shown


def _line(guest: Guest, asked: Asked, image: Facts | None) -> Facts:
    kind = next(kind for kind in ("qmp", "libvirt", "emulator") if getattr(guest, kind) is not None)
    address = None if guest.qmp is None else guest_address.of_socket(str(guest.qmp))
    if guest.libvirt is not None:
        address = guest_address.of_domain(guest.libvirt.domain, guest.libvirt.uri)
    error = asked.errors.get(guest.name)
    return {
        "name": guest.name,
        "kind": kind,
        "address": address,
        "policy": guest.policy,
        "priority": guest.priority,
        "launch": bool(guest.launch) or kind != "qmp",
        "state": asked.states.get(guest.name),
        "error": None if error is None else error.as_dict(),
        "last_image": image,
        "operation": None,
    }


async def ask(config: Config) -> Asked:
    """Ask every guest of the configuration, and the host's libvirt, how they are.

    What does not answer costs five seconds; what cannot be asked prevents nothing.
    """
    asked = Asked()
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(guest: Guest) -> None:
        async with slots:
            await _ask_monitor(guest, config, asked)

    known = await guests.all_known(config)
    asked.unreachable += known.lost.values()
    found = known.guests.values()
    asked.clones += [guest for guest in found if guest.clone_of]
    uris = {guest.libvirt.uri for guest in found if guest.libvirt is not None}
    uris |= {LIBVIRT_URI} if _has_libvirt() else set()
    async with asyncio.TaskGroup() as group:
        for guest in found:
            if guest.libvirt is None:
                group.create_task(one(guest))
        for uri in uris:
            group.create_task(_ask_libvirt(uri, config, asked))
    return asked


async def domain_named(name: str) -> str | None:
    """Return the address of the domain of that name, or uuid, at the host's libvirt.

    None where there is none, or libvirt cannot be asked within five seconds.
    """
    if not _has_libvirt():
        return None
    try:
        async with asyncio.timeout(_PATIENCE):
            found = await domains.listed(LIBVIRT_URI)
    except (MapsaveError, TimeoutError):
        return None
    is_one = any(name in (line["name"], line["uuid"]) for line in found)
    return guest_address.of_domain(name, LIBVIRT_URI) if is_one else None


def _has_libvirt() -> bool:
    return any(map(os.path.exists, _SOCKETS))


async def _ask_monitor(guest: Guest, config: Config, asked: Asked) -> None:
    """Ask a guest that has a QMP socket; one that is locked is not disturbed."""
    try:
        key = attach.Monitor.at(attach.socket_path(guest, config)).key
        if locks.is_held(config.state, key):
            asked.states[guest.name] = BUSY
            return
        async with asyncio.timeout(_PATIENCE):
            state = await guests.run_state(guest, config)
        asked.states[guest.name] = state or NOT_RUNNING
    except TimeoutError:
        asked.errors[guest.name] = _silent(f"the monitor of guest {guest.name!r}")
    except Exception as error:  # not even a bug with one guest must hide the others
        asked.errors[guest.name] = errors.as_ours(error)


async def _ask_libvirt(uri: str, config: Config, asked: Asked) -> None:
    """Ask a libvirt daemon for its domains: those of the configuration, at the host's also others.

    A domain that is not there was transient, and has ended.
    """
    configured = [
        guest
        for guest in config.guests.values()
        if guest.libvirt is not None and guest.libvirt.uri == uri
    ]
    try:
        async with asyncio.timeout(_PATIENCE):
            found = await domains.listed(uri)
        for guest in configured:
            line = next((line for line in found if _is_domain(guest, line)), None)
            asked.states[guest.name] = NOT_RUNNING if line is None else _state_of(line, config)
        if uri == LIBVIRT_URI:
            for guest, line in guests.unconfigured(config, uri, found):
                asked.others.append(guest)
                asked.states[guest.name] = _state_of(line, config)
    except Exception as error:
        silent = isinstance(error, TimeoutError)
        ours = _silent(f"libvirt at {uri!r}") if silent else errors.as_ours(error)
        asked.unreachable.append(ours)
        asked.errors.update({guest.name: ours for guest in configured})


def _silent(who: str) -> errors.Unreachable:
    return errors.Unreachable(f"{who} has not answered within {units.format_duration(_PATIENCE)}")


def _is_domain(guest: Guest, line: Line) -> bool:
    return guest.libvirt is not None and guest.libvirt.domain in guests.names_of(line)


def _state_of(line: Line, config: Config) -> str:
    """Return the state of a domain. Raises NotPermitted."""
    key = attach.Monitor(uri=line["uri"], domain=line["uuid"]).key
    return BUSY if locks.is_held(config.state, key) else str(line["state"])
