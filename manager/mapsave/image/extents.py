"""Which parts of a file are shared with other files: reflinks, as FIEMAP reports them.

See the kernel's ``Documentation/filesystems/fiemap.rst``.
"""

import fcntl
import struct

_FS_IOC_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_HEAD = struct.Struct("=QQIIII")  # start, length, flags, mapped, count, reserved
_EXTENT = struct.Struct("=QQQQQIIII")  # logical, physical, length, 2 reserved, flags, 3 reserved
_LAST = 0x0001
_SHARED = 0x2000
_TOGETHER = 512  # extents that are asked for at a time
_MOST = 1 << 14  # Btrfs looks up who shares each: a file in more would take seconds


def shared(fd: int, start: int, end: int) -> list[tuple[int, int]] | None:
    """Return the shared parts from ``start`` to ``end``, as such pairs, in their order.

    None where the file system does not say, or the file is in too many extents.
    """
    found: list[tuple[int, int]] = []
    seen = 0
    while start < end:
        if seen >= _MOST:
            return None
        buffer = bytearray(_HEAD.size + _TOGETHER * _EXTENT.size)
        _HEAD.pack_into(buffer, 0, start, end - start, 0, 0, _TOGETHER, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        except OSError:
            return None
        mapped = _HEAD.unpack_from(buffer)[3]
        if not mapped:
            break
        for number in range(mapped):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(
                buffer, _HEAD.size + number * _EXTENT.size
            )
            if flags & _SHARED:
                found.append((max(logical, start), min(logical + length, end)))
        if flags & _LAST:
            break
        seen += mapped
        start = max(start + 1, logical + length)
    return found
