"""TLS of ``service.listen``: who is let in, by which files, and how these are renewed."""

import asyncio
import ssl

from mapsave import errors, tls_files
from mapsave.service import client_purpose
from mapsave.service.peers import Peer, Roles
from mapsave.service_settings import Listen


class Tls:
    """The context in force. Connections keep the one that they were made with."""

    def __init__(self, listen: Listen) -> None:
        """Read the files. Raises ConfigError."""
        self._listen = listen
        self.context = self.read()

    def read(self) -> ssl.SSLContext:
        """Return the context of the files as they are now. Raises ConfigError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # One that was revoked since, or by a CA that is gone, must not come back by a ticket.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        tls_files.load(context, self._listen, section="service.listen", ca="clients")
        return context

    def use(self, context: ssl.SSLContext) -> None:
        """Put what ``read`` has returned in force for new connections."""
        self.context = context

    def is_outdated(self, transport: asyncio.BaseTransport | None) -> bool:
        """Return whether a connection over TLS was made before the files were renewed."""
        found = None if transport is None else transport.get_extra_info("sslcontext")
        return found is not None and found is not self.context


def peer(roles: Roles, transport: asyncio.BaseTransport) -> Peer:
    """Return who is at the other end of a connection over TLS.

    Raises RoleMissing where the certificate was not issued for clients.
    """
    found = transport.get_extra_info("ssl_object")
    certificate = None if found is None else found.getpeercert(binary_form=True)
    if certificate is None or not client_purpose.is_for_clients(certificate):
        raise errors.RoleMissing(
            "the certificate was not issued for clients",
            hint="issue it with extendedKeyUsage=clientAuth",
        )
    return roles.of_certificate(transport.get_extra_info("peercert"))
