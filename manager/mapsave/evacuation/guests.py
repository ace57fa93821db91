"""Which guests are meant, and whether one runs at all."""

import asyncio
import fnmatch
import socket
from collections.abc import Sequence
from typing import Any

from mapsave import config as configuration
from mapsave import errors, unix_socket
from mapsave.config import Config, Guest
from mapsave.migration import guest_state
from mapsave.monitor import libvirt_connection
from mapsave.operations import attach

# What libvirt says of a domain that is shut off, or was transient and has ended.
_NO_DOMAIN = (errors.UnknownGuest, errors.WrongRunState)


async def chosen(
    config: Config, names: Sequence[str], libvirt: str | None, patience: float
) -> tuple[list[Guest], errors.MapsaveError | None]:
    """Return the guests that ``names`` mean, all that are configured if there are none.

    ``libvirt`` is the URI of a daemon whose active domains are added, but for those configured.
    Where it cannot be asked within ``patience`` seconds the others are returned, and why it cannot.
    Raises UnknownGuest, UsageError where nothing is meant; where there are no others Unsupported,
    Unreachable, NotPermitted.
    """
    selected = named(config, names) if names else dict(config.guests)
    if libvirt is None:
        if not selected:
            raise errors.UsageError(
                "no guest is configured", hint="name some, or save libvirt guests with --libvirt"
            )
        return list(selected.values()), None
    try:
        async with asyncio.timeout(patience):
            domains = await _domains(config, libvirt)
    except TimeoutError:
        failed: errors.MapsaveError = errors.Unreachable(
            f"libvirt at {libvirt!r} has not answered within {patience:g} s"
        )
    except errors.MapsaveError as error:
        failed = error
    else:
        selected.update({guest.name: guest for guest in domains})
        return list(selected.values()), None
    if not selected:
        raise failed
    return list(selected.values()), failed


def named(config: Config, names: Sequence[str]) -> dict[str, Guest]:
    """Return the guests of ``names``: each a guest's name, a pattern of fnmatch(3), or an address.

    Raises UnknownGuest.
    """
    found: dict[str, Guest] = {}
    for word in names:
        matches = [name for name in config.guests if fnmatch.fnmatchcase(name, word)]
        if word in config.guests or not matches:
            guest = config.guest(word)
            found[guest.name] = guest
        else:
            found.update({name: config.guests[name] for name in matches})
    return found


async def _domains(config: Config, uri: str) -> list[Guest]:
    """Return the active domains at ``uri`` that no guest of the configuration is."""
    libvirt = libvirt_connection.library()
    known = {
        guest.libvirt.domain
        for guest in config.guests.values()
        if guest.libvirt is not None and guest.libvirt.uri == uri
    }

    def active(connection: Any) -> list[tuple[str, str, int]]:
        handles = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        return [(handle.name(), handle.UUIDString(), handle.ID()) for handle in handles]

    async with libvirt_connection.connected(uri) as connection:
        try:
            domains = await libvirt_connection.call(active, connection)
        except libvirt.libvirtError as error:
            raise errors.Unreachable(f"libvirt at {uri!r}: {error}") from None
    prefix = "libvirt:" if uri == configuration.LIBVIRT_URI else f"libvirt+{uri}#"
    return [
        config.guest(prefix + name)
        for name, uuid, number in sorted(domains)
        if not known & {name, uuid, str(number)}
    ]


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
