"""How fast a directory takes and gives data, measured once for each file system.

Writes of 4 KiB and 512 KiB, what a channel of QEMU's writes at least and at most, into a hole and
into preallocated space, with as many in flight as a save has channels: on ext4 a direct write into
a hole takes the inode's lock for itself alone, so that channels do not help there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec

from mapsave import units
from mapsave.image import descriptors, syscalls

SMALL, LARGE = 4 * units.KIB, 512 * units.KIB
DEPTHS = (1, 4, 16)
# What is written at most, and the seconds after which storage counts as hung; else it takes less
# than one, if the host has time for us.
MOST_BYTES = 256 * units.MIB
LIMIT = 10.0
# Free space below which nothing is measured: others write there as well.
ROOM = 4 * MOST_BYTES
# No measurement begins after so many seconds; each ends after its own, or where its part of the
# file is full.
_BUDGET = 0.5
_SECONDS = 0.03
_PART = 16 * units.MIB
# Requests into a hole, each of which makes an extent: on a file system that is mounted with
# ``discard`` it takes milliseconds to free one.
_EXTENTS = 64
_BUFFERED = 16 * units.MIB
_BUFFERED_SECONDS = 0.1
# Figures of another day may be of another disk below the same mount.
MAX_AGE = 30 * 86400.0

# Seconds that one request takes of the device's time, by its size and how many are in flight.
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Depth = Annotated[int, msgspec.Meta(ge=1)]
Costs = dict[int, dict[Depth, Seconds]]


class Probe(msgspec.Struct, frozen=True):
    """Seconds per request: direct writes into ``holes`` and ``preallocated`` space, and reads.

    ``buffered`` is seconds per byte written through the page cache, stable storage included;
    ``cached_reads`` seconds per byte read through it. ``measured`` is when, in seconds since the
    epoch; 0 where the figures are typical ones, not measured. Empty costs: no direct I/O there, or
    no preallocation. On a slow disk the larger depths are missing.
    """

    holes: Costs
    preallocated: Costs
    reads: Costs
    buffered: Seconds
    cached_reads: Seconds
    measured: float = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether the figures are of this file system."""
        return self.measured > 0

    @property
    def is_whole(self) -> bool:
        """Whether each kind of request that has figures has them for both sizes."""
        known = (self.holes, self.preallocated, self.reads)
        return all(each.get(SMALL) and each.get(LARGE) for each in known if each)


# A virtual disk of 1.9 GB/s with ext4 (docs/benchmarks.md): what is slow there is slow elsewhere.
TYPICAL = Probe(
    holes={SMALL: {1: 9e-5, 4: 8.5e-5, 16: 8.5e-5}, LARGE: {1: 5.5e-4, 4: 3.1e-4, 16: 2.7e-4}},
    preallocated={
        SMALL: {1: 8e-5, 4: 2.4e-5, 16: 1.6e-5},
        LARGE: {1: 5.5e-4, 4: 3.0e-4, 16: 2.7e-4},
    },
    reads={SMALL: {1: 9e-5, 4: 3e-5, 16: 1.6e-5}, LARGE: {1: 6e-4, 4: 3.2e-4, 16: 2.7e-4}},
    buffered=1 / 1.1e9,
    cached_reads=1 / 1.2e9,
)


def measure(directory: int) -> Probe:
    """Measure the directory of a descriptor with unnamed files. Blocks, for at most ``LIMIT``.

    At most ``MOST_BYTES`` are written. Raises OSError: ENOSPC where less than ``ROOM`` is free,
    ETIMEDOUT where the storage hangs; its thread is left behind then, with descriptors of its own.
    """
    stats = os.fstatvfs(directory)
    if stats.f_blocks and stats.f_bavail * stats.f_frsize < ROOM:
        raise OSError(errno.ENOSPC, f"less than {units.format_size(ROOM)} is free")
    own = os.dup(directory)
    found: list[Probe | OSError] = []

    def work() -> None:
        with descriptors.closing(own):
            try:
                found.append(_measure(own))
            except OSError as error:
                found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT)
    if not found:
        raise OSError(errno.ETIMEDOUT, f"it took longer than {units.format_duration(LIMIT)}")
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


def _measure(directory: int) -> Probe:
    """Measure one request at a time first, of which each figure is needed."""
    end = time.perf_counter() + _BUDGET
    holes: Costs = {}
    preallocated: Costs = {}
    reads: Costs = {}
    buffer = mmap.mmap(-1, LARGE)
    buffer.write(os.urandom(LARGE))  # zeros may never get to a disk
    with contextlib.ExitStack() as stack:
        if descriptors.probe_direct_io(directory) is None:
            sparse = stack.enter_context(_File.made(directory, direct=True))
            filled = stack.enter_context(_File.made(directory, direct=True))
            for depth, size in itertools.product(DEPTHS, (SMALL, LARGE)):
                if depth > DEPTHS[0] and time.perf_counter() > end:
                    break
                write = _writer(buffer, size)
                start = sparse.part()
                cost = sparse.timed(write, size, depth, start, most=_EXTENTS, gap=2 * size)
                holes.setdefault(size, {})[depth] = cost
                start = filled.part()
                if filled.preallocate(start):
                    cost = filled.timed(write, size, depth, start)
                    preallocated.setdefault(size, {})[depth] = cost
                else:
                    filled.timed(write, size, depth, start, most=_EXTENTS)
                most = filled.requests  # what was not written is not read from the disk
                cost = filled.timed(_read, size, depth, start, most=most)
                reads.setdefault(size, {})[depth] = cost
        cached = stack.enter_context(_File.made(directory, direct=False))
        buffered, cached_reads = cached.buffered(buffer), cached.cached_read()
        return Probe(holes, preallocated, reads, buffered, cached_reads, time.time())


_Work = Callable[[int, int, int], None]


def _writer(buffer: mmap.mmap, size: int) -> _Work:
    view = memoryview(buffer)[:size]

    def write(fd: int, _: int, offset: int) -> None:
        os.pwrite(fd, view, offset)

    return write


def _read(fd: int, size: int, offset: int) -> None:
    with mmap.mmap(-1, size) as into:
        os.preadv(fd, [into], offset)


@dataclasses.dataclass
class _File:
    """An unnamed file, of which each measurement takes another part."""

    fd: int
    plain: int
    end: int = 0
    requests: int = 0  # of the last measurement

    @classmethod
    @contextlib.contextmanager
    def made(cls, directory: int, *, direct: bool) -> Iterator[_File]:
        """Make one; it is gone at the end."""
        with descriptors.unnamed(directory) as plain:
            if not direct:
                yield cls(plain, plain)
                return
            with descriptors.reopened(plain, os.O_RDWR | os.O_DIRECT) as fd:
                yield cls(fd, plain)

    def part(self) -> int:
        """Return where the next part begins."""
        start, self.end = self.end, self.end + _PART
        return start

    def preallocate(self, start: int) -> bool:
        """Preallocate a part; return whether the file system can."""
        try:
            syscalls.preallocate(self.plain, start, _PART)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False
        return True

    def timed(
        self, work: _Work, size: int, depth: int, start: int, *, most: int = _PART, gap: int = 0
    ) -> float:
        """Return the seconds per request of ``size`` bytes, with ``depth`` of them in flight.

        By the median, so that what else the host does counts less. At most ``most`` requests, from
        ``start`` on, every ``gap`` bytes: without, one behind the other.
        """
        step = gap or size
        offsets = itertools.count()
        most = min(_PART // step, most)
        took: list[float] = []
        failed: list[OSError] = []
        begun = time.perf_counter()

        def turn() -> None:
            try:
                for at in offsets:
                    before = time.perf_counter()
                    if at >= most or (took and before - begun > _SECONDS):
                        return
                    work(self.fd, size, start + at * step)
                    took.append(time.perf_counter() - before)
            except OSError as error:
                failed.append(error)

        threads = [threading.Thread(target=turn, daemon=True) for _ in range(depth)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        self.requests = len(took)
        return statistics.median(took) / min(depth, len(took))

    def buffered(self, buffer: mmap.mmap) -> float:
        """Return the seconds per byte of writes through the page cache, and of their fsync."""
        begun = time.perf_counter()
        while self.end < _BUFFERED and time.perf_counter() - begun < _BUFFERED_SECONDS:
            os.pwrite(self.plain, buffer, self.end)
            self.end += LARGE
        os.fsync(self.plain)
        return (time.perf_counter() - begun) / self.end

    def cached_read(self) -> float:
        """Return the seconds per byte of reads through the page cache, which is emptied before."""
        os.posix_fadvise(self.plain, 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        for offset in range(0, self.end, LARGE):
            os.pread(self.plain, LARGE, offset)
        return (time.perf_counter() - begun) / self.end
