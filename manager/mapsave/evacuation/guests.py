"""Which guests are meant, and whether one runs at all."""

import asyncio
import dataclasses
import fnmatch
import socket
from collections.abc import Iterable, Sequence

from mapsave import blocking, errors, guest_address, units, unix_socket
from mapsave.config import Config, Guest
from mapsave.migration import guest_state
from mapsave.operations import attach, clone_notes, domains
from mapsave.operations.domains import Line

# What libvirt says of a domain that is shut off, or was transient and has ended.
_NO_DOMAIN = (errors.UnknownGuest, errors.WrongRunState)


async def chosen(
    config: Config, names: Sequence[str], libvirt: str | None, patience: float
) -> tuple[list[Guest], dict[str, errors.MapsaveError]]:
    """Return the guests that ``names`` mean, all that are known if there are none.

    ``libvirt`` is the URI of a daemon whose active domains are added, but for those configured.
    Where it cannot be asked within ``patience`` seconds the others are returned, and by its URI why
    it cannot; likewise by its name what is lost of ``Known``.
    Raises UnknownGuest, UsageError where nothing is meant; where there are no others Unsupported,
    Unreachable, NotPermitted.
    """
    known = await all_known(config)
    selected = _named(config, known, names) if names else known.guests
    lost = {
        name or "clones": error
        for name, error in known.lost.items()
        if not names or not name or any(_matching([name], word) for word in names)
    }
    if libvirt is None:
        if not selected and not lost:
            raise errors.UsageError(
                "no guest is configured", hint="name some, or save libvirt guests with --libvirt"
            )
        return list(selected.values()), lost
    try:
        async with asyncio.timeout(patience):
            active = await _domains(config, libvirt)
    except TimeoutError:
        failed: errors.MapsaveError = errors.Unreachable(
            f"libvirt at {libvirt!r} has not answered within {units.format_duration(patience)}"
        )
    except errors.MapsaveError as error:
        failed = error
    else:
        selected.update({guest.name: guest for guest in active})
        return list(selected.values()), lost
    if not selected and not lost:
        raise failed
    return list(selected.values()), {**lost, libvirt: failed}


def _matching(names: Iterable[str], word: str) -> list[str]:
    return [name for name in names if name and fnmatch.fnmatchcase(name, word)]


@dataclasses.dataclass
class Known:
    """The guests of the configuration and the clones of them that run, by their names.

    ``lost`` says by its name why a guest that runs is not among them, under an empty one why there
    may be more.
    """

    guests: dict[str, Guest]
    lost: dict[str, errors.MapsaveError] = dataclasses.field(default_factory=dict)


async def all_known(config: Config) -> Known:
    """Return which guests there are without asking libvirt."""
    return await blocking.call(_known, config)


def _known(config: Config) -> Known:
    known = Known(dict(config.guests))
    try:
        for clone in clone_notes.everyone(config.state):
            if isinstance(clone, errors.Refused):
                known.lost[""] = clone
                continue
            guest = config.named(clone.guest)
            if guest is None or guest.libvirt is not None:
                where = None
            else:
                where = attach.Monitor.at(attach.socket_path(guest, config)).key
            if guest is not None and where == clone.monitor:
                known.guests[guest.name] = guest
            else:
                known.lost[clone.guest] = _lost(clone)
    except errors.MapsaveError as error:
        known.lost[""] = error
    return known


def _lost(clone: clone_notes.Running) -> errors.UnknownGuest:
    address = guest_address.of_socket(clone.monitor.removeprefix("guest:"))
    return errors.UnknownGuest(
        f"guest {clone.guest!r} runs (pid {clone.pid}) at {address}, but no 'clone:' of the "
        "configuration says so any more",
        hint=f"correct the configuration, or save it by its address, {address}",
        guest=clone.guest,
    )


def _named(config: Config, known: Known, names: Sequence[str]) -> dict[str, Guest]:
    """Return the guests of ``names``: each a guest's name, a pattern of fnmatch(3), or an address.

    Patterns are of ``known`` guests, be they lost. Raises UnknownGuest.
    """
    found: dict[str, Guest] = {}
    for word in names:
        matches = _matching(known.guests, word)
        if word in known.guests or not (matches or _matching(known.lost, word)):
            guest = config.guest(word)
            found[guest.name] = guest
        else:
            found.update({name: known.guests[name] for name in matches})
    return found


async def _domains(config: Config, uri: str) -> list[Guest]:
    """Return the active domains at ``uri`` that no guest of the configuration is."""
    active = [line for line in await domains.listed(uri) if line["active"]]
    return [guest for guest, _ in unconfigured(config, uri, active)]


def unconfigured(config: Config, uri: str, found: Iterable[Line]) -> list[tuple[Guest, Line]]:
    """Return the domains at ``uri`` that no guest of the configuration is, as guests."""
    known = {
        guest.libvirt.domain
        for guest in config.guests.values()
        if guest.libvirt is not None and guest.libvirt.uri == uri
    }
    return [
        (config.guest(guest_address.of_domain(str(line["name"]), uri)), line)
        for line in found
        if not known & names_of(line)
    ]


def names_of(domain: Line) -> set[str]:
    """Return what a domain may be called by: name, uuid, and id while it is active."""
    return {str(domain[key]) for key in ("name", "uuid", "id") if domain[key] is not None}


async def run_state(guest: Guest, config: Config) -> str | None:
    """Return the run state of a guest; None where there is no QEMU of it. Nothing is started.

    Raises Unreachable, NotPermitted, Unsupported.
    """
    if guest.qmp is None and guest.libvirt is None and guest.emulator is None:
        return None  # known from its image only
    if guest.libvirt is None and not listens(attach.socket_path(guest, config)):
        return None
    try:
        async with attach.attached(guest, config) as session:
            return await guest_state.run_state(session)
    except _NO_DOMAIN:
        return None
    except errors.Unreachable as error:
        if is_gone(guest, config, error):
            return None
        raise
    except errors.MonitorError as error:
        raise errors.Unreachable(error.message) from None


def is_gone(guest: Guest, config: Config, error: errors.MapsaveError) -> bool:
    """Return whether ``error``, with which a guest was not reached, means that it does not run."""
    if guest.libvirt is not None:
        return isinstance(error, _NO_DOMAIN)
    return isinstance(error, errors.Unreachable) and not listens(attach.socket_path(guest, config))


def listens(path: str) -> bool:
    """Return whether anything listens on the socket; busy, or refusing us, still counts.

    connect(2): ENOENT, ENOTDIR or ECONNREFUSED where nothing does; EAGAIN where many wait.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            with unix_socket.to_connect(path) as address:
                sock.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return False
        except OSError:
            return True
        return True
