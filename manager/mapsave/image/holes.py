"""Which pages that an image's bitmaps claim are in no data of the file.

QEMU up to 10.2 does not look at how much a channel's ``pwritev`` has written
(``migration/file.c``), so a short write leaves a set bit and a hole in a new file. Holes are found
by lseek(2), SEEK_DATA and SEEK_HOLE: blocks of the file system, not bytes.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from typing import TYPE_CHECKING

from mapsave.image import bitmaps

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from mapsave.image.mapped_ram import RamBlock, Stream

    Spans = tuple[np.ndarray, np.ndarray]
    # Pages, and for each whether it is the last of a run of set pages.
    Ends = tuple[np.ndarray, np.ndarray]

# Pages that QEMU's channels write by one call at most (10.0: MULTIFD_PACKET_SIZE, 512 KiB).
JOB_PAGES = 128


def are_known(fd: int, size: int) -> bool:
    """Return whether the file system reports holes of this file of ``size`` bytes.

    Every image has one: header and bitmaps are followed by a gap. One that does not know reports
    all as data, with the one hole at the end that lseek(2) promises.
    """
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False  # EINVAL: not even that


def extents(fd: int, start: int, end: int) -> Spans:
    """Return arrays of the first bytes of the data between ``start`` and ``end``, and of its ends.

    Raises OSError.
    """
    import numpy as np

    firsts: list[int] = []
    ends: list[int] = []
    at = start
    while at < end:
        try:
            first = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole up to the end of the file
                raise
            break
        if first >= end:
            break
        at = os.lseek(fd, first, os.SEEK_HOLE)
        firsts.append(first)
        ends.append(min(at, end))
    return np.array(firsts, dtype=np.int64), np.array(ends, dtype=np.int64)


def missing(fd: int, block: RamBlock) -> Iterator[tuple[int, int]]:
    """Yield (first page, pages) of each run of set pages that are not wholly in data.

    Raises OSError, TruncatedImage.
    """
    import numpy as np

    size, place = block.page_size, block.pages_offset
    for starts, ends in bitmaps.set_runs(fd, block):
        low, high = place + int(starts[0]) * size, place + int(ends[-1]) * size
        data_starts, data_ends = extents(fd, low, high)
        hole_starts = (np.concatenate(([low], data_ends)) - place) // size
        hole_ends = -((place - np.concatenate((data_starts, [high]))) // size)
        is_hole = np.concatenate(([low], data_ends)) < np.concatenate((data_starts, [high]))
        hole_starts, hole_ends = hole_starts[is_hole], hole_ends[is_hole]
        if not len(hole_starts):
            continue
        # For each run the first hole that ends after it begins.
        at = np.searchsorted(hole_ends, starts, side="right")
        reached = at < len(hole_starts)
        reached[reached] = hole_starts[at[reached]] < ends[reached]
        for run in np.flatnonzero(reached).tolist():
            yield from _common(hole_starts, hole_ends, int(at[run]), (starts[run], ends[run]))


def _common(
    hole_starts: np.ndarray, hole_ends: np.ndarray, at: int, run: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Yield what one run of pages has in common with the holes from number ``at`` on."""
    first, end = (int(page) for page in run)
    while at < len(hole_starts) and hole_starts[at] < end:
        start = max(first, int(hole_starts[at]))
        yield start, min(end, int(hole_ends[at])) - start
        first = min(end, int(hole_ends[at]))
        at += 1


@dataclasses.dataclass(frozen=True)
class Missing:
    """Set pages in holes: how many, and the first: its RAM block, page and offset in the file."""

    pages: int
    block: str
    page: int
    offset: int


def find(fd: int, stream: Stream) -> Missing | None:
    """Return what ``missing`` finds over all RAM blocks; None where nothing is missing.

    Raises OSError, TruncatedImage.
    """
    count, first = 0, None
    for block in stream.blocks:
        for page, pages in missing(fd, block):
            if first is None:
                first = (block.name, page, block.pages_offset + page * block.page_size)
            count += pages
    return Missing(count, *first) if first else None


def write_ends(fd: int, block: RamBlock, granule: int, zero_pages: str) -> Iterator[Ends]:
    """Yield arrays of the pages in which a write may have ended short without leaving a hole.

    That is in the last ``granule`` bytes (the file system's block) of what a call has written.
    QEMU fills a channel's job with ``JOB_PAGES`` pages of a block in order, or with as many set
    ones where its main thread looks for zero pages (``legacy``), and writes what is contiguous by
    one call. A channel that looks for them itself puts them last, which turns the order of those
    that follow one round: it writes page after page (10.0: ``multifd_send_zero_page_detect``).
    """
    import numpy as np

    size = block.page_size
    step = max(1, granule // size)
    shift = block.pages_offset // size
    before = 0
    for starts, ends in bitmaps.set_runs(fd, block):
        lengths = ends - starts
        filled = before + np.cumsum(lengths) - lengths if zero_pages == "legacy" else starts
        before += int(lengths.sum())
        phase = filled % JOB_PAGES
        # How many jobs each run is in, and for each of them where its part of the run ends.
        jobs = (phase + lengths - 1) // JOB_PAGES + 1
        run = np.repeat(np.arange(len(starts)), jobs)
        number = np.arange(len(run)) - np.repeat(np.cumsum(jobs) - jobs, jobs)
        stop = np.minimum(ends[run], starts[run] - phase[run] + (number + 1) * JOB_PAGES)
        begin = np.maximum(starts[run], (stop - 1 + shift) // step * step - shift)
        if zero_pages == "multifd":
            is_turned = (number == 0) & (phase[run] > 0)
            begin[is_turned] = starts[run][is_turned]
        # Where granules are large, two ends may be in one.
        begin[1:] = np.maximum(begin[1:], stop[:-1])
        pages = expanded(begin, stop)
        is_run_end = np.zeros(len(pages), dtype=bool)
        is_run_end[(np.cumsum(stop - begin) - 1)[stop == ends[run]]] = True
        yield pages, is_run_end


def expanded(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the numbers of all pages of the spans."""
    import numpy as np

    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    pages: np.ndarray = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
    return pages
