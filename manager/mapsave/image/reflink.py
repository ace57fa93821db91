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
from mapsave.image import extents, rejoining, spans, syscalls
from mapsave.image.extents import Extent

_FICLONERANGE = 0x4020940D  # _IOW(0x94, 13, struct file_clone_range)
_RANGE = struct.Struct("=qQQQ")  # source, its offset, length, offset in the target
# The kernel holds both files until a call has ended: the guest waits for it where it writes to its
# RAM. Bytes, and extents: each takes some 15 µs on XFS.
_PIECE = 256 * units.MIB
_TOGETHER = 256
# Parts that are not farther apart are shared by one call, with what is between them.
_NEAR = 64 * units.KIB
# In which dirty pages are looked for, and in those where some are.
_WINDOW = units.MIB
_SMALL_WINDOW = 64 * units.KIB
_ENDLESS = 1 << 63
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
    extents that are elsewhere on the disk than those of ``target``. What two files share is never
    overwritten in its place (copy on write), and is not freed as long as ``target`` has it: where
    both have the same extent, it has the same contents. Where that place is not sure, it is shared
    again.
    """

    def __init__(self, source: int, offset: int, length: int, target: int) -> None:
        self._source = source
        self._offset = offset
        self._end = offset + length
        self._target = target
        # What ``target`` has, by the offsets of the source, once it was looked at.
        self._has: set[Extent] = set()
        self._has_unsure: list[Extent] = []
        self._is_seen = True
        self._caught_up: list[tuple[int, int]] = []
        self.extents = 0  # as they were last seen
        self._is_stopped = False
        os.ftruncate(target, length)

    def stop(self) -> None:
        """Have an update that another thread is in end soon, with an OSError."""
        self._is_stopped = True

    def copy_to(self, image: int, at: int) -> None:
        """Write what ``target`` has to ``at`` of an image, afresh. Raises OSError."""
        length = self._end - self._offset
        rejoining.copy(self._target, length, image, at, lambda: self._is_stopped)

    def rejoin(self, image: int, at: int) -> int:
        """Have the source share what is at ``at`` of an image; return in how many extents it is.

        That is no mirror of it any more then. Raises OSError.
        """
        length, source = self._end - self._offset, self._source
        rejoining.rejoin(image, at, length, source, self._offset, lambda: self._is_stopped)
        return extents.count(source, self._offset, self._end)

    def dirty(self) -> int | None:
        """Return how many bytes are dirty; None where the kernel does not say."""
        return syscalls.dirty_bytes(self._source, self._offset, self._end - self._offset)

    def update(self, *, is_last: bool = False) -> int:
        """Share what has changed; return in how many extents that was. Raises OSError.

        Where nothing writes in the meantime, ``target`` is equal to that part of the source then.
        One that ``is_last`` leaves what the next one needs to know for that to find out.
        """
        _, changed = self._changed()
        for start, end in _pieces(changed):
            self._share(start, end)
        if not is_last:
            self._look()
        return len(changed)

    def catch_up(self) -> int | None:
        """Share what is dirty, while others write or do not; return in how many parts that was.

        Only what is dirty is looked at, and not where each extent is, which takes too long where
        there are many. ``is_certain`` says later whether that was enough. None, with nothing done,
        where the kernel does not say what is dirty. Raises OSError.
        """
        windows: list[tuple[int, int]] = []
        found = syscalls.dirty_parts(self._source, self._offset, self._end, _WINDOW)
        if found is None:
            return None
        for start, end in found:
            windows += syscalls.dirty_parts(self._source, start, end, _SMALL_WINDOW) or ()
        # Nothing else: a page elsewhere that becomes dirty now would be clean then, and not shared.
        parts = spans.joined(windows)
        syscalls.write_out(self._source, parts)
        for start, end in parts:
            self._share(start, end)
        self._caught_up = parts
        return len(parts)

    def is_certain(self) -> bool:
        """Return whether all that had changed was shared when ``catch_up`` was called last.

        For that nothing may have written during that call. A page that was on the disk by then, as
        the kernel may write it at any time, was not dirty. But since the extent that it was in was
        shared, it is elsewhere now: so all that is neither shared by that call nor where ``target``
        has it is uncertain. The kernel may as well have written it since. Raises OSError.
        """
        after, unsure = extents.places(self._source, self._offset, self._end)
        self._look()
        outside = [(0, self._offset), (self._end, _ENDLESS)]
        shared = spans.joined(part for part in (*self._caught_up, *outside) if part[0] < part[1])
        if spans.without([*unsure, *self._has_unsure], shared):
            return False
        gone, new = self._has - after, after - self._has
        return spans.without(gone, shared) == spans.without(new, shared)

    def _changed(self) -> tuple[set[Extent], set[Extent]]:
        """Return the extents of the source, and those that are not what ``target`` has.

        What has become a hole since is in what it has only. One page that is elsewhere now also has
        changed the extents before and after it.
        """
        self._look()
        os.fdatasync(self._source)
        found, unsure = extents.places(self._source, self._offset, self._end)
        self.extents = len(found) + len(unsure)
        return found, (self._has ^ found).union(unsure, self._has_unsure)

    def _look(self) -> None:
        """Look where the extents of ``target`` are, which no one else changes.

        Not where those of the source were when they were shared: they may have been replaced
        before that, and blocks that were freed may be theirs again.
        """
        if self._is_seen:
            return
        os.fdatasync(self._target)
        by, length = self._offset, self._end - self._offset
        has, unsure = extents.places(self._target, 0, length)
        self._has = {(logical + by, place, size) for logical, place, size in has}
        self._has_unsure = [(logical + by, place, size) for logical, place, size in unsure]
        self._is_seen = True

    def _share(self, start: int, end: int) -> None:
        if self._is_stopped:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        self._is_seen = False
        # An extent may reach out of the part at both ends.
        start, end = max(start, self._offset), min(end, self._end)
        share(self._source, start, end - start, self._target, start - self._offset)


def _pieces(changed: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    """Yield the parts that ``changed`` extents are in, as such pairs, joined where that is good."""
    begin = end = count = 0
    for extent in sorted(changed):
        start, _, length = extent
        stop = start + length
        if end and start <= end + _NEAR and count < _TOGETHER and start - begin < _PIECE:
            end, count = max(end, stop), count + 1
            continue
        yield from spans.cut(begin, end, _PIECE)
        begin, end, count = max(start, end), max(stop, end), 1
    yield from spans.cut(begin, end, _PIECE)
