"""Unix sockets at paths of any length; an address itself has 108 bytes (unix(7), sun_path)."""

import contextlib
import os
from collections.abc import Iterator

_LONGEST = 107


def to_connect(path: str | os.PathLike[str]) -> contextlib.AbstractContextManager[str]:
    """Yield an address that reaches the socket at ``path``. Raises OSError."""
    return _short(os.fspath(path), os.fspath(path))


def to_bind(path: str | os.PathLike[str]) -> contextlib.AbstractContextManager[str]:
    """Yield an address under which a socket can be made at ``path``. Raises OSError."""
    directory, name = os.path.split(os.fspath(path))
    return _short(os.fspath(path), directory or ".", f"/{name}")


@contextlib.contextmanager
def _short(path: str, through: str, rest: str = "") -> Iterator[str]:
    """Yield ``path``, or where it is too long one ``through`` a descriptor."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield path
        return
    fd = os.open(through, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}{rest}"
    finally:
        os.close(fd)
