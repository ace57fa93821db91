"""What somebody else does to an image while mapsave and QEMU are at it."""

import ctypes
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit.qemu import Qemu

IN_ATTRIB, IN_CREATE = 0x4, 0x100  # inotify(7), linux/inotify.h
_IN_NONBLOCK = os.O_NONBLOCK
_WITHIN = 600.0  # seconds
_EVENT = struct.Struct("iIII")
_FIRST_FDSET = 1_000_000  # mapsave's are from here upwards


def handed_over(guest: Qemu) -> bool:
    """Return whether QEMU has both descriptors."""
    fdsets = guest.control.execute("query-fdsets")
    return any(each["fdset-id"] >= _FIRST_FDSET and len(each["fds"]) == 2 for each in fdsets)


def migrating(guest: Qemu) -> bool:
    """Return whether QEMU has begun to save."""
    return str(guest.control.execute("query-migrate").get("status")) in ("setup", "active")


@contextmanager
def held(process: subprocess.Popen[str], moment: Callable[[], bool]) -> Iterator[None]:
    """Stop mapsave (SIGSTOP) at the first sight of ``moment``, and let it go on at the end."""
    deadline = time.monotonic() + _WITHIN
    awake = False
    while not awake or not moment():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.001 if awake else 0.05)  # the moment is short
        awake = awake or _awake(process.pid)
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _awake(pid: int) -> bool:
    """Return whether mapsave has started its event loop, which begins with a pair of sockets.

    Until then asking QEMU would only take time from it: there is one processor.
    """
    try:
        files = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    except FileNotFoundError:
        return False  # it has just closed one
    except PermissionError:
        return True  # a security module keeps us from looking
    return any(file.startswith("socket:") for file in files)


class Watch:
    """What happens in a directory from now on (inotify(7)); a context manager."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_IN_NONBLOCK)
        watch = libc.inotify_add_watch(self._fd, os.fsencode(directory), IN_CREATE | IN_ATTRIB)
        assert self._fd >= 0 and watch >= 0, os.strerror(ctypes.get_errno())

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def events(self) -> list[tuple[int, str]]:
        """Return what has happened: IN_CREATE or IN_ATTRIB, and the file's name."""
        data, found = os.read(self._fd, 1 << 16), []
        while data:
            _, mask, _, length = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            found.append((mask & (IN_CREATE | IN_ATTRIB), name))
            data = data[_EVENT.size + length :]
        return found
