"""The libvirt daemon that an image says its domain was of: followed exactly, or not at all.

Another daemon does not know the domain, and would start it beside itself on the same disks. But
URIs of libvirt can also run commands and lead to other hosts (libvirt's ``uri.html``), and an
image may come from others.
"""

import os
import urllib.parse

from mapsave import errors, guest_address
from mapsave.operations import trust

_PLAIN = ("qemu:///system", "qemu:///session")
_OVER_SOCKET = "qemu+unix"


def followed(recorded: str | None) -> str:
    """Return the URI to connect to; the default one for an image that records none.

    Raises NoDestination where it is not one of this host's that is safe to follow.
    """
    if recorded is None:
        return guest_address.LIBVIRT_URI
    if recorded in _PLAIN:
        return recorded
    reason = _refusal(urllib.parse.urlsplit(recorded))
    if reason is None:
        return recorded
    raise errors.NoDestination(
        f"the image was saved from libvirt at {recorded!r}, which is not used without being asked "
        f"for: {reason}",
        hint=f"use --guest 'libvirt+{recorded}#DOMAIN', or another URI there",
        uri=recorded,
    )


def _refusal(uri: urllib.parse.SplitResult) -> str | None:
    """Return why a URI is not followed; None for a socket of a user whom we trust."""
    if uri.scheme != _OVER_SOCKET or uri.netloc or uri.path not in ("/system", "/session"):
        return "only connections to sockets of this host are"
    values = urllib.parse.parse_qs(uri.query)
    if values.keys() - {"socket", "mode"} or len(values.get("socket", ())) > 1:
        return "it has options other than its socket"
    for path in values.get("socket", ()):
        try:
            owner = os.stat(path).st_uid
        except OSError as error:
            return f"its socket: {error.strerror}"
        if owner not in trust.users():
            return f"its socket is of uid {owner}"
    return None
