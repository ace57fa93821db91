"""Sets of file descriptors that the client passed with ``add-fd``, and opening ``/dev/fdset/N``.

Source: QEMU's ``monitor/fds.c`` and ``util/osdep.c`` of 10.0, observed.
"""

import dataclasses
import errno
import fcntl
import os
import re
import threading

from mapsave.emulator.faults import QmpError

_PREFIX = "/dev/fdset/"
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR | os.O_DIRECT
# What F_SETFL can change (fcntl(2)): a description with one of the other flags cannot be matched.
_SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME | os.O_ASYNC


@dataclasses.dataclass
class _Descriptor:
    fd: int
    opaque: str | None

    def described(self) -> dict[str, object]:
        opaque = {} if self.opaque is None else {"opaque": self.opaque}
        return {"fd": self.fd, **opaque}


@dataclasses.dataclass
class _Set:
    descriptors: list[_Descriptor] = dataclasses.field(default_factory=list)
    dups: set[int] = dataclasses.field(default_factory=set)


class FdSets:
    """All sets of one emulator; the migration thread closes its duplicates, hence the lock."""

    def __init__(self) -> None:
        self._sets: dict[int, _Set] = {}
        self._lock = threading.Lock()

    def add(self, fd: int, fdset_id: int | None, opaque: str | None) -> dict[str, int]:
        """Put ``fd`` into a set, made if need be. Raises QmpError; then ``fd`` is closed."""
        if fdset_id is not None and fdset_id < 0:
            os.close(fd)
            raise QmpError("Parameter 'fdset-id' expects a non-negative value")
        with self._lock:
            if fdset_id is None:
                fdset_id = next(n for n in range(len(self._sets) + 1) if n not in self._sets)
            target = self._sets.setdefault(fdset_id, _Set())
            target.descriptors.append(_Descriptor(fd, opaque))
        return {"fd": fd, "fdset-id": fdset_id}

    def remove(self, fdset_id: int, fd: int | None) -> None:
        """Close one descriptor of a set or all. Raises QmpError if there is no such."""
        name = f"fdset-id:{fdset_id}" + ("" if fd is None else f", fd:{fd}")
        with self._lock:
            target = self._sets.get(fdset_id, _Set())
            gone = [one for one in target.descriptors if fd in (None, one.fd)]
            if fdset_id not in self._sets or (fd is not None and not gone):
                raise QmpError(f"File descriptor named '{name}' not found")
            for one in gone:
                target.descriptors.remove(one)
                os.close(one.fd)
            self._forget_empty(fdset_id)

    def listing(self) -> list[dict[str, object]]:
        """Return what ``query-fdsets`` answers: highest id first, descriptors as added."""
        with self._lock:
            return [
                {"fdset-id": fdset_id, "fds": [one.described() for one in target.descriptors]}
                for fdset_id, target in sorted(self._sets.items(), reverse=True)
            ]

    def open(self, path: str, flags: int) -> int:
        """Duplicate the newest descriptor of that access mode and O_DIRECT. Raises QmpError."""
        match = re.fullmatch(r"\d+", path.removeprefix(_PREFIX))
        if match is None:
            raise QmpError(f"Could not parse fdset {path}")
        fdset_id = int(match[0])
        with self._lock:
            target = self._sets.get(fdset_id)
            if target is None:
                raise QmpError(f"Failed to find fdset {path}")
            for one in reversed(target.descriptors):
                if fcntl.fcntl(one.fd, fcntl.F_GETFL) & _ACCESS == flags & _ACCESS:
                    dup = _duplicate(one.fd, flags)
                    target.dups.add(dup)
                    return dup
        raise QmpError(f"Failed to find file descriptor with matching flags=0x{flags:x}")

    def open_file(self, filename: str, flags: int) -> int:
        """Open a file, or from its fdset, as ``qemu_open_internal`` does. Raises QmpError."""
        if filename.startswith(_PREFIX):
            return self.open(filename, flags)
        try:
            return os.open(filename, flags | os.O_CLOEXEC, 0o600 if flags & os.O_CREAT else 0o777)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            if error.errno == errno.EINVAL and flags & os.O_DIRECT:
                reason = "filesystem does not support O_DIRECT"
            verb = "create" if flags & os.O_CREAT else "open"
            raise QmpError(f"Could not {verb} '{filename}': {reason}") from None

    def close(self, fd: int) -> None:
        """Close ``fd``, one of :meth:`open` or any other; an empty set without dups vanishes."""
        with self._lock:
            for fdset_id, target in list(self._sets.items()):
                if fd in target.dups:
                    target.dups.remove(fd)
                    self._forget_empty(fdset_id)
            os.close(fd)

    def _forget_empty(self, fdset_id: int) -> None:
        target = self._sets[fdset_id]
        if not target.descriptors and not target.dups:
            del self._sets[fdset_id]


def _duplicate(fd: int, flags: int) -> int:
    """Duplicate ``fd`` with exactly the status flags ``flags``, as QEMU's ``qemu_dup_flags``."""
    dup = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    current = fcntl.fcntl(dup, fcntl.F_GETFL)
    # O_SYNC and O_DSYNC cannot be cleared by F_SETFL, so QEMU refuses a description with them.
    if (current ^ flags) & (os.O_SYNC | os.O_DSYNC) & ~_SETTABLE:
        os.close(dup)
        raise QmpError(f"Failed to dup() given file descriptor fd={fd}")
    fcntl.fcntl(dup, fcntl.F_SETFL, flags & _SETTABLE)
    return dup
