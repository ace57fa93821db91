"""Where the parts of a file are on its disk, and which of them it shares with others (reflinks).

FIEMAP reports it; see the kernel's ``Documentation/filesystems/fiemap.rst``.
"""

import fcntl
import struct
import time
from collections.abc import Iterator

_FS_IOC_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_HEAD = struct.Struct("=QQIIII")  # start, length, flags, mapped, count, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, reserved, flags, reserved
_PLACE = struct.Struct("=QQQ32x")
_FLAGS = struct.Struct("=40xI12x")
_LAST = 0x0001
_UNKNOWN, _DELALLOC, _ENCODED, _ENCRYPTED = 0x0002, 0x0004, 0x0008, 0x0080
_NOT_ALIGNED, _INLINE, _TAIL, _UNWRITTEN = 0x0100, 0x0200, 0x0400, 0x0800
_SHARED = 0x2000
# With one of these an extent is not, or not only, at the place that FIEMAP names.
_UNSURE = _UNKNOWN | _DELALLOC | _ENCODED | _ENCRYPTED | _NOT_ALIGNED | _INLINE | _TAIL
_TOGETHER = 2048  # extents that are asked for at a time
_MOST = 1 << 14  # Btrfs looks up who shares each: a file in more would take seconds

# A part of a file: its first byte, where that is on the disk, and its length in bytes.
Extent = tuple[int, int, int]


def _reported(fd: int, start: int, end: int) -> Iterator[memoryview]:
    """Yield what FIEMAP reports of the extents from ``start`` to ``end``. Raises OSError."""
    while start < end:
        buffer = bytearray(_HEAD.size + _TOGETHER * _EXTENT.size)
        _HEAD.pack_into(buffer, 0, start, end - start, 0, 0, _TOGETHER, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        if not count:
            return
        there = memoryview(buffer)[_HEAD.size : _HEAD.size + count * _EXTENT.size]
        yield there
        logical, _, length, flags = _EXTENT.unpack_from(there, (count - 1) * _EXTENT.size)
        if flags & _LAST:
            return
        start = max(start + 1, logical + length)


def places(fd: int, start: int, end: int) -> tuple[set[Extent], list[Extent]]:
    """Return the extents that are at least in part from ``start`` to ``end``: all that have data.

    Those whose place may be another, or not theirs alone, are in the second half; what has no place
    yet, being dirty, in neither. There may be hundreds of thousands, while a guest waits. Raises
    OSError.
    """
    sure: set[Extent] = set()
    unsure: list[Extent] = []
    for there in _reported(fd, start, end):
        kinds = {flags for (flags,) in _FLAGS.iter_unpack(there)}
        if not any(flags & (_UNSURE | _UNWRITTEN) for flags in kinds):
            sure.update(_PLACE.iter_unpack(there))
            continue
        for *place, flags in _EXTENT.iter_unpack(there):
            if flags & (_UNWRITTEN | _DELALLOC):
                continue  # it reads as zeros, as a hole does; or is not on the disk
            if flags & _UNSURE:
                unsure.append((place[0], place[1], place[2]))
            else:
                sure.add((place[0], place[1], place[2]))
    return sure, unsure


def count(fd: int, start: int, end: int) -> int:
    """Return in how many extents that part of a file is. Raises OSError."""
    head = bytearray(_HEAD.pack(start, end - start, 0, 0, 0, 0))
    fcntl.ioctl(fd, _FS_IOC_FIEMAP, head)
    return int(_HEAD.unpack_from(head)[3])


def shared_bytes(fd: int, end: int, *, seconds: float = 30.0) -> int | None:
    """Return how many of the first ``end`` bytes of a file are shared with others.

    None where the file system does not say, or that takes longer: a file may be in hundreds of
    thousands of extents.
    """
    found, until = 0, time.monotonic() + seconds
    try:
        for there in _reported(fd, 0, end):
            if time.monotonic() > until:
                return None
            for _, _, length, flags in _EXTENT.iter_unpack(there):
                found += length if flags & _SHARED else 0
    except OSError:
        return None
    return found


def shared(fd: int, start: int, end: int) -> list[tuple[int, int]] | None:
    """Return the shared parts from ``start`` to ``end``, as such pairs, in their order.

    None where the file system does not say, or the file is in too many extents.
    """
    found: list[tuple[int, int]] = []
    seen = 0
    try:
        for there in _reported(fd, start, end):
            if seen >= _MOST:
                return None
            for logical, _, length, flags in _EXTENT.iter_unpack(there):
                if flags & _SHARED:
                    found.append((max(logical, start), min(logical + length, end)))
                seen += 1
    except OSError:
        return None
    return found
