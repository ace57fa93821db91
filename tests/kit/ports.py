"""Ports of loopback, for servers that are told a number."""

import socket

_reserved: list[socket.socket] = []


def reserved() -> int:
    """Return a TCP port of 127.0.0.1 at which only a server that is told it will listen.

    It is bound until this process ends, so the kernel gives it to nobody who asks for any port: not
    to another worker of the tests, nor to a connection. A server with SO_REUSEADDR may listen at
    it all the same (socket(7)), as ours, Prometheus and Cockpit do.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    _reserved.append(sock)
    return int(sock.getsockname()[1])
