"""The pair: one buffered and one O_DIRECT open file description of the same image.

QEMU picks a descriptor from the fdset by access mode and O_DIRECT alone, sets other flags on what
it takes, and dies where one is missing (QEMU 10.0: ``monitor/fds.c``, ``migration/multifd.c``). So
the pair is checked with F_GETFL and fstat before it is handed over, and these rules hold:

* two open file descriptions, not duplicates of one another, of the same regular file;
* both O_WRONLY for a save, both O_RDONLY for a restore: O_RDWR never matches;
* exactly one with O_DIRECT where direct-io is on, none where it is off;
* neither O_APPEND, O_SYNC nor O_DSYNC: QEMU would refuse it or clear it behind our back.
"""

import contextlib
import dataclasses
import errno
import fcntl
import mmap
import os
import resource
import stat
from collections.abc import Iterator

from mapsave import errors
from mapsave.image import syscalls

_FORBIDDEN = {os.O_APPEND: "O_APPEND", os.O_SYNC: "O_SYNC", os.O_DSYNC: "O_DSYNC"}
# Why an open may fail though the file is there, and good.
_SAY_NOTHING = frozenset(
    (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
)
# Far from the descriptors that a shell script opens for itself.
_FIRST_INHERITED = 64
_PROBE_SIZE = 4096  # the unit in which QEMU writes pages with direct-io (x86)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two descriptors of one image. ``second`` is the O_DIRECT one where ``direct_io`` is on."""

    first: int
    second: int
    direct_io: bool

    def check(self, access: int) -> None:
        """Check what QEMU relies on; ``access`` is os.O_WRONLY or os.O_RDONLY.

        Raises MapsaveError: a pair of our own that breaks the rules is a bug, caught before QEMU
        is killed by it.
        """
        problem = self._problem(access)
        if problem is not None:
            raise errors.MapsaveError(f"refusing to hand over the descriptors: {problem}")

    def _problem(self, access: int) -> str | None:
        flags = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (self.first, self.second)]
        stats = [os.fstat(fd) for fd in (self.first, self.second)]
        if any(value & os.O_ACCMODE != access for value in flags):
            return f"access modes {[value & os.O_ACCMODE for value in flags]}, expected {access}"
        for bit, name in _FORBIDDEN.items():
            # O_SYNC contains the bit of O_DSYNC, so compare whole values.
            if any(value & bit == bit for value in flags):
                return f"{name} is set"
        direct = [bool(value & os.O_DIRECT) for value in flags]
        if direct != [False, self.direct_io]:
            return f"O_DIRECT is {direct}, expected {[False, self.direct_io]}"
        if not all(stat.S_ISREG(status.st_mode) for status in stats):
            return "not a regular file"
        if (stats[0].st_dev, stats[0].st_ino) != (stats[1].st_dev, stats[1].st_ino):
            return "two different files"
        if _same_description(self.first, self.second):
            return "duplicates of one open file description"
        return None


def _same_description(one: int, other: int) -> bool:
    """Return whether two descriptors share a file position, hence one open file description."""
    before = os.lseek(other, 0, os.SEEK_CUR)
    mine = os.lseek(one, 0, os.SEEK_CUR)
    try:
        os.lseek(one, before + 1, os.SEEK_SET)
        return os.lseek(other, 0, os.SEEK_CUR) != before
    finally:
        os.lseek(one, mine, os.SEEK_SET)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def inherited(fd: int) -> Iterator[int]:
    """Yield a duplicate of ``fd`` under a number that a QEMU may inherit it by. Raises OSError."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    first = most // 2 if 0 < most <= _FIRST_INHERITED else _FIRST_INHERITED
    with closing(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first)) as duplicate:
        yield duplicate


def opened(
    directory: int, name: str, flags: int, mode: int = 0
) -> contextlib.AbstractContextManager[int]:
    """Open ``name`` beneath ``directory``, no symbolic links followed; close it at the end."""
    return closing(syscalls.open_beneath(directory, name, flags, mode))


def reopened(fd: int, flags: int) -> contextlib.AbstractContextManager[int]:
    """Open a second description of the very file behind ``fd``, whatever its name is by now.

    Raises OSError: EINVAL where ``flags`` has O_DIRECT and the file system refuses it.
    """
    return closing(os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC))


@contextlib.contextmanager
def paired(fd: int, access: int, *, direct_io: bool) -> Iterator[Pair]:
    """Make the pair for the file behind ``fd``, which stays the caller's; checked.

    ``fd`` may have any access mode: both descriptors of the pair are reopened. Raises NoDirectIO
    where the file system refuses O_DIRECT.
    """
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(reopened(fd, access))
        try:
            flags = access | (os.O_DIRECT if direct_io else 0)
            second = stack.enter_context(reopened(fd, flags))
        except OSError as error:
            if error.errno != errno.EINVAL or not direct_io:
                raise
            raise errors.NoDirectIO(
                "the image's file system refuses O_DIRECT", hint="set direct_io to auto or off"
            ) from None
        pair = Pair(first, second, direct_io)
        pair.check(access)
        yield pair


def probe_direct_io(directory: int) -> str | None:
    """Tell why files in this directory cannot take QEMU's direct writes; None if they can.

    Writes one page to an unnamed (or at once unlinked) file: some file systems accept the flag and
    refuse the write. QEMU writes at multiples of 4 KiB; a device that needs more is refused. Raises
    OSError where no file can be made at all.
    """
    with unnamed(directory) as fd:
        try:
            with reopened(fd, os.O_WRONLY | os.O_DIRECT) as direct:
                alignment = syscalls.direct_io_alignment(direct)
                if alignment is not None and max(alignment) > _PROBE_SIZE:
                    return f"O_DIRECT needs an alignment of {max(alignment)} bytes"
                # Anonymous and shared: O_DIRECT from a private mapping races with fork.
                with mmap.mmap(-1, _PROBE_SIZE) as page:
                    os.pwrite(direct, page, _PROBE_SIZE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return "the file system refuses O_DIRECT"
    return None


def unnamed(directory: int) -> contextlib.AbstractContextManager[int]:
    """Make a file without a name in a directory; it is gone at the end. Raises OSError."""
    try:
        fd = os.open(f"/proc/self/fd/{directory}", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        name = f".mapsave-probe-{os.urandom(8).hex()}"
        fd = syscalls.open_beneath(directory, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(name, dir_fd=directory)
    return closing(fd)


def takes_direct_io(fd: int) -> bool:
    """Return whether the file system of ``fd`` takes direct reads."""
    try:
        with reopened(fd, os.O_RDONLY | os.O_DIRECT):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Read an image: what the disk fails at becomes UnreadableImage."""
    try:
        yield
    except OSError as error:
        raise unreadable(name, error) from None


def unreadable(name: str, error: OSError) -> errors.UnreadableImage:
    """Return the error for an image that cannot be read now, be it good or not."""
    return errors.UnreadableImage(
        f"{name!r} cannot be read: {error.strerror}",
        hint="try again once its disk and file system work, or restore from another copy",
        errno=error.errno,
    )


@contextlib.contextmanager
def opened_for_reading(name: str) -> Iterator[int]:
    """Open a regular file. Raises ImageNotFound, NotPermitted, NotAnImage, UnreadableImage."""
    try:
        # O_NONBLOCK: a FIFO of that name must not hold us; it is refused below.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise errors.denied(f"cannot open {name!r}: {error.strerror}", name) from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _SAY_NOTHING:
            raise unreadable(name, error) from None
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.ImageNotFound(f"cannot open {name!r}: {reason}") from None
    with closing(fd):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise errors.NotAnImage(f"{name!r} is not a regular file")
        yield fd
