"""Read back what QEMU has written of a guest's RAM, and find pages that are missing.

A short write of a channel leaves a hole, which is looked for everywhere, and one page of which only
the first part was written. Such a page ends in zeros, and is compared with the guest's RAM.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import mmap
import os
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.image import bitmaps, descriptors, holes, syscalls
from mapsave.monitor import process_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from mapsave.image.mapped_ram import RamBlock
    from mapsave.image.metadata import Metadata
    from mapsave.image.validation import Contents
    from mapsave.monitor import ram_blocks

# Single pages that are read back, beside a share of all: each may cost a disk access. While a guest
# waits to be resumed, no more than a few.
_MOST = 8192
_SHARE = 64
_MOST_AWAITED = 1024
_TOGETHER = 256  # pages that are read and compared at a time
_THREADS = 8
# File systems that keep zeros which were written as data (linux/magic.h); ZFS makes holes of them.
_KEEP_ZEROS = {0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x01021994: "tmpfs"}
_HINT = "the storage lost writes; save to another file system"


@dataclasses.dataclass(frozen=True)
class How:
    """How QEMU wrote the image.

    ``rewritten`` pages were written more than once, by a save of a running guest. ``is_awaited``
    where the guest waits to be resumed, so that little time may be taken.
    """

    zero_pages: str
    direct_io: bool
    rewritten: int = 0
    is_awaited: bool = False

    @classmethod
    def recorded(cls, known: Metadata, *, is_awaited: bool = False) -> How:
        """Return it as the metadata of a partial image say it. Whether pages were written again is
        not among them: of a live save, all are taken for such."""
        strategy = known.get("strategy") or {}
        return cls(
            zero_pages=str(strategy.get("zero_pages", "multifd")),
            direct_io=bool(strategy.get("direct_io")),
            rewritten=int(bool(known.get("live"))),
            is_awaited=is_awaited,
        )


@dataclasses.dataclass(frozen=True)
class Written:
    """What was found, nothing being missing.

    ``holes``: every set page lies in data, as far as the file system reports. ``compared`` pages
    were seen to be whole, in which a short write may have ended; ``not_compared`` were not, for
    ``reason``.
    """

    holes: bool
    compared: int
    not_compared: int
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as the metadata keep it."""
        return {"holes": "checked" if self.holes else "unknown", **self._pages()}

    def _pages(self) -> dict[str, Any]:
        known = dataclasses.asdict(self)
        return {key: known[key] for key in ("compared", "not_compared", "reason")}

    def warnings(self) -> list[str]:
        """Return what the user should know of an image that could not be checked."""
        if self.holes or not self.not_compared:
            return []
        return [
            f"the file system does not report holes, and {self.not_compared} pages were not "
            f"compared with the guest's RAM ({self.reason}): a short write would not be noticed"
        ]


@dataclasses.dataclass(frozen=True)
class Ram:
    """A paused guest's RAM: QEMU's pid, and where its blocks are in QEMU's address space."""

    pid: int
    blocks: dict[str, ram_blocks.RamBlock]

    def read(self, block: RamBlock, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return pages as rows; ``spans`` are their first ones and how many.

        Raises OSError where QEMU is gone, or we are not allowed.
        """
        start, size = self.blocks[block.name].address, block.page_size
        assert start is not None
        found = process_memory.read(
            self.pid, [(start + page * size, pages * size) for page, pages in spans]
        )
        rows: np.ndarray = found.reshape(-1, size)
        return rows


class ReadBack:
    """One look at the image ``fd``; ``ram`` is None where the guest's RAM is out of reach, for
    ``reason``."""

    def __init__(self, fd: int, contents: Contents, how: How, ram: Ram | None, reason: str) -> None:
        self._fd = fd
        self._contents = contents
        self._how = how
        self._ram = ram
        self._reason = reason
        self.compared = 0
        self.unknown = 0
        self.is_by_ram = False

    def run(self) -> Written:
        """Return what was found. Raises PagesMissing, TruncatedImage, OSError."""
        is_known = self.check_holes()
        with contextlib.ExitStack() as stack:
            fd = self._fd
            if self._how.direct_io:  # what QEMU kept out of the page cache stays out of it
                with contextlib.suppress(OSError):
                    flags = os.O_RDONLY | os.O_DIRECT
                    fd = stack.enter_context(descriptors.reopened(self._fd, flags))
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(_THREADS))
            self._compare(fd, pool, is_all=not is_known or self._how.rewritten > 0)
        reason = self._reason if self.unknown else None
        return Written(is_known, self.compared, self.unknown, reason)

    def check_holes(self) -> bool:
        """Return whether the file system reports holes, no set page being in one.

        Zeros that were written may have become one. Raises as ``run`` does.
        """
        stream = self._contents.stream
        if not holes.are_known(self._fd, os.fstat(self._fd).st_size):
            return False
        keeps_zeros = syscalls.file_system_type(self._fd) in _KEEP_ZEROS
        if self._how.zero_pages != "none" or keeps_zeros:
            if (found := holes.find(self._fd, stream)) is not None:
                raise _missing(found)
            return True
        for block in stream.blocks:
            for page, pages in holes.missing(self._fd, block):
                self._check_zero(block, page, pages)
        return True

    def _check_zero(self, block: RamBlock, page: int, pages: int) -> None:
        """See that pages which read as zeros are zero."""
        if self._how.is_awaited and pages > _TOGETHER:
            self.unknown += pages
            return
        for first in range(page, page + pages, _TOGETHER):
            count = min(_TOGETHER, page + pages - first)
            data = self._rows(block, [(first, count)])
            if data is None:
                self.unknown += count
                continue
            lost = data.any(axis=1)
            if lost.any():
                raise self._differs(block, first + int(lost.argmax()))
            self.compared += count

    def _compare(
        self, fd: int, pool: concurrent.futures.ThreadPoolExecutor, *, is_all: bool
    ) -> None:
        used = sum(self._contents.used_pages)
        if is_all and self._ram is None:
            self.unknown += used
            return
        steps = self._steps(used, is_all=is_all)
        for block in self._contents.stream.blocks:
            for pages, is_run_end in self._suspects(block, is_all=is_all):
                chosen = _thinned(pages, is_run_end, steps)
                self.unknown += len(pages) - len(chosen)
                judged = pool.map(
                    lambda wanted, block=block: self._judge(fd, block, wanted),
                    (chosen[at : at + _TOGETHER] for at in range(0, len(chosen), _TOGETHER)),
                )
                for whole, unknown in judged:
                    self.compared += whole
                    self.unknown += unknown

    def _steps(self, used: int, *, is_all: bool) -> tuple[int, int]:
        """Return that every how manyth page is read back, ends of runs and others; 0 is none.

        Without ``is_all`` there may be more than is worth the time: first come ends of runs.
        """
        if is_all and not self._how.is_awaited:
            return 1, 1
        ends = others = 0
        for block in self._contents.stream.blocks:
            for pages, is_run_end in self._suspects(block, is_all=is_all):
                count = int(is_run_end.sum())
                ends, others = ends + count, others + len(pages) - count
        limit = _MOST_AWAITED if self._how.is_awaited else _MOST + used // _SHARE
        first = max(1, -(-ends // limit))
        left = limit - ends // first
        second = max(1, -(-others // left)) if left > 0 else 0
        if (first, second) != (1, 1):
            self._reason = self._reason or f"to save time, at most {limit} pages were read back"
        return first, second

    def _suspects(self, block: RamBlock, *, is_all: bool) -> Iterator[holes.Ends]:
        if not is_all:
            granule = os.fstat(self._fd).st_blksize
            yield from holes.write_ends(self._fd, block, granule, self._how.zero_pages)
            return
        for starts, ends in bitmaps.set_runs(self._fd, block):
            pages = holes.expanded(starts, ends)
            yield pages, pages < 0

    def _judge(self, fd: int, block: RamBlock, wanted: np.ndarray) -> tuple[int, int]:
        """Return how many of the pages ``wanted`` are whole, and of how many that is not known.

        In a new file a page that was cut short ends in zeros. One that was written before may hold
        what it had then.
        """
        spans = _spans(wanted)
        rows = _read(fd, block, spans)
        is_open = (rows[:, -1] == 0) | (self._how.rewritten > 0)
        if not is_open.any():
            return len(rows), 0
        there = self._rows(block, spans)
        if there is None:
            lost = is_open & ~rows.any(axis=1)
            if self._how.zero_pages != "none" and lost.any():
                raise _cut(block, int(wanted[int(lost.argmax())]))
            return int((~is_open).sum()), int(is_open.sum())
        lost = is_open & (rows != there).any(axis=1)
        if lost.any():
            raise self._differs(block, int(wanted[int(lost.argmax())]))
        return len(rows), 0

    def _rows(self, block: RamBlock, spans: Sequence[tuple[int, int]]) -> np.ndarray | None:
        """Return pages of the guest's RAM as rows; None where they cannot be read."""
        if self._ram is None:
            return None
        try:
            return self._ram.read(block, spans)
        except OSError as error:
            where = f"the memory of QEMU (pid {self._ram.pid})"
            self._reason = f"{where} cannot be read: {error.strerror}"
            return None

    def _differs(self, block: RamBlock, page: int) -> errors.PagesMissing:
        self.is_by_ram = True
        return _cut(block, page)


def _cut(block: RamBlock, page: int) -> errors.PagesMissing:
    offset = block.pages_offset + page * block.page_size
    return errors.PagesMissing(
        f"page {page} of RAM block {block.name!r}, at byte {offset}, was not completely written",
        hint=_HINT,
        block=block.name,
        page=page,
        offset=offset,
    )


def _missing(found: holes.Missing) -> errors.PagesMissing:
    return errors.PagesMissing(
        f"{found.pages} pages were not written, the first of them page {found.page} of RAM block "
        f"{found.block!r}, at byte {found.offset}",
        hint=_HINT,
        pages=found.pages,
        block=found.block,
        page=found.page,
        offset=found.offset,
    )


def _read(fd: int, block: RamBlock, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return pages of the image as rows; what is after its end reads as zeros. Raises OSError."""
    import numpy as np

    size = block.page_size
    buffer = mmap.mmap(-1, sum(pages for _, pages in spans) * size)  # aligned, for O_DIRECT
    view = memoryview(buffer)
    at = 0
    for page, pages in spans:
        offset, end = block.pages_offset + page * size, at + pages * size
        while at < end:
            count = os.preadv(fd, [view[at:end]], offset)
            if not count:
                break
            at, offset = at + count, offset + count
        at = end
    return np.frombuffer(buffer, dtype=np.uint8).reshape(-1, size)


def _spans(pages: np.ndarray) -> list[tuple[int, int]]:
    """Return first page and number of pages of each run in ``pages``, which are ascending."""
    import numpy as np

    firsts = np.concatenate(([0], np.flatnonzero(np.diff(pages) != 1) + 1))
    lengths = np.diff(np.concatenate((firsts, [len(pages)])))
    return list(zip(pages[firsts].tolist(), lengths.tolist(), strict=True))


def _thinned(pages: np.ndarray, is_run_end: np.ndarray, steps: tuple[int, int]) -> np.ndarray:
    """Return every so manyth of the pages, of the ends of runs and of the others."""
    import numpy as np

    if steps == (1, 1):
        return pages
    ends, others = pages[is_run_end], pages[~is_run_end]
    return np.sort(
        np.concatenate((ends[:: steps[0]], others[:: steps[1]] if steps[1] else ends[:0]))
    )
