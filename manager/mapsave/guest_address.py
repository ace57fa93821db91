"""How a guest is named that is in no configuration: ``qmp:SOCKET``, ``libvirt:DOMAIN`` for a domain
of ``qemu:///system``, ``libvirt+URI#DOMAIN`` for one of another daemon."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from mapsave import errors
from mapsave.key_types import ADDRESSES

LIBVIRT_URI = "qemu:///system"


class Address(NamedTuple):
    """Where a guest is: at a socket, or as a domain of the daemon at ``uri``."""

    socket: str | None = None
    domain: str = ""
    uri: str = LIBVIRT_URI


def parse(text: str) -> Address | None:
    """Return what an address means; None where ``text`` is not one.

    Raises UsageError where neither the kernel nor libvirt could be given what is in it.
    """
    kind, _, rest = text.partition(":")
    if text.startswith(ADDRESSES):
        _check_text(text, is_path=kind == "qmp")
    if kind == "qmp" and rest:
        return Address(rest)
    if kind == "libvirt" and rest:
        return Address(domain=rest)
    if text.startswith("libvirt+"):
        # A URI has no raw '#' but the one in front of its fragment (RFC 3986); a name may have.
        uri, _, domain = text.removeprefix("libvirt+").partition("#")
        if uri and domain:
            return Address(domain=domain, uri=uri)
    return None


def of_socket(path: str) -> str:
    """Return the address of a QMP socket."""
    return f"qmp:{path}"


def of_domain(domain: str, uri: str) -> str:
    """Return the address of a domain, by its name or uuid."""
    return f"libvirt:{domain}" if uri == LIBVIRT_URI else f"libvirt+{uri}#{domain}"


def of_path(word: str) -> str | None:
    """Return the address of the socket whose path was given without ``qmp:``; None if it is not
    one."""
    try:
        return of_socket(word) if stat.S_ISSOCK(os.stat(word).st_mode) else None
    except (OSError, ValueError):
        return None


def _check_text(address: str, *, is_path: bool) -> None:
    try:
        raw = os.fsencode(address) if is_path else address.encode()
    except UnicodeEncodeError:
        wrong = "bytes that are not UTF-8"
    else:
        if b"\0" not in raw:
            return
        wrong = "a NUL character"
    raise errors.UsageError(
        f"the address {address!r} contains {wrong}",
        hint="'mapsave list --libvirt' lists the domains",
    )
