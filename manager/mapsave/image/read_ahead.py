"""Read parts of a file into the page cache, so that a guest that maps them need not wait for them.

``posix_fadvise(2)`` with ``POSIX_FADV_WILLNEED`` begins to read and returns, so that many short
runs are under way at once: two to ten times as fast as to read them one by one. The kernel's limit
to that is the length of the disk's queue, in which the guest's own reads would wait. So no more
than a window is under way, and reading one byte waits for each piece of it.
"""

import dataclasses
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Iterable

from mapsave.image import spans, syscalls

# By one call the kernel reads no more ahead than it does for the device by itself, 128 KiB unless
# configured otherwise; the rest would be dropped (mm/readahead.c: force_page_cache_ra).
PIECE = 128 << 10
_WINDOW = 8 << 20  # bytes
_WINDOWS_A_SECOND = 10  # at least, at a limited rate


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much is read: at most ``rate`` bytes per second (None: as the disk allows), and nothing
    after ``until``, a time of ``time.monotonic``.
    """

    rate: int | None
    until: float


class Reader:
    """Reads parts of the file ``fd``; ``done_bytes`` are in the page cache.

    ``fd`` is an open file description of its own: it is not read ahead of any more by itself.
    """

    def __init__(self, fd: int, limits: Limits, stop: threading.Event) -> None:
        self._fd = fd
        self._limits = limits
        self._stop = stop
        self._window = _WINDOW
        if limits.rate is not None:
            self._window = min(_WINDOW, limits.rate // _WINDOWS_A_SECOND)
        self.done_bytes = 0

    def read(self, parts: Iterable[tuple[int, int]], *, is_idle: bool = False) -> bool:
        """Read the parts (offset, end), in their order; return whether that were all of them.

        It ends where it was told to stop, or time is up. ``is_idle``: only while the disk has
        nothing else to do, where its scheduler can tell. Blocks. Raises OSError.
        """
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
        syscalls.lower_io_priority(is_idle=is_idle)
        began, before = time.monotonic(), self.done_bytes
        under_way: deque[tuple[int, int]] = deque()
        asked = 0
        pieces = (piece for part in parts for piece in spans.cut(part[0], part[1], PIECE))
        for start, end in pieces:
            os.posix_fadvise(self._fd, start, end - start, os.POSIX_FADV_WILLNEED)
            under_way.append((start, end))
            asked += end - start
            while asked > self._window and under_way:
                asked -= self._wait(*under_way.popleft())
                if self._is_over(began, self.done_bytes - before):
                    return False
        for piece in under_way:
            self._wait(*piece)
        return True

    def _wait(self, start: int, end: int) -> int:
        """Wait until a piece is there; return its length."""
        if not os.pread(self._fd, 1, end - 1):
            raise OSError(errno.ENXIO, "it has become shorter")
        self.done_bytes += end - start
        return end - start

    def _is_over(self, began: float, done: int) -> bool:
        """Return whether to stop; wait before that, where reading is faster than it may be."""
        now = time.monotonic()
        pause = 0.0
        if self._limits.rate is not None:
            pause = max(0.0, min(began + done / self._limits.rate, self._limits.until) - now)
        return self._stop.wait(pause) or now + pause >= self._limits.until
