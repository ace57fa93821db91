"""Unix sockets at paths of any length; an address itself has 108 bytes (unix(7), sun_path)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST = 107


@contextlib.contextmanager
def to_connect(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield an address that reaches the socket at ``path``. Raises OSError."""
    name = os.fspath(path)
    if len(os.fsencode(name)) <= _LONGEST:
        yield name
        return
    fd = os.open(name, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def to_bind(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield an address under which a socket can be made at ``path``. Raises OSError."""
    directory, name = os.path.split(os.fspath(path))
    if len(os.fsencode(path)) <= _LONGEST:
        yield os.fspath(path)
        return
    fd = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
