"""Entries to systemd's journal in its native protocol: fields, not only a line of text.

One datagram an entry, to the socket of journald. See https://systemd.io/JOURNAL_NATIVE_PROTOCOL/.
"""

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"
# syslog(3), which journald's PRIORITY and the prefixes of sd-daemon(3) follow.
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

_LONGEST_NAME = 64  # systemd.journal-fields(7)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def names(fd: int | None, stream: str | None) -> bool:
    """Return whether ``stream``, the value of $JOURNAL_STREAM, names the file ``fd``.

    systemd.exec(5): ``device:inode`` of what it connected to the journal. Children of a service
    inherit the variable, but may write elsewhere.
    """
    found = re.fullmatch(r"(\d+):(\d+)", stream or "")
    if found is None or fd is None:
        return False
    try:
        stats = os.fstat(fd)
    except OSError:
        return False
    return (stats.st_dev, stats.st_ino) == (int(found[1]), int(found[2]))


def field_name(prefix: str, key: str) -> str:
    """Return the name of a field: capitals, digits and underscores, 64 at most."""
    return re.sub(r"[^A-Z0-9_]", "_", f"{prefix}{key}".upper())[:_LONGEST_NAME]


def entry(fields: Mapping[str, str]) -> bytes:
    """Return an entry as journald reads it.

    A value with a newline is preceded by its length, so no value can pass for another field.
    """
    made = bytearray()
    for name, text in fields.items():
        value = text.encode("utf-8", "backslashreplace")
        if b"\n" in value:
            made += name.encode("ascii") + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            made += name.encode("ascii") + b"=" + value + b"\n"
    return bytes(made)


class Journald:
    """The way to the journald that listens at ``path``."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        # Not connected: journald may be restarted, and then listens at a new socket of that path.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send an entry; False where journald is not there or has no room. Never waits."""
        data = entry(fields)
        try:
            try:
                self._socket.sendto(data, self._path)
            except OSError as error:
                if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):  # unix(7): too large
                    return False
                self._send_file(data)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send_file(self, data: bytes) -> None:
        """Send an entry as a sealed file in memory, which journald demands. Raises OSError."""
        fd = os.memfd_create("mapsave-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))
            # Not socket.send_fds: that of Python 3.11 ignores the address.
            self._socket.sendmsg([b""], [rights], 0, self._path)
