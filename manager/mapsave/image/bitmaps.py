"""The page bitmaps of a mapped-ram image: which pages were written, and in what runs.

Bit i of a block's bitmap says that page i is in the file; a page whose bit is clear was zero. The
words are native, which on every little-endian host means: page i is bit i & 7 of byte i >> 3.
Bitmaps are read in chunks, so memory does not grow with the guest.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from typing import TYPE_CHECKING

from mapsave import errors, units

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from mapsave.image.mapped_ram import RamBlock, Stream

# Where every other page is used, runs take 64 times the bitmap's bytes and more while in numpy.
_CHUNK = 64 * units.KIB
_WORD = 8  # bytes


def chunks(fd: int, block: RamBlock) -> Iterator[tuple[int, bytes]]:
    """Yield the block's bitmap in order, whole words, at most 64 KiB at a time.

    Each comes with its place in the bitmap, in bytes. Holes of the file are left out: they are
    zeros, and a bitmap that was made to take long has terabytes of them.

    Raises TruncatedImage where the file has shrunk since it was read.
    """
    at = 0
    while at < block.bitmap_bytes:
        begin = _data_from(fd, block.bitmap_offset + at) - block.bitmap_offset
        at = max(at, begin // _WORD * _WORD)
        want = min(block.bitmap_bytes - at, _CHUNK)
        if want <= 0:
            return
        data = os.pread(fd, want, block.bitmap_offset + at)
        if len(data) < want:
            raise errors.TruncatedImage(f"the bitmap of RAM block {block.name!r} is cut short")
        yield at, data
        at += want


def _data_from(fd: int, offset: int) -> int:
    """Return the offset of the first data of the file from ``offset`` on, as lseek(2) knows it."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        # No data at all from there on: up to its length the file is a hole.
        return os.fstat(fd).st_size if error.errno == errno.ENXIO else offset


def used_pages(fd: int, block: RamBlock) -> int:
    """Return how many pages of the block are in the file.

    Raises InvalidImage where a bit is set for a page that the block does not have.
    """
    count = 0
    last = b""
    for at, data in chunks(fd, block):
        # An integer's bit_count is faster than any loop, and needs no numpy.
        count += int.from_bytes(data, "little").bit_count()
        last = data[-_WORD:] if at + len(data) == block.bitmap_bytes else b""
    beyond = block.bitmap_bytes * 8 - block.pages
    if beyond and int.from_bytes(last, sys.byteorder) >> (64 - beyond):
        raise errors.InvalidImage(
            f"the bitmap of RAM block {block.name!r} has bits set after its last page"
        )
    return count


@dataclasses.dataclass(frozen=True)
class RunHistogram:
    """How the used pages lie: ``runs[n]`` counts runs of 2^n to 2^(n+1) − 1 pages."""

    runs: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many runs of used pages there are."""
        return sum(self.runs)


def run_histogram(fd: int, stream: Stream) -> RunHistogram:
    """Return the run-length histogram over all RAM blocks (a run ends with its block)."""
    import numpy as np

    counts = np.zeros(64, dtype=np.int64)
    for block in stream.blocks:
        for starts, ends in set_runs(fd, block):
            # frexp() gives n = f * 2^e with f in [0.5, 1): exactly, since n is below 2^53.
            powers = np.frexp(ends - starts)[1] - 1
            counts += np.bincount(powers, minlength=len(counts))
    used = np.flatnonzero(counts)
    return RunHistogram(tuple(int(n) for n in counts[: used[-1] + 1]) if len(used) else ())


def clear_runs(fd: int, block: RamBlock) -> Iterator[tuple[int, int]]:
    """Yield (first page, pages) of each run of pages that are not in the file."""
    at = 0
    for starts, ends in set_runs(fd, block):
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if start > at:
                yield at, start - at
            at = end
    if at < block.pages:
        yield at, block.pages - at


def set_runs(fd: int, block: RamBlock) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield arrays of the first pages of runs of set bits, and of the pages after their last.

    Works on 64-bit words: a bit that differs from its predecessor is an edge, and only words with
    an edge are looked into, so a sparse or dense terabyte costs a few passes over its 32 MiB.
    """
    import numpy as np

    carry = np.uint64(0)
    base = 0  # page number of the chunk's first bit
    open_at = -1  # where the run that reaches into this chunk began
    for at, data in chunks(fd, block):
        if at * 8 > base:  # a hole ends the run before it
            if open_at >= 0:
                yield np.array([open_at]), np.array([base])
            carry, open_at, base = np.uint64(0), -1, at * 8
        words = np.frombuffer(data, dtype="<u8" if sys.byteorder == "little" else ">u8")
        before = np.empty_like(words)
        before[0] = carry
        before[1:] = words[:-1] >> np.uint64(63)
        edges = words ^ ((words << np.uint64(1)) | before)
        where = np.flatnonzero(edges)
        bits = np.unpackbits(edges[where].astype("<u8").view(np.uint8), bitorder="little")
        # One flat search: with rows and columns, numpy takes several times as long.
        places = np.flatnonzero(bits.view(bool))
        positions = (base + where * 64)[places >> 6] + (places & 63)
        if open_at >= 0:
            positions = np.concatenate(([open_at], positions))
        open_at = int(positions[-1]) if len(positions) % 2 else -1
        closed = positions[: len(positions) // 2 * 2]
        if len(closed):
            yield closed[::2], closed[1::2]
        carry = words[-1] >> np.uint64(63)
        base += len(words) * 64
    if open_at >= 0:
        yield np.array([open_at]), np.array([base])
