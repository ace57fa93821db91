"""Keep libvirt's connection to a QEMU's monitor open until the process of that QEMU is gone.

libvirt ends a domain once that connection is closed, which QEMU does some time before its process
is gone (10.0, ``monitor_cleanup``). Where libvirt finds the process still there, it looks again
only after 0.2 s (11.3, ``util/virprocess.c``). A duplicate of QEMU's end of the connection puts
that off to the moment when there is nothing left to wait for.
"""

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Iterator

from mapsave.monitor import process

_SYS_PIDFD_GETFD = 438  # the same number on every architecture: it came after they were unified
# Where libvirt has a QEMU listen, in a directory of the domain's own (``qemu/qemu_domain.c``).
_MONITOR = "/monitor.sock"


@contextlib.contextmanager
def connections(pid: int, started: int) -> Iterator[int]:
    """Keep the connections open within the context; yield how many there are.

    None where that is not allowed: it needs the rights of ptrace(2). Blocks for a moment.
    """
    with contextlib.ExitStack() as stack:
        count = 0
        with contextlib.suppress(OSError):
            for connection in _duplicates(pid, started):
                stack.enter_context(connection)
                count += 1
        yield count


def _duplicates(pid: int, started: int) -> Iterator[socket.socket]:
    """Yield duplicates of what the process has accepted at its monitor. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        if not process.alive(pid, started):
            return  # the pid is another's by now
        for name in os.listdir(f"/proc/{pid}/fd"):
            found = _socket(pid, pidfd, name)
            if found is not None and _is_connected_to_monitor(found):
                yield found
            elif found is not None:
                found.close()
    finally:
        os.close(pidfd)


def _socket(pid: int, pidfd: int, name: str) -> socket.socket | None:
    """Return a duplicate of a descriptor that is a socket; None of another. Raises OSError."""
    try:
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            return None
        number = duplicate(pidfd, int(name))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EBADF):
            return None  # closed since it was listed, as QEMU does with what the save had open
        raise
    try:
        return socket.socket(fileno=number)
    except OSError:
        os.close(number)  # the number is another file's by now
        return None


def _is_connected_to_monitor(found: socket.socket) -> bool:
    if found.family != socket.AF_UNIX or not str(found.getsockname()).endswith(_MONITOR):
        return False
    try:
        found.getpeername()
    except OSError:
        return False  # the one that listens
    return True


def duplicate(pidfd: int, number: int) -> int:
    """Return a duplicate of a descriptor of another process (pidfd_getfd(2)). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    found: int = libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    if found == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
