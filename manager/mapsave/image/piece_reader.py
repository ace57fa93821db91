"""Read a file in pieces of 1 MiB, as fast as its disk reads: direct, several at a time.

Holes are not read. A file system without direct reads is read through the page cache.
"""

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator

from mapsave import blocking, errors, units
from mapsave.image import bitmaps, descriptors

PIECE = units.MIB
# A disk reads as fast with four requests at a time as with more; some threads have data to look at.
_THREADS = 6

Put = Callable[[int, memoryview], object]
Note = Callable[[int], None]


def read(
    fd: int,
    begin: int,
    end: int,
    put: Put,
    note: Note,
    threads: int = _THREADS,
    *,
    in_order: bool = False,
) -> None:
    """Call ``put`` with the number of each piece that has data, and its bytes of the file.

    Of the first and the last piece those from ``begin`` to ``end``. ``put`` is called by several
    threads, of different pieces; what it gets is overwritten by the next. With ``in_order`` it is
    called by one at a time, in the order of the file, and may wait while others read ahead.
    ``note`` is called by one at a time with the length of each piece before it is read, and may
    wait; what it raises ends the reading, and is raised. Raises TruncatedImage where the file ends
    before ``end``, OSError that names the offset.
    """
    with contextlib.ExitStack() as stack:
        # Who gives up on storage that hangs closes ``fd``, and its number may mean another file.
        fd = stack.enter_context(descriptors.closing(os.dup(fd)))
        reader = _Reader(fd, begin, end, put, note)
        reader.in_order = in_order
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_DIRECT
            reader.direct = stack.enter_context(descriptors.reopened(fd, flags))
        # Daemons: of storage that hangs the process can end all the same.
        working = [blocking.begin(reader.work) for _ in range(threads)]
        for each in working:
            each.exception()  # none may use the descriptor when it is closed
    for each in working:
        each.result()


def with_data(fd: int, begin: int, end: int) -> Iterator[int]:
    """Yield the number of each piece from ``begin`` to ``end`` that is not a hole."""
    at = begin
    while at < end:
        at = max(at, bitmaps.data_from(fd, at))
        if at >= end:
            return
        yield at // PIECE
        at = (at // PIECE + 1) * PIECE


class _Reader:
    def __init__(self, fd: int, begin: int, end: int, put: Put, note: Note) -> None:
        self.direct: int | None = None
        self.in_order = False
        self._fd = fd
        self._begin = begin
        self._end = end
        self._put = put
        self._note = note
        self._numbers = with_data(fd, begin, end)
        self._lock = threading.Lock()
        self._has_failed = False
        self._taken = 0  # pieces, by all threads
        self._turn = 0  # of which ``put`` has got so many, in order
        self._turns = threading.Condition()

    def work(self) -> None:
        """Read piece after piece, until none is left."""
        try:
            with mmap.mmap(-1, PIECE) as buffer, memoryview(buffer) as view:
                while (taken := self._next()) is not None:
                    turn, number = taken
                    low = max(self._begin, number * PIECE)
                    high = min(self._end, (number + 1) * PIECE)
                    self._read(view, number * PIECE, high)
                    with view[low - number * PIECE : high - number * PIECE] as data:
                        if not self.in_order:
                            self._put(number, data)
                        elif not self._put_in_turn(turn, number, data):
                            return
        except BaseException:
            self._has_failed = True
            with self._turns:
                self._turns.notify_all()
            raise

    def _put_in_turn(self, turn: int, number: int, data: memoryview) -> bool:
        """Return whether it was put: not where another thread has failed."""
        with self._turns:
            self._turns.wait_for(lambda: self._has_failed or self._turn == turn)
            if self._has_failed:
                return False
            self._put(number, data)
            self._turn += 1
            self._turns.notify_all()
            return True

    def _next(self) -> tuple[int, int] | None:
        """Return the next piece: which it is of those that are read, and its number."""
        with self._lock:
            number = None if self._has_failed else next(self._numbers, None)
            if number is None:
                return None
            self._note(min(self._end, (number + 1) * PIECE) - max(self._begin, number * PIECE))
            self._taken += 1
            return self._taken - 1, number

    def _read(self, view: memoryview, start: int, end: int) -> None:
        """Fill ``view`` with the file from ``start``, a piece's first byte, to ``end`` at least."""
        at, fd = start, self._fd if self.direct is None else self.direct
        while at < end:
            try:
                with view[at - start :] as rest:
                    count = os.preadv(fd, [rest], at)
            except OSError as error:
                if fd != self._fd and error.errno == errno.EINVAL:
                    fd = self._fd  # of a file system that takes the flag only, or not this end
                    continue
                raise OSError(error.errno, f"{error.strerror} at byte {at}") from None
            if not count:
                raise errors.TruncatedImage(f"the file ends at {at}, while it is read")
            at += count
