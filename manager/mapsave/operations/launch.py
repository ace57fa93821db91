"""Start a QEMU that outlives us: with a clean environment, and its output in a file of its own.

It inherits nothing by accident: of our variables, which may hold secrets of the service
(``CREDENTIALS_DIRECTORY``, ``NOTIFY_SOCKET``, those of a cloud), only those that the configuration
names; no descriptors but its output; no blocked signals. Nice value, limits, umask and control
group are what the unit or the caller's shell has set for this purpose, and stay.
"""

import contextlib
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mapsave import errors
from mapsave.config import Config, Guest

_started: list[subprocess.Popen[bytes]] = []
_CANNOT = "cannot write the output of QEMU to"
_MODE = 0o600  # what QEMU prints may name paths, users and guests


def environment(
    config: Config, guest: Guest, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of a QEMU of ``guest``: the variables that the configuration names."""
    names = guest.launch_environment or config.launch_environment
    return {name: environ[name] for name in names if name in environ}


def started(
    arguments: Sequence[str],
    log: Path,
    variables: Mapping[str, str],
    cwd: str | None = None,
    inherited: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, writing to ``log``; remember it for ``reap``.

    It gets the descriptors ``inherited`` under their own numbers, and no others of ours.

    Raises OSError, LaunchFailed where ``log`` is not ours to write.
    """
    with _log(log) as output, _no_signal_blocked():
        process = subprocess.Popen(
            arguments,
            # Found by our PATH, which it need not have; a path is taken from ``cwd``.
            executable=None if "/" in arguments[0] else shutil.which(arguments[0]),
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=inherited,
        )
    _started.append(process)
    return process


def reap() -> None:
    """Let go of what was started and has exited: a service would keep zombies."""
    _started[:] = [process for process in _started if process.poll() is None]


@contextlib.contextmanager
def _log(path: Path) -> Iterator[int]:
    """Open ``path`` for a process to write to, emptied: a regular file of ours, for us alone."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, _MODE)
    except PermissionError as error:
        raise errors.denied(f"{_CANNOT} {str(path)!r}: {error.strerror}", path, os.W_OK) from None
    except OSError as error:
        raise _refused(path, str(error.strerror)) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise _refused(path, "it is not a regular file with a single link")
        if found.st_uid != os.geteuid():
            raise _refused(path, f"it belongs to user {found.st_uid}")
        os.fchmod(fd, _MODE)  # one of an earlier version was readable by others
        os.ftruncate(fd, 0)
        os.set_blocking(fd, True)
        yield fd
    finally:
        os.close(fd)


def _refused(path: Path, reason: str) -> errors.LaunchFailed:
    return errors.LaunchFailed(
        f"{_CANNOT} {str(path)!r}: {reason}",
        hint="remove it, and check who may write to the state directory",
    )


@contextlib.contextmanager
def _no_signal_blocked() -> Iterator[None]:
    """Unblock all signals of this thread: a child inherits the mask, and QEMU keeps it."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
