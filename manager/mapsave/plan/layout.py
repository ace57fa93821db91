"""Where a guest's RAM has contents, learned while it runs: from samples of its memory.

Of memory that is in no file, a page that was never touched is in no page table of QEMU's and is
zero (``Documentation/admin-guide/mm/pagemap.rst``); others are read. Windows of as many pages as a
job of a multifd channel has are sampled, spread evenly over the RAM, so the cost stays the same
for any size.
"""

import dataclasses
import os
import struct
from collections.abc import Iterator, Mapping, Sequence

from mapsave.image import holes
from mapsave.monitor import process_memory
from mapsave.monitor.ram_blocks import RamBlock

PAGE = 4096
WINDOW = holes.JOB_PAGES
_SAMPLES = 192
_ENTRY = struct.Struct("=Q")
# In memory, or swapped out (pagemap.rst).
_TOUCHED = 1 << 63 | 1 << 62
_ZERO = bytes(PAGE)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a guest's RAM is filled: ``pages`` in all, and samples of it.

    A sample is a window of WINDOW pages in a row, one bit each, set where the page has contents;
    the first page is the lowest bit. Together they represent all of the RAM.
    """

    pages: int
    samples: tuple[int, ...]
    source: str

    @property
    def filled(self) -> float:
        """Which part of the pages has contents, from 0 to 1."""
        if not self.samples:
            return 1.0
        return sum(sample.bit_count() for sample in self.samples) / (WINDOW * len(self.samples))


def sample(pid: int, blocks: Mapping[str, RamBlock]) -> Layout:
    """Sample the RAM of a QEMU. Blocks; some ten milliseconds.

    Raises OSError where its memory may not be read, or is not in our sight.
    """
    spans = [(block.address, block.used) for block in blocks.values() if block.address is not None]
    pages = sum(length // PAGE for _, length in spans)
    if not pages:
        raise OSError(0, "its RAM blocks are not known")
    anonymous = _anonymous(pid)
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        samples = tuple(
            _window(pid, pagemap, at, in_file=not any(at in each for each in anonymous))
            for at in _places(spans)
        )
    finally:
        os.close(pagemap)
    return Layout(pages, samples, "samples of its memory")


def _places(spans: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Yield the addresses of windows, evenly over the spans, in proportion to their lengths."""
    starts = [
        range(address, address + length - WINDOW * PAGE + 1, WINDOW * PAGE)
        for address, length in spans
    ]
    total = sum(map(len, starts))
    wanted = range(0, total, max(1, total // _SAMPLES))
    first = 0
    for each in starts:
        yield from (each[at - first] for at in wanted if first <= at < first + len(each))
        first += len(each)


def _anonymous(pid: int) -> list[range]:
    """Return the addresses of the process's memory that is in no file (proc_pid_maps(5))."""
    found = []
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            addresses, _, _, _, inode, *_ = line.split()
            if inode == "0":
                first, _, end = addresses.partition("-")
                found.append(range(int(first, 16), int(end, 16)))
    return found


def _window(pid: int, pagemap: int, address: int, *, in_file: bool) -> int:
    """Return which pages of a window have contents."""
    touched = list(range(WINDOW))
    if not in_file:
        raw = os.pread(pagemap, WINDOW * _ENTRY.size, address // PAGE * _ENTRY.size)
        touched = [at for at, (entry,) in enumerate(_ENTRY.iter_unpack(raw)) if entry & _TOUCHED]
    if not touched:
        return 0
    data = process_memory.read(pid, [(address + at * PAGE, PAGE) for at in touched])
    found = 0
    for number, at in enumerate(touched):
        if data[number * PAGE : (number + 1) * PAGE] != _ZERO:
            found |= 1 << at
    return found
