"""Where an archive goes to or comes from: a file, or standard output and input."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mapsave import blocking, errors
from mapsave.image import descriptors, syscalls

if TYPE_CHECKING:
    from concurrent import futures

    from _typeshed import ReadableBuffer, WriteableBuffer

    from mapsave.image.piece_reader import Note

STREAM = "-"  # standard output or input
_LOOK = 250  # milliseconds from one look whether to go on to the next, as the other end waits
# Bytes from one fdatasync to the next: what is in memory only is written in less than a second.
_SYNC = 128 << 20


class Syncing:
    """Has what is written to a file reach its disk as it is written, not all in the end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._since = 0
        self._under_way: futures.Future[None] | None = None

    def wrote(self, count: int) -> None:
        """Note so many bytes; wait where the disk is two steps behind. Raises OSError."""
        self._since += count
        if self._since < _SYNC:
            return
        self._since = 0
        self.wait()
        self._under_way = blocking.begin(os.fdatasync, self._fd)

    def wait(self) -> None:
        """Wait for the step that is under way. Raises OSError."""
        if (outcome := self._under_way) is not None:
            self._under_way = None
            outcome.result()


class Output:
    """Writes an archive to a descriptor; ``count`` bytes so far.

    Where that is a pipe, ``note`` is called while its reader does not read.
    """

    def __init__(self, fd: int, name: str, note: Note) -> None:
        self.count = 0
        self._fd = fd
        self._name = name
        self._note = note
        self._syncing = Syncing(fd) if stat.S_ISREG(os.fstat(fd).st_mode) else None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it. Raises ExportFailed, NoRoom, and what ``note`` raises."""
        with memoryview(data) as view, writing(self._name):
            done = 0
            while done < len(view):
                try:
                    done += os.write(self._fd, view[done:])
                except BlockingIOError:
                    _wait(self._fd, select.POLLOUT, self._note)
            self.count += done
            if self._syncing is not None:
                self._syncing.wrote(done)
            return done

    def finish(self) -> None:
        """Wait for the disk. Raises as ``write`` does."""
        with writing(self._name):
            if self._syncing is not None:
                self._syncing.wait()
                os.fsync(self._fd)


@contextlib.contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn what a file or pipe refuses into ExportFailed or NoRoom."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise errors.NoRoom(
                f"cannot write {name}: {error.strerror}; the image was not exported",
                hint="free some space there, or choose another place",
            ) from None
        hint = "the program that reads it has ended: see what it says"
        raise errors.ExportFailed(
            f"cannot write {name}: {error.strerror}; the image was not exported",
            hint=hint if error.errno == errno.EPIPE else "check its disk or server",
        ) from None


def _wait(fd: int, events: int, note: Note) -> None:
    poll = select.poll()
    poll.register(fd, events)
    while not poll.poll(_LOOK):
        note(0)


class Input(io.RawIOBase):
    """Reads an archive from a descriptor; ``note`` is called while a pipe has nothing."""

    def __init__(self, fd: int, name: str, note: Note) -> None:
        self._fd = fd
        self._name = name
        self._note = note

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read some of it. Raises ImportFailed, and what ``note`` raises."""
        while True:
            try:
                return os.readv(self._fd, [buffer])
            except BlockingIOError:
                _wait(self._fd, select.POLLIN, self._note)
            except OSError as error:
                raise errors.ImportFailed(
                    f"cannot read {self._name}: {error.strerror}", hint="check its disk or server"
                ) from None


@contextlib.contextmanager
def stream(fd: int, flags: int) -> Iterator[int]:
    """Yield a descriptor of standard output or input; of a pipe one that does not block.

    It is another description, so that other processes keep theirs as it is.
    """
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(descriptors.closing(os.dup(fd)))
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            with contextlib.suppress(OSError):  # another user's
                found = stack.enter_context(descriptors.reopened(fd, flags | os.O_NONBLOCK))
        yield found


@contextlib.contextmanager
def source(path: str) -> Iterator[int]:
    """Open an archive for reading. Raises UsageError, NotPermitted."""
    if path == STREAM:
        if os.isatty(0):
            raise errors.UsageError("an archive is not read from a terminal", hint="name its file")
        with stream(0, os.O_RDONLY) as fd:
            yield fd
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise errors.denied(f"cannot open {path!r}: {error.strerror}", path) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.UsageError(f"cannot open {path!r}: {reason}") from None
    with descriptors.closing(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise errors.UsageError(f"{path!r} is a directory")
        yield fd


class Target:
    """A new file, which has its name only once ``commit`` is called.

    Until then it has none, where the file system can do that: a crash leaves nothing.
    """

    def __init__(self, directory: int, path: str, *, replace: bool) -> None:
        self._directory = directory
        self._path = path
        self._name = os.path.basename(path)
        self._replace = replace
        random = os.urandom(6).hex()
        self._temporary = os.fsdecode(os.fsencode(f".{self._name}")[:200]) + f".{random}"
        self._has_temporary = False
        try:
            flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
            self.fd = os.open(f"/proc/self/fd/{directory}", flags, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self.fd = syscalls.open_beneath(directory, self._temporary, flags, 0o600)
            self._has_temporary = True

    def commit(self) -> None:
        """Give it its name. Raises UsageError where that is there, ExportFailed."""
        with writing(repr(self._path)):
            try:
                if not self._has_temporary:
                    self._link(self._temporary if self._replace else self._name)
                    self._has_temporary = self._replace
                if self._has_temporary:
                    names = (self._temporary, self._name)
                    syscalls.rename(self._directory, *names, replace=self._replace)
                    self._has_temporary = False
            except FileExistsError:
                raise _exists(self._path) from None
            os.fsync(self._directory)

    def _link(self, name: str) -> None:
        # Of a file without a name: open(2), O_TMPFILE.
        own = f"/proc/self/fd/{self.fd}"
        os.link(own, name, dst_dir_fd=self._directory, follow_symlinks=True)

    def close(self) -> None:
        """Close it; what has no name yet is gone."""
        os.close(self.fd)
        if self._has_temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=self._directory)


@contextlib.contextmanager
def target(path: str, *, replace: bool) -> Iterator[Target]:
    """Begin a new file at ``path``. Raises UsageError, NotPermitted, ExportFailed."""
    directory, name = os.path.split(path)
    try:
        if not name or stat.S_ISDIR((found := os.stat(path)).st_mode):
            raise errors.UsageError(f"{path!r} is a directory", hint="name a file in it")
        if not stat.S_ISREG(found.st_mode):
            raise errors.UsageError(f"{path!r} is not a regular file", hint="'-o - >FILE' does it")
        if not replace:
            raise _exists(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise errors.UsageError(f"cannot make {path!r}: {reason}") from None
    work = f"make a file in {directory or '.'!r}"
    with errors.explained(work, directory or ".", os.W_OK | os.X_OK, otherwise=errors.ExportFailed):
        fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with descriptors.closing(fd):
        with errors.explained(
            work, directory or ".", os.W_OK | os.X_OK, otherwise=errors.ExportFailed
        ):
            found_target = Target(fd, path, replace=replace)
        with contextlib.closing(found_target):
            yield found_target


def _exists(path: str) -> errors.UsageError:
    return errors.UsageError(f"{path!r} exists", hint="--replace replaces it; or name another")
