"""Where the service listens: its own unix socket or systemd's, and TCP with mutual TLS."""

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from mapsave import errors, service_settings, unix_socket
from mapsave.operations import locks
from mapsave.service_settings import Listen

_MODE = 0o666  # everybody may connect; the kernel says who it is, and the roles what they may
_BACKLOG = 1024


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold the state directory for this service. Raises ServiceRunning, NotPermitted."""
    path = state / "service.lock"
    with locks.state_errors(f"use the state directory {str(state)!r}", path):
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.ServiceRunning(
                f"another service is running with the state directory {str(state)!r}"
            ) from None
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def unix(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path``, mode 0666, in place of a socket that nothing listens on any more.

    Raises ServiceRunning, NotPermitted, ConfigError.
    """
    made: tuple[int, int] | None = None
    with _explained(path):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _explained(path):
            with _masked(), unix_socket.to_bind(path) as address:
                listener.bind(address)
            stats = path.lstat()
            made = (stats.st_dev, stats.st_ino)
            path.chmod(_MODE)
            listener.listen(_BACKLOG)
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            stats = path.lstat()
            if made == (stats.st_dev, stats.st_ino):
                path.unlink()


@contextlib.contextmanager
def _masked() -> Iterator[None]:
    """Make what is made in the meantime for us alone; the service has one thread by then."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise errors.ConfigError(
                f"{str(path)!r} exists and is not a socket",
                hint="remove it, or set 'socket:' in the configuration",
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            with unix_socket.to_connect(path) as address:
                probe.connect(address)
        except ConnectionRefusedError:
            path.unlink()
            return
    raise errors.ServiceRunning(f"another service listens at {str(path)!r}")


def _explained(path: Path) -> contextlib.AbstractContextManager[None]:
    """Raise ConfigError or NotPermitted in place of an OSError about the socket."""
    return errors.explained(
        f"listen at {str(path)!r}",
        path.parent,
        os.W_OK | os.X_OK,
        otherwise=errors.ConfigError,
        hint="set 'socket:' in the configuration",
    )


@contextlib.contextmanager
def tcp(listen: Listen) -> Iterator[socket.socket]:
    """Listen on a TCP address. Raises ConfigError, NotPermitted."""
    host, port = service_settings.host_and_port(listen.address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except PermissionError as error:
            raise errors.NotPermitted(
                f"service.listen: cannot listen at {listen.address}: {error.strerror}",
                hint="choose a port above 1023, or give the service CAP_NET_BIND_SERVICE",
            ) from None
        except OSError as error:
            raise errors.ConfigError(
                f"service.listen: cannot listen at {listen.address}: {error.strerror}"
            ) from None
        listener.setblocking(False)
        yield listener
