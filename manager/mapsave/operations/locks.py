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
    try:
        yield
    except OSError as error:
        need = os.R_OK | os.W_OK
        raise errors.of_os_error(
            error, f"cannot {work}: {error.strerror}", path, need, otherwise=failure, hint=hint
        ) from None


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to stable storage. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, text: str) -> None:
    """Write a file of the state directory whole, durably but for its name. Raises OSError."""
    new = path.with_suffix(f".{os.getpid()}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


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


def is_held(state: Path, key: str) -> bool:
    """Return whether another process holds the lock ``key``. Raises OSError, NotPermitted."""
    path = _path(state / "locks", key)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise errors.denied(f"cannot open {str(path)!r}: {error.strerror}", path) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _path(directory: Path, key: str) -> Path:
    return directory / (hashlib.sha256(os.fsencode(key)).hexdigest()[:32] + ".lock")


@contextlib.contextmanager
def held(state: Path, what: str, key: str) -> Iterator[None]:
    """Hold the lock ``key`` of the thing called ``what``.

    Raises Busy at once, Refused, NotPermitted.
    """
    path = _path(state_directory(state, "locks"), key)
    fd = _opened(path, what)
    try:
        if not _locked(fd):
            raise errors.Busy(
                f"{what} is being saved, restored or recovered by another mapsave process"
            )
        yield
    finally:
        os.close(fd)


def _opened(path: Path, what: str) -> int:
    """Open a lock's file, made if it is missing. Raises Refused, NotPermitted."""
    try:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough for flock(2)
    except OSError as error:
        raise errors.of_os_error(
            error,
            f"cannot lock {what}: {str(path)!r}: {error.strerror}",
            path,
            os.R_OK | os.W_OK,
            otherwise=errors.Refused,
            hint="fix that, or set 'state:' in the configuration",
        ) from None


def _locked(fd: int) -> bool:
    """Lock a file; False where another process has. ``is_held`` has it for a moment only."""
    for pause in _PAUSES:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(pause)
    return False
