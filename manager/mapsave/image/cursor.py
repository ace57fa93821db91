"""A bounds-checked position in a file: the only way the reader of the stream touches it."""

import os

from mapsave import errors, units

_CHUNK = 256 * units.KIB
# Device state is some hundred KiB, with large displays some MiB; a virtio-gpu may bring 256 MiB
# (max_hostmem). What a footer is searched in is bounded, so that a hole of a terabyte costs little.
MAX_DEVICE_STATE = 512 * units.MIB


class Cursor:
    """A position in the file open as ``fd``, of ``size`` bytes. All offsets are absolute bytes."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self.offset = offset
        self.size = size
        self._buffer = b""
        self._buffer_at = 0
        self._searched = 0

    @property
    def remaining(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size - self.offset

    def _truncated(self, what: str, need: int) -> errors.TruncatedImage:
        return errors.TruncatedImage(
            f"the file ends at {self.size}, inside {what} at offset {self.offset}",
            size=self.size,
            expected=self.offset + need,
        )

    def peek(self, length: int, what: str) -> bytes:
        """Return the next ``length`` bytes (at most 256 KiB) and stay; TruncatedImage if short."""
        if length > self.remaining or length > _CHUNK:
            raise self._truncated(what, length)
        start = self.offset - self._buffer_at
        if start < 0 or start + length > len(self._buffer):
            # Small reads first: most records are followed by a jump over megabytes.
            want = min(max(length, 4096), self.remaining)
            self._buffer = os.pread(self._fd, want, self.offset)
            self._buffer_at, start = self.offset, 0
            if len(self._buffer) < length:
                raise self._truncated(what, length)
        return self._buffer[start : start + length]

    def peek_up_to(self, length: int) -> bytes:
        """Return the next ``length`` bytes (at most 256 KiB), or what there is; stay."""
        return self.peek(min(length, max(self.remaining, 0)), "section")

    def stands_here(self, pattern: bytes) -> bool:
        """Return whether the next bytes are ``pattern``; stay."""
        return self.peek_up_to(len(pattern)) == pattern

    def take(self, length: int, what: str) -> bytes:
        data = self.peek(length, what)
        self.offset += length
        return data

    def take_long(self, length: int, what: str) -> bytes:
        """Return the next ``length`` bytes, of which the caller knows that there are so many."""
        pieces = []
        while length:
            piece = self.take(min(length, _CHUNK), what)
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def seek(self, offset: int) -> None:
        """Move to ``offset``, which the caller knows to be inside the file."""
        self.offset = offset

    def skip_to(self, offset: int, what: str) -> None:
        """Move to ``offset``; TruncatedImage if the file ends before it."""
        if offset > self.size:
            raise self._truncated(what, offset - self.offset)
        self.offset = offset

    def peek_u8(self, what: str) -> int:
        """Return the next byte and stay."""
        return self.peek(1, what)[0]

    def u8(self, what: str) -> int:
        return self.take(1, what)[0]

    def u32(self, what: str) -> int:
        """Read a big-endian 32-bit number."""
        return int.from_bytes(self.take(4, what), "big")

    def u64(self, what: str) -> int:
        """Read a big-endian 64-bit number."""
        return int.from_bytes(self.take(8, what), "big")

    def text(self, length: int, what: str) -> str:
        """Read ``length`` bytes of text; InvalidImage unless non-empty printable UTF-8."""
        start = self.offset
        try:
            value = self.take(length, what).decode()
        except UnicodeDecodeError:
            value = ""
        if not value.isprintable() or not value:
            raise errors.InvalidImage(f"{what} at offset {start} is not a name")
        return value

    def find(self, pattern: bytes, what: str) -> int:
        """Return the offset of the next ``pattern`` from here on.

        Raises TruncatedImage where the file ends without it, UnsupportedImage where the searches
        of this cursor have gone through more than ``MAX_DEVICE_STATE``.
        """
        at = self.offset
        while at < self.size:
            inside = at - self._buffer_at
            if not 0 <= inside <= len(self._buffer) - len(pattern):
                if self._searched > MAX_DEVICE_STATE:
                    raise errors.UnsupportedImage(
                        f"{what}: more than {units.format_size(MAX_DEVICE_STATE)} of device state"
                    )
                self._buffer = os.pread(self._fd, _CHUNK, at)
                self._buffer_at, inside = at, 0
                self._searched += len(self._buffer)
                if len(self._buffer) < len(pattern):
                    break
            # Looking for one byte is many times faster, and most of a hole is decided by that.
            found = self._buffer.find(pattern, inside) if pattern[:1] in self._buffer else -1
            if found >= 0:
                return self._buffer_at + found
            at = self._buffer_at + len(self._buffer) - len(pattern) + 1
        raise self._truncated(what, self.remaining + 1)
