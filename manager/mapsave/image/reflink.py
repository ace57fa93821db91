"""Share parts of a file with another one: reflinks, as XFS and btrfs have them.

What is shared takes no space and no time to speak of; who writes to one of the files gets other
blocks for it. See ioctl_ficlonerange(2).
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator

from mapsave import units
from mapsave.image import extents, syscalls
from mapsave.image.extents import Extent

_FICLONERANGE = 0x4020940D  # _IOW(0x94, 13, struct file_clone_range)
_RANGE = struct.Struct("=qQQQ")  # source, its offset, length, offset in the target
# The kernel holds both files until a call has ended: the guest waits for it where it writes to its
# RAM. Bytes, and extents: each takes some 15 µs on XFS.
_PIECE = 256 * units.MIB
_TOGETHER = 256
# Parts that are not farther apart are shared by one call, with what is between them.
_NEAR = 64 * units.KIB
FILE_SYSTEMS = {0x58465342: "XFS", 0x9123683E: "btrfs"}  # linux/magic.h


def share(source: int, offset: int, length: int, target: int, to: int) -> None:
    """Share ``length`` bytes of ``source`` from ``offset`` on with ``target``, at ``to``.

    What is dirty there is written to the disk first. Raises OSError: EXDEV where they are on two
    file systems, EOPNOTSUPP where theirs cannot, EINVAL where a number is no multiple of its block.
    """
    fcntl.ioctl(target, _FICLONERANGE, _RANGE.pack(source, offset, length, to))


def block_size(fd: int) -> int:
    """Return what offsets and lengths must be multiples of, in bytes. Raises OSError."""
    return os.fstatvfs(fd).f_bsize


def file_system(fd: int) -> str | None:
    """Return the name of the file system if it is one on which ``Mirror`` works. Raises OSError."""
    return FILE_SYSTEMS.get(syscalls.file_system_type(fd))


class Mirror:
    """A file that shares the part of another one which begins at ``offset`` and has ``length``.

    The other is written to all the time. ``update`` shares what has changed since the last one: the
    extents that are elsewhere on the disk. For what two files share is never overwritten in its
    place (copy on write), and is not freed as long as ``target`` has it: where an extent has stayed
    in its place, so has what is in it. Where that place is not sure, it is shared again.
    """

    def __init__(self, source: int, offset: int, length: int, target: int) -> None:
        self._source = source
        self._offset = offset
        self._length = length
        self._target = target
        self._known: set[Extent] = set()  # what ``target`` shares
        self._unsure: list[Extent] = []
        self.extents = 0  # as the last update found them
        self._is_stopped = False
        os.ftruncate(target, length)

    def stop(self) -> None:
        """Have an update that another thread is in end soon, with an OSError."""
        self._is_stopped = True

    def update(self) -> int:
        """Share what has changed; return in how many extents that was. Raises OSError.

        Where nothing writes in the meantime, ``target`` is equal to that part of the source then.
        """
        os.fdatasync(self._source)
        first, last = self._offset, self._offset + self._length
        found, unsure = extents.places(self._source, first, last)
        # What has become a hole since is in what is known, and not in what was found. One page
        # that is elsewhere now also has changed the extents before and after it.
        changed = (self._known ^ found).union(unsure, self._unsure)
        for start, end in _pieces(changed):
            if self._is_stopped:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            # An extent may reach out of the part at both ends.
            start, end = max(start, first), min(end, last)
            share(self._source, start, end - start, self._target, start - first)
        self._known, self._unsure = found, unsure
        self.extents = len(found) + len(unsure)
        return len(changed)


def _pieces(changed: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    """Yield the parts that ``changed`` extents are in, as such pairs, joined where that is good."""
    begin = end = count = 0
    for extent in sorted(changed):
        start, _, length = extent
        stop = start + length
        if end and start <= end + _NEAR and count < _TOGETHER and start - begin < _PIECE:
            end, count = max(end, stop), count + 1
            continue
        yield from _cut(begin, end)
        begin, end, count = max(start, end), max(stop, end), 1
    yield from _cut(begin, end)


def _cut(begin: int, end: int) -> Iterator[tuple[int, int]]:
    for start in range(begin, end, _PIECE):
        yield start, min(start + _PIECE, end)
