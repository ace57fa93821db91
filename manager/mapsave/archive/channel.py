"""Bytes from one thread to another, in order, no more than a few pieces ahead.

A pipe does the same, but copies each byte into the kernel and out of it, and has descriptors that
must outlive both threads.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_MOST = 1 << 20  # bytes that are written and not read yet, but for the last piece


class Channel(io.RawIOBase):
    """What one thread writes, and another one reads; each says when it is done with it."""

    def __init__(self) -> None:
        self._pieces: deque[memoryview] = deque()
        self._length = 0
        self._is_written = self._is_left = False
        self._changed = threading.Condition()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it, of which a copy is kept. Raises BrokenPipeError if no one reads it."""
        piece = memoryview(bytes(data))  # no copy of what is bytes already
        with self._changed:
            self._changed.wait_for(lambda: self._is_left or self._length < _MOST)
            if self._is_left:
                raise BrokenPipeError
            if piece:
                self._pieces.append(piece)
                self._length += len(piece)
                self._changed.notify()
        return len(piece)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read what is there; wait where nothing is. 0 where all is read."""
        with memoryview(buffer) as view:
            with self._changed:
                self._changed.wait_for(lambda: self._is_written or self._pieces)
                if not self._pieces:
                    return 0
                piece = self._pieces[0]
            count = min(len(view), len(piece))
            view[:count] = piece[:count]
            with self._changed:
                if count < len(piece):
                    self._pieces[0] = piece[count:]
                else:
                    self._pieces.popleft()
                self._length -= count
                self._changed.notify()
            return count

    def end(self) -> None:
        """Note that all is written."""
        with self._changed:
            self._is_written = True
            self._changed.notify()

    def leave(self) -> None:
        """Note that nothing more will be read."""
        with self._changed:
            self._is_left = True
            self._changed.notify()
