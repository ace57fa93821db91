"""Where a service listens: at a unix socket of this host, or at a port of another, with TLS."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mapsave import errors, service_settings, unix_socket

if TYPE_CHECKING:
    import ssl

    from mapsave.service_settings import Remote

BUSY = 10.0  # seconds that a service may take to accept a connection
# Is called with each socket before it connects, so that another thread can shut it down.
Note = Callable[[socket.socket], None]


@dataclasses.dataclass(frozen=True)
class Unix:
    """The unix socket at ``path``."""

    path: str

    def __str__(self) -> str:
        return self.path

    def connect(self, timeout: float, note: Note | None = None) -> socket.socket:
        """Return a connection whose calls last at most ``timeout`` seconds. Raises OSError."""
        sock = self.unconnected(timeout)
        try:
            if note is not None:
                note(sock)
            deadline = time.monotonic() + min(timeout, BUSY)
            while not self.tries(sock, deadline):
                time.sleep(0.01)
        except BaseException:
            sock.close()
            raise
        return sock

    def unconnected(self, timeout: float) -> socket.socket:
        """Return a socket that is not connected yet; ``timeout`` 0 for one that never waits."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(timeout)
        return sock

    def tries(self, sock: socket.socket, deadline: float) -> bool:
        """Connect ``sock``; return whether that is done.

        So many may connect that the queue is full, which is reported as EAGAIN (unix(7)). Raises
        OSError, after ``deadline`` for that as well.
        """
        try:
            with unix_socket.to_connect(self.path) as address:
                sock.connect(address)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            return False
        return True


@dataclasses.dataclass(frozen=True)
class Tls:
    """The service of another host, at ``remote``: its ``service.listen``, and who we are.

    ``name`` is the one that the configuration has for it in ``hosts``, for messages.
    """

    remote: Remote
    name: str | None = None

    def __str__(self) -> str:
        return self.remote.address

    @property
    def section(self) -> str:
        """Where its settings are, for messages."""
        return "Remote" if self.name is None else f"hosts.{self.name}"

    @functools.cached_property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        return service_settings.name_and_port(self.remote.address)

    @functools.cached_property
    def context(self) -> ssl.SSLContext:
        """What connections are made with. Raises ConfigError, NotPermitted."""
        import ssl

        from mapsave import tls_files

        # Which host it must be is what its certificate says, compared with the address.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls_files.load(context, self.remote, section=self.section, ca="ca")
        return context

    def connect(self, timeout: float, note: Note | None = None) -> socket.socket:
        """Return a connection as ``Unix.connect`` does. Raises OSError, and as ``context`` does."""
        context = self.context
        sock = socket.create_connection(self.place, min(timeout, BUSY))
        try:
            if note is not None:
                note(sock)
            secured = context.wrap_socket(sock, server_hostname=self.place[0])
        except BaseException:
            sock.close()
            raise
        secured.settimeout(timeout)
        return secured


Address = Unix | Tls


def chosen(address: Address | str | None) -> Address:
    """Return what a client was given, a path as a socket; None: as ``in_force``, whose errors it
    raises."""
    if address is None:
        return in_force()
    return Unix(address) if isinstance(address, str) else address


def in_force() -> Unix:
    """Return the socket of the configuration in force, as the commands find it.

    Raises ConfigMissing, NotPermitted, ConfigError.
    """
    from mapsave import config

    return Unix(str(config.load(None, os.environ, for_client=True).socket))


def host(name: str) -> Tls:
    """Return the service of another host, as ``hosts`` of the configuration in force has it.

    Raises UsageError where that has no such ``name``, ConfigMissing, NotPermitted, ConfigError.
    """
    from mapsave import config

    hosts = config.load(None, os.environ, for_client=True).hosts
    return Tls(service_settings.host(hosts, name), name)


def failed(address: Address, error: Exception) -> errors.MapsaveError:
    """Return the error for a service that could not be asked, or has not answered."""
    where = f"the service at {str(address)!r}"
    if isinstance(address, Tls):
        return _failed_tls(address, error, where)
    if isinstance(error, PermissionError):
        return errors.NotPermitted(
            f"cannot connect to the service at {str(address)!r}: {error.strerror}",
            hint="the directory of the socket, or a security module, refuses it; --local "
            "works without the service",
        )
    return errors.ServiceUnreachable(
        f"{where} does not answer: {str(error) or 'timed out'}",
        hint="see its log; --local works without the service",
    )


def _failed_tls(address: Tls, error: Exception, where: str) -> errors.ServiceUnreachable:
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return errors.ServiceUnreachable(
            f"{where} has not proved that it is {address.place[0]}: {error.verify_message}",
            hint=f"a CA in '{address.section}.ca' must have signed a certificate for it that "
            "names this address",
        )
    hint = "is mapsaved running there, with 'service.listen'?"
    if address.name is not None:
        hint += f" See 'hosts: {address.name}'"
    is_refused = isinstance(error, ConnectionRefusedError)
    if isinstance(error, ssl.SSLError | ConnectionError) and not is_refused:
        # With TLS 1.3 the certificate is judged after the handshake, often without a message.
        hint = (
            f"its log says why; '{address.section}.certificate' must be current, and signed by a "
            "CA in 'service.listen.clients' of that host"
        )
    return errors.ServiceUnreachable(
        f"{where} does not answer: {str(error) or 'timed out'}", hint=hint
    )


def is_absent(error: OSError) -> bool:
    """Return whether nothing listens there; a service that was killed leaves its socket behind."""
    return error.errno in (errno.ECONNREFUSED, errno.ENOENT)
