"""One saver per guest: locks across processes, by flock(2) on files in the state directory.

The files stay (removing them would let two processes lock two files of one name); the kernel drops
the locks of a process that ends, however it ends.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path

from mapsave import errors

_PAUSES = (0.001, 0.01, 0.0)


def state_directory(state: Path, part: str) -> Path:
    """Return a directory in the state, made if missing. Raises NotPermitted, ConfigMissing."""
    directory = state / part
    with state_errors(f"create the state directory {str(directory)!r}", directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()  # one of ours that was made otherwise is closed to others
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & 0o077:
            directory.chmod(0o700)
    return directory


@contextlib.contextmanager
def state_errors(
    work: str,
    path: Path,
    *,
    failure: type[errors.MapsaveError] = errors.ConfigMissing,
    hint: str = "set 'state:' in the configuration",
) -> Iterator[None]:
    """Raise NotPermitted, or ``failure`` with ``hint``, for an OSError of ``work`` on ``path``."""
    need = os.R_OK | os.W_OK
    with errors.explained(work, path, need, otherwise=failure, hint=hint):
        yield


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to stable storage. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, text: str | bytes) -> None:
    """Write a file of the state directory whole, durably but for its name. Raises OSError."""
    new = path.with_suffix(f".{os.urandom(6).hex()}.new")  # threads may write it at once
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(text if isinstance(text, bytes) else text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def make_room(directory: Path, most: int) -> None:
    """Remove the older half of a directory's files where there are ``most``. Raises OSError."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # others make room, and rename, as well
                found.append((entry.stat().st_mtime_ns, entry.path))
    for _, path in sorted(found)[: len(found) // 2] if len(found) >= most else ():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@contextlib.contextmanager
def process_held(state: Path, what: str, process: tuple[int, int] | None) -> Iterator[None]:
    """Lock a QEMU process (pid and start time) as well, if it is in sight. Raises Busy.

    A guest may have two monitors and names.
    """
    if process is None:
        yield
        return
    with held(state, what, process_key(*process)):
        yield


def process_key(pid: int, started: int) -> str:
    """Return the key of a QEMU process, which ``process_held`` locks."""
    return f"process:{pid}:{started}"


def image_key(uuid: uuids.UUID) -> str:
    """Return the key of an image of that uuid, wherever it or a copy of it is."""
    return f"image:{uuid}"


def is_held(state: Path, key: str, *, exclusive: bool = False) -> bool:
    """Return whether another process holds the lock ``key``, ``exclusive``: be it shared.

    Raises OSError, NotPermitted.
    """
    path = _path(state / "locks", key)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise errors.denied(f"cannot open {str(path)!r}: {error.strerror}", path) from None
    try:
        return not _locked(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _path(directory: Path, key: str) -> Path:
    return directory / (hashlib.sha256(os.fsencode(key)).hexdigest()[:32] + ".lock")


@contextlib.contextmanager
def held(state: Path, what: str, key: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock ``key`` of the thing called ``what``, ``shared`` with others who do so.

    Raises Busy at once, Refused, NotPermitted.
    """
    with opened(state, what, key) as fd:
        if not _locked(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            raise errors.Busy(
                f"{what} is being saved, restored or recovered by another mapsave process"
            )
        yield


@contextlib.contextmanager
def opened(state: Path, what: str, key: str) -> Iterator[int]:
    """Open the file of the lock ``key``: closed, it is free. Raises Refused, NotPermitted."""
    fd = _opened(_path(state_directory(state, "locks"), key), what)
    try:
        yield fd
    finally:
        os.close(fd)


def _opened(path: Path, what: str) -> int:
    """Open a lock's file, made if it is missing. Raises Refused, NotPermitted."""
    hint = "fix that, or set 'state:' in the configuration"
    with state_errors(f"lock {what}: {str(path)!r}", path, failure=errors.Refused, hint=hint):
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough for flock(2)


def _locked(fd: int, how: int) -> bool:
    """Lock a file; False where another process has. ``is_held`` has it for a moment only."""
    for pause in _PAUSES:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(pause)
    return False
