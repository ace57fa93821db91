"""TLS of ``service.listen``: who is let in, by which files, and how these are renewed."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

from mapsave import errors
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
        listen = self._listen
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        # One that was revoked since, or by a CA that is gone, must not come back by a ticket.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        with _named("certificate", listen.certificate):
            context.load_cert_chain(listen.certificate, listen.key, password=_no_password)
        with _named("clients", listen.clients):
            context.load_verify_locations(listen.clients)
        if listen.crl is not None:
            with _named("crl", listen.crl):
                _load_revoked(context, listen.crl)
        return context

    def use(self, context: ssl.SSLContext) -> None:
        """Put what ``read`` has returned in force for new connections."""
        self.context = context

    def is_outdated(self, transport: asyncio.BaseTransport | None) -> bool:
        """Return whether a connection over TLS was made before the files were renewed."""
        found = None if transport is None else transport.get_extra_info("sslcontext")
        return found is not None and found is not self.context


def _no_password() -> str:
    raise ValueError("the key is protected by a password")


def _load_revoked(context: ssl.SSLContext, path: Path) -> None:
    """Load revocation lists: from then on each CA of a client's chain needs one that is current."""
    text = path.read_text(encoding="utf-8", errors="replace")
    # Python would take a certificate in the file as one more CA.
    if "-----BEGIN X509 CRL-----" not in text or "-----BEGIN CERT" in text:
        raise OSError("it must contain revocation lists (PEM) and nothing else")
    context.load_verify_locations(path)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


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


@contextlib.contextmanager
def _named(key: str, path: Path) -> Iterator[None]:
    """Name the file in the error that says that it cannot be used; ssl.SSLError is an OSError."""
    try:
        yield
    except PermissionError as error:
        raise errors.denied(
            f"service.listen.{key}: {str(path)!r} cannot be read: {error.strerror}", path
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise errors.ConfigError(
            f"service.listen.{key}: {str(path)!r} cannot be used: {reason}"
        ) from None
