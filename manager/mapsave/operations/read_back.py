"""Read back what QEMU has written of a guest's RAM, and find pages that are missing.

A short write of a channel leaves a hole, which is looked for everywhere, and one page of which only
the first part was written. Such a page ends in zeros, and is compared with the guest's RAM.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mapsave import errors
from mapsave.image import bitmaps, descriptors, holes, syscalls
from mapsave.image.mapped_ram import RamBlock
from mapsave.image.metadata import Metadata, WrittenPart
from mapsave.image.validation import Contents
from mapsave.monitor import process_memory, ram_blocks

if TYPE_CHECKING:
    from bitarray import bitarray


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

    @classmethod
    def recorded(cls, part: WrittenPart) -> Written:
        """Return what the metadata keep."""
        return cls(
            holes=part.get("holes") == "checked",
            compared=part.get("compared", 0),
            not_compared=part.get("not_compared", 0),
            reason=part.get("reason"),
        )

    def as_dict(self) -> WrittenPart:
        """Return it as the metadata keep it."""
        return {
            "holes": "checked" if self.holes else "unknown",
            "compared": self.compared,
            "not_compared": self.not_compared,
            "reason": self.reason,
        }

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

    def read(self, block: RamBlock, spans: Sequence[tuple[int, int]]) -> bytearray:
        """Return the pages of ``spans`` (first, count) one after another. Raises OSError."""
        size = block.page_size
        return self.at(block, [(page * size, pages * size) for page, pages in spans])

    def at(self, block: RamBlock, places: Sequence[tuple[int, int]]) -> bytearray:
        """Return the bytes of ``places`` (offset, length) one after another. Raises OSError."""
        start = self.blocks[block.name].address
        assert start is not None
        return process_memory.read(self.pid, [(start + at, length) for at, length in places])


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
                raise errors.PagesMissing(
                    f"{found.pages} pages were not written, the first of them page {found.page} of "
                    f"RAM block {found.block!r}, at byte {found.offset}",
                    hint=_HINT,
                    **dataclasses.asdict(found),
                )
            return True
        for block in stream.blocks:
            for first, bits in holes.missing(self._fd, block):
                for start, end in bitmaps.runs(bits):
                    self._check_zero(block, first + start, end - start)
        return True

    def _check_zero(self, block: RamBlock, page: int, pages: int) -> None:
        if self._how.is_awaited and pages > _TOGETHER:
            self.unknown += pages
            return
        for first in range(page, page + pages, _TOGETHER):
            count = min(_TOGETHER, page + pages - first)
            data = self._memory(block, [(first, count)])
            if data is None:
                self.unknown += count
                continue
            if contents := len(data.lstrip(b"\0")):
                raise self._differs(block, first + (len(data) - contents) // block.page_size)
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
            for suspects in self._suspects(block, is_all=is_all):
                chosen = _thinned(suspects, steps)
                left_out = suspects.run_ends.count() + suspects.others.count() - chosen.count()
                self.unknown += left_out
                judged = pool.map(
                    lambda spans, block=block: self._judge(fd, block, spans),
                    _batches(suspects.first, chosen),
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
            for suspects in self._suspects(block, is_all=is_all):
                ends += suspects.run_ends.count()
                others += suspects.others.count()
        limit = _MOST_AWAITED if self._how.is_awaited else _MOST + used // _SHARE
        first = max(1, -(-ends // limit))
        left = limit - ends // first
        second = max(1, -(-others // left)) if left > 0 else 0
        if (first, second) != (1, 1):
            self._reason = self._reason or f"to save time, at most {limit} pages were read back"
        return first, second

    def _suspects(self, block: RamBlock, *, is_all: bool) -> Iterator[holes.Suspects]:
        if not is_all:
            granule = os.fstat(self._fd).st_blksize
            yield from holes.write_ends(self._fd, block, granule, self._how.zero_pages)
            return
        for first, bits in bitmaps.chunks(self._fd, block):
            yield holes.Suspects(first, run_ends=bitmaps.empty(len(bits)), others=bits)

    def _judge(self, fd: int, block: RamBlock, spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Return how many pages of ``spans`` are whole, and of how many that is not known.

        In a new file a page that was cut short ends in zeros. One that was written before may hold
        what it had then.
        """
        size = block.page_size
        found = _read(fd, block, spans)
        pages = [page for first, count in spans for page in range(first, first + count)]
        last_bytes = found[size - 1 :: size]
        if not self._how.rewritten and 0 not in last_bytes:
            return len(pages), 0
        is_open = [self._how.rewritten > 0 or last == 0 for last in last_bytes]
        there = self._memory(block, spans)
        if there is not None and there == found:
            return len(pages), 0
        unwritten = bytearray(size)
        for number in itertools.compress(range(len(pages)), is_open):
            place = slice(number * size, (number + 1) * size)
            if there is not None:
                if there[place] != found[place]:
                    raise self._differs(block, pages[number])
            elif self._how.zero_pages != "none" and unwritten == found[place]:
                raise _cut(block, pages[number])
        unknown = 0 if there is not None else sum(is_open)
        return len(pages) - unknown, unknown

    def _memory(self, block: RamBlock, spans: Sequence[tuple[int, int]]) -> bytearray | None:
        """Return pages of the guest's RAM; None where they cannot be read."""
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


def _read(fd: int, block: RamBlock, spans: Sequence[tuple[int, int]]) -> memoryview:
    """Return pages of the image; what is after its end reads as zeros. Raises OSError."""
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
    return view


def _batches(first: int, bits: bitarray) -> Iterator[list[tuple[int, int]]]:
    """Yield the set pages as spans, first page and number of pages, ``_TOGETHER`` at a time."""
    spans: list[tuple[int, int]] = []
    room = _TOGETHER
    for start, end in bitmaps.runs(bits):
        at = start
        while at < end:
            count = min(room, end - at)
            spans.append((first + at, count))
            at, room = at + count, room - count
            if not room:
                yield spans
                spans, room = [], _TOGETHER
    if spans:
        yield spans


def _thinned(suspects: holes.Suspects, steps: tuple[int, int]) -> bitarray:
    """Return every so manyth of the pages, of the ends of runs and of the others."""
    if steps == (1, 1):
        return suspects.run_ends | suspects.others
    chosen = bitmaps.empty(len(suspects.others))
    for bits, step in zip((suspects.run_ends, suspects.others), steps, strict=True):
        if step:
            chosen[list(itertools.islice(bits.search(1), 0, None, step))] = 1
    return chosen
