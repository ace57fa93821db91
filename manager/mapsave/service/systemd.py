"""The sockets that systemd passes to the service.

Sources: sd_listen_fds(3), systemd.exec(5). Variables that were read are taken out of the
environment, so that QEMUs and hooks do not act on them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from mapsave import errors

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


def listen_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the listening sockets that systemd passed to this process, in its order.

    They do not block, and children do not inherit them. $LISTEN_PID, $LISTEN_FDS and
    $LISTEN_FDNAMES are taken out of ``environ``. Raises ConfigError where one is not a unix stream
    socket that listens; then all are closed.
    """
    pid, count, names = (
        environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    passed = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count))
    named = dict(zip(passed, names.split(":"), strict=False))
    taken: list[socket.socket] = []
    try:
        taken.extend(_listener(fd, named.get(fd, "")) for fd in passed)
    except BaseException:
        for sock in taken:
            sock.close()
        os.closerange(passed.start + len(taken), passed.stop)
        raise
    return taken


def _listener(fd: int, name: str) -> socket.socket:
    """Return the socket of a passed descriptor. Raises ConfigError, with the descriptor open."""
    what = f"descriptor {fd} ({name or 'unnamed'}) that systemd passed"
    hint = "the socket unit needs ListenStream= with a path, and Accept=no"
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise errors.ConfigError(f"{what} is not a socket: {error.strerror}", hint=hint) from None
    wanted = (
        sock.family == socket.AF_UNIX
        and sock.type == socket.SOCK_STREAM
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )
    if not wanted:
        sock.detach()
        raise errors.ConfigError(f"{what} is not a listening unix stream socket", hint=hint)
    sock.setblocking(False)
    return sock
