"""How much of an image is its own: what no other file shares, and its removal would give back.

Checkpoints share extents with the guest's RAM file and with one another, and what they share
changes with all that the guest writes. It takes the kernel microseconds for each extent to tell, of
which there may be hundreds of thousands: so it is asked for a limited time, and again only after
minutes.
"""

from __future__ import annotations

import os
import time

from mapsave.image import extents

_FRESH = 300.0  # seconds
_MOST = 10_000  # images that are remembered
_Key = tuple[int, int, int]  # inode, bytes on disk, ctime in nanoseconds

_known: dict[_Key, tuple[float, int]] = {}


class Budget:
    """Seconds that looking at images may take together."""

    def __init__(self, seconds: float = 2.0) -> None:
        self._until = time.monotonic() + seconds

    def of(self, path: str, *, is_checkpoint: bool) -> int | None:
        """Return how many bytes on the disk are of that image alone. Blocks.

        All of them for one that is no checkpoint. None where that cannot be told, or not soon.
        """
        try:
            stats = os.stat(path)
            size = stats.st_blocks * 512
            if not is_checkpoint:
                return size
            key = (stats.st_ino, size, stats.st_ctime_ns)
            when, found = _known.get(key, (0.0, 0))
            now = time.monotonic()
            if when and now - when < _FRESH:
                return found
            if now >= self._until:
                return None
            asked = looked(path, seconds=self._until - now)
        except OSError:
            return None
        if asked is not None:
            if len(_known) >= _MOST:
                _known.clear()
            _known[key] = (now, asked)
        return asked


def looked(path: str, *, seconds: float = 30.0) -> int | None:
    """Return what ``Budget.of`` does, asked now. Raises OSError where it cannot be opened."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        stats = os.fstat(fd)
        shared = extents.shared_bytes(fd, stats.st_size, seconds=seconds)
        return None if shared is None else max(stats.st_blocks * 512 - shared, 0)
    finally:
        os.close(fd)
