"""Write shared memory afresh, in few extents, and have its file share them again.

A file whose extents are shared gets other blocks for each page that is written, so with time it is
in as many extents as it has pages, and each takes the kernel's time whenever they are shared. A
plain copy is in few. The file then gives up its own for those of the copy, where both have the same
contents: the kernel compares them, with the file held still (ioctl_fideduperange(2)), so no program
that has it mapped sees anything of that.
"""

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable

from mapsave import units
from mapsave.image import descriptors, holes, spans, syscalls

_FIDEDUPERANGE = 0xC0189436  # _IOWR(0x94, 54, struct file_dedupe_range)
# Source, its offset and length, one target: its descriptor, offset, and what came of it.
_RANGE = struct.Struct("=QQHHIqQQiI")
_SAME = 0
_COPIED = 4 * units.MIB
_FLUSHED = 128 * units.MIB
# A guest that writes to a part waits while it is compared. Where a large one differs small ones may
# not.
_LARGE, _SMALL = units.MIB, 64 * units.KIB

Stop = Callable[[], bool]


def copy(source: int, length: int, target: int, to: int, stop: Stop) -> None:
    """Copy what has data of the first ``length`` bytes of a file to ``to`` of another one.

    Once others leave the disk idle. Blocks. Raises OSError; ECANCELED where ``stop`` says so.
    """
    # The caller may close both without waiting for the end.
    with (
        descriptors.closing(os.dup(source)) as source,
        descriptors.closing(os.dup(target)) as target,
    ):
        syscalls.lower_io_priority(is_idle=True)
        with mmap.mmap(-1, _COPIED) as buffer:
            written = 0
            for start, end in holes.extents(source, 0, length):
                for at, stop_at in spans.cut(start, end, _COPIED):
                    _check(stop)
                    _copy(source, at, stop_at, target, to, memoryview(buffer))
                    written += stop_at - at
                    if written >= _FLUSHED:
                        os.fdatasync(target)
                        written = 0
        os.fdatasync(target)


def _copy(source: int, at: int, end: int, target: int, to: int, buffer: memoryview) -> None:
    while at < end:
        count = os.preadv(source, [buffer[: end - at]], at)
        if not count:
            raise OSError(errno.EIO, "the file has become shorter")
        syscalls.write_all(target, buffer[:count], to + at)
        at += count


def rejoin(copied: int, at: int, length: int, file: int, to: int, stop: Stop) -> int:
    """Have a file share what it has in common with a copy; return how many bytes that is.

    ``length`` bytes of the copy from ``at`` are compared with those of ``file`` from ``to``.
    Blocks. Raises OSError: EOPNOTSUPP or EINVAL where the file system cannot, EPERM where we may
    not.
    """
    with descriptors.closing(os.dup(copied)) as copied, descriptors.closing(os.dup(file)) as file:
        found = 0
        for start, end in holes.extents(copied, at, at + length):
            for first, last in spans.cut(start, end, _LARGE):
                _check(stop)
                done = _shared(copied, first, last - first, file, to + first - at)
                if not done:
                    for one, other in spans.cut(first, last, _SMALL):
                        done += _shared(copied, one, other - one, file, to + one - at)
                found += done
        return found


def _shared(copied: int, at: int, length: int, file: int, to: int) -> int:
    """Return how many bytes ``file`` shares of that part now: all, some, or none if it differs."""
    found = 0
    while found < length:
        request = _RANGE.pack(at + found, length - found, 1, 0, 0, file, to + found, 0, 0, 0)
        answer = fcntl.ioctl(copied, _FIDEDUPERANGE, request)
        *_, done, status, _ = _RANGE.unpack(answer)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        if status != _SAME or not done:
            break
        found += done
    return found


def _check(stop: Stop) -> None:
    if stop():
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
