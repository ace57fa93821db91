"""Which pages that an image's bitmaps claim are in no data of the file.

QEMU up to 10.2 does not look at how much a channel's ``pwritev`` has written
(``migration/file.c``), so a short write leaves a set bit and a hole in a new file. Holes are found
by lseek(2), SEEK_DATA and SEEK_HOLE: blocks of the file system, not bytes.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import operator
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mapsave.image import bitmaps
from mapsave.image.mapped_ram import RamBlock, Stream

if TYPE_CHECKING:
    from bitarray import bitarray

# Pages that QEMU's channels write by one call at most (10.0: MULTIFD_PACKET_SIZE, 512 KiB).
JOB_PAGES = 128
_READ = 1 << 20  # bytes
_AHEAD = 4096  # bytes of bitmap: of 128 MiB of RAM; no file system's block is larger


def are_known(fd: int, size: int) -> bool:
    """Return whether the file system reports holes of this file of ``size`` bytes.

    Every image has one: header and bitmaps are followed by a gap. One that does not know reports
    all as data, with the one hole at the end that lseek(2) promises.
    """
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False  # EINVAL: not even that


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield each extent of data from ``start`` to ``end``, as such a pair. Raises OSError."""
    while start < end:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole up to the end of the file
                raise
            return
        if first >= end:
            return
        start = os.lseek(fd, first, os.SEEK_HOLE)
        yield first, min(start, end)


def missing(fd: int, block: RamBlock) -> Iterator[tuple[int, bitarray]]:
    """Yield (first page, bits) of each hole, or part of one, that has set pages.

    A page that is only partly in a hole counts. Raises OSError, TruncatedImage.
    """
    size, place = block.page_size, block.pages_offset
    for first, bits in bitmaps.chunks(fd, block):
        page = bits.find(1)
        if page < 0:
            continue
        at = place + (first + page) * size
        end = place + (first + bits.find(1, right=True) + 1) * size
        for data, data_end in itertools.chain(extents(fd, at, end), [(end, end)]):
            if at < data:
                begin = max(page, (at - place) // size - first)
                page = (data - place + size - 1) // size - first
                if bits.find(1, begin, page) >= 0:
                    yield first + begin, bits[begin:page]
            at = data_end


@dataclasses.dataclass(frozen=True)
class Missing:
    """Set pages in holes: how many, and the first: its RAM block, page and offset in the file."""

    pages: int
    block: str
    page: int
    offset: int


def find(fd: int, stream: Stream) -> Missing | None:
    """Return what ``missing`` finds in all RAM blocks, if any. Raises OSError, TruncatedImage."""
    count, hole = 0, None
    for block in stream.blocks:
        for first, bits in missing(fd, block):
            if hole is None:
                page = first + bits.find(1)
                hole = (block.name, page, block.pages_offset + page * block.page_size)
            count += bits.count()
    return Missing(count, *hole) if hole else None


def stale(fd: int, block: RamBlock) -> Iterator[tuple[int, int]]:
    """Yield (first page, pages) of each run of unused pages that the file has data for.

    A live save leaves them: pages that it has written, and that were zeros in the end. Where the
    file has space for pages, they are read. Raises OSError, TruncatedImage.
    """
    size, place = block.page_size, block.pages_offset
    for first, pages in bitmaps.clear_runs(fd, block):
        start = place + first * size
        begin = end = 0
        for at, stop in extents(fd, start, start + pages * size):
            for page in _with_contents(fd, at - (at - place) % size, stop, size):
                number = (page - place) // size
                if number < end:
                    continue  # of a page that two extents have a part in
                if number > end and begin < end:
                    yield begin, end - begin
                begin, end = (begin if number == end and begin < end else number), number + 1
        if begin < end:
            yield begin, end - begin


def _with_contents(fd: int, start: int, end: int, size: int) -> Iterator[int]:
    """Yield the offset of each page from ``start`` to ``end`` that is not all zeros."""
    for at in range(start, end, _READ):
        data = os.pread(fd, min(_READ, end - at + -(end - at) % size), at)
        if data.count(0) == len(data):
            continue
        for page in range(0, len(data), size):
            piece = data[page : page + size]
            if piece.count(0) < len(piece):
                yield at + page


@dataclasses.dataclass(frozen=True)
class Suspects:
    """Pages of a chunk of a bitmap that are to be compared: ends of runs of set pages, and others.

    Bit 0 of both is page ``first``.
    """

    first: int
    run_ends: bitarray
    others: bitarray


def write_ends(fd: int, block: RamBlock, granule: int, zero_pages: str) -> Iterator[Suspects]:
    """Yield the pages in which a write may have ended short without leaving a hole.

    That is in the last ``granule`` bytes (the file system's block) of what a call has written.
    QEMU fills a channel's job with ``JOB_PAGES`` pages of a block in order, or with as many set
    ones where its main thread looks for zero pages (``legacy``), and writes what is contiguous by
    one call. A channel that looks for them itself puts them last, which turns the order of those
    that follow one round: it writes page after page (10.0: ``multifd_send_zero_page_detect``).
    """
    step = min(max(1, granule // block.page_size), _AHEAD * 8)
    in_granule = block.pages_offset // block.page_size
    sent = 0
    for first, bits in bitmaps.chunks(fd, block, _AHEAD):
        run_ends = bits & ~(bits << 1)
        suspects = run_ends.copy()
        if zero_pages == "legacy":
            # Each page that fills a job of set ones, ``sent`` pages having been sent before.
            to_fill = -(sent + 1) % JOB_PAGES
            suspects[list(itertools.islice(bits.search(1), to_fill, None, JOB_PAGES))] = 1
            sent += bits.count(1, 0, bitmaps.CHUNK_PAGES)
        else:
            suspects |= bits & _every(JOB_PAGES, JOB_PAGES - 1, len(bits))
        if step > 1:
            granule_ends = _every(step, (-1 - in_granule - first) % step, len(bits))
            suspects = _spread(suspects, bits & ~granule_ends, operator.lshift, step)
        if zero_pages == "multifd":
            begins = _every(JOB_PAGES, 0, len(bits))
            in_order = _spread(bits & begins, bits & ~begins, operator.rshift, JOB_PAGES)
            suspects |= bits & ~in_order
        del run_ends[bitmaps.CHUNK_PAGES :], suspects[bitmaps.CHUNK_PAGES :]
        yield Suspects(first, run_ends, suspects & ~run_ends)


def _every(step: int, first: int, pages: int) -> bitarray:
    bits = bitmaps.empty(pages)
    bits[first::step] = 1
    return bits


def _spread(
    bits: bitarray, into: bitarray, shift: Callable[[bitarray, int], bitarray], reach: int
) -> bitarray:
    """Return ``bits`` with those of ``into`` that follow one without a gap, at most ``reach``."""
    by = 1
    while by < reach:
        bits = bits | shift(bits, by) & into
        into = into & shift(into, by)
        by *= 2
    return bits
