"""Descriptors for the time of a block."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def opened(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open ``path``; what O_CREAT makes is for its owner alone."""
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def in_memory() -> Iterator[int]:
    """Make a file that is on no file system (memfd_create(2))."""
    fd = os.memfd_create("test")
    try:
        yield fd
    finally:
        os.close(fd)
