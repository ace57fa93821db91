"""A socket on which systemd or journald would listen."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def receiver(address: str) -> Iterator[socket.socket]:
    """Listen as systemd does: a datagram socket at ``address``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.setblocking(False)
        yield sock


def told(sock: socket.socket) -> list[str]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(sock.recv(4096).decode())
    return found
