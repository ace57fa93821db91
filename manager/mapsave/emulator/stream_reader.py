"""Reading a migration stream as QEMU does: what is missing reads as zero and sets an error."""

import os

from mapsave.emulator.faults import LoadError

_BUFFER = 32 << 10  # bytes


class StreamReader:
    """A buffered reader that begins at the descriptor's position."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""
        self._at = 0
        self.failed = False  # the stream ended too early
        self.last_read = 0  # bytes that the last read() really got

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes; missing ones are zero, and ``failed`` is set."""
        pieces = []
        missing = size
        while missing:
            if self._at == len(self._buffer):
                self._buffer = os.read(self._fd, max(_BUFFER, missing))
                self._at = 0
                if not self._buffer:
                    self.failed = True
                    break
            piece = self._buffer[self._at : self._at + missing]
            pieces.append(piece)
            self._at += len(piece)
            missing -= len(piece)
        self.last_read = size - missing
        return b"".join(pieces).ljust(size, b"\0")

    def require(self, error: LoadError) -> None:
        """Raise ``error`` if the stream has ended too early."""
        if self.failed:
            raise error

    def u8(self) -> int:
        return self.read(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.read(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.read(8), "big")

    def counted(self) -> str:
        """Return a string after its length in one byte; to QEMU it ends at a NUL."""
        return self.read(self.u8()).partition(b"\0")[0].decode("utf-8", "replace")

    def rest(self) -> bytes:
        """Return everything up to the end of the file."""
        pieces = [self._buffer[self._at :]]
        while piece := os.read(self._fd, 1 << 20):
            pieces.append(piece)
        self._buffer, self._at = b"", 0
        return b"".join(pieces)

    def peek_type(self, wanted: int) -> bool:
        """Return whether the next byte is ``wanted``; it is not taken."""
        byte = self.read(1)
        if self.last_read:
            self._at -= 1
        return byte[0] == wanted and bool(self.last_read)

    def skip_to(self, offset: int) -> None:
        """Go on at the absolute file offset ``offset``."""
        os.lseek(self._fd, min(offset, (1 << 63) - 1), os.SEEK_SET)
        self._buffer, self._at = b"", 0

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from the absolute ``offset``."""
        try:
            return os.pread(self._fd, size, offset)
        except (OSError, OverflowError):
            return b""

    def preadv(self, target: memoryview, offset: int) -> int:
        """Fill ``target`` from the absolute ``offset``; return the bytes that were there."""
        count = 0
        while count < len(target):
            got = os.preadv(self._fd, [target[count:]], offset + count)
            if got == 0:
                break
            count += got
        return count
