"""Where a guest's RAM has contents: by samples of its memory while it runs, or by its image.

Of memory that is in no file, a page that was never touched is in no page table of QEMU's and is
zero (``Documentation/admin-guide/mm/pagemap.rst``); others are read. Windows of as many pages as a
job of a multifd channel has are sampled, spread evenly over the RAM, so the cost stays the same
for any size.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from mapsave.image import bitmaps, holes, syscalls
from mapsave.image.validation import Contents
from mapsave.monitor import mappings, pagemap, process_memory
from mapsave.monitor.ram_blocks import RamBlock

PAGE = pagemap.PAGE
WINDOW = holes.JOB_PAGES
# Pages that QEMU reads by one request at most (10.0, migration/ram.c: MAPPED_RAM_LOAD_BUF_SIZE).
_READ_POWER = 8
READ_PAGES = 1 << _READ_POWER
_SAMPLES = 96
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

    @property
    def empty(self) -> float:
        """Which part of the samples has no contents at all, from 0 to 1."""
        return self.samples.count(0) / len(self.samples) if self.samples else 0.0


@dataclasses.dataclass(frozen=True)
class Stored:
    """How an image is read: ``pages`` in so many ``requests``, at least one for each run.

    ``cached``: which part of them is in the page cache, from 0 to 1.
    """

    pages: int
    requests: float
    cached: float = 0.0

    @property
    def run(self) -> float:
        """Pages of a request on the average."""
        return self.pages / self.requests if self.requests else 0.0


def of_image(fd: int, contents: Contents) -> Stored:
    """Return how an image is read. Raises TruncatedImage where it has shrunk since."""
    pages, requests, short = contents.used_bytes // PAGE, 0.0, 0.0
    for power, runs in enumerate(bitmaps.run_histogram(fd, contents.stream).runs):
        # The length of a run is known to a power of two; its last request is half full at best.
        requests += runs if power < _READ_POWER else runs / 2
        short += runs * (1.5 * (1 << power) if power else 1) if power < _READ_POWER else 0
    requests += max(pages - short, 0.0) / READ_PAGES
    begin = min((block.pages_offset for block in contents.stream.blocks), default=0)
    end = max((block.end for block in contents.stream.blocks), default=0)
    cached = syscalls.cached_bytes(fd, begin, end - begin) or 0
    return Stored(pages, requests, min(cached / (pages * PAGE), 1.0) if pages else 0.0)


def sample(pid: int, blocks: Mapping[str, RamBlock]) -> Layout:
    """Sample the RAM of a QEMU. Blocks; about ten milliseconds.

    Raises OSError where its memory may not be read, or is not in our sight.
    """
    spans = [(block.address, block.used) for block in blocks.values() if block.address is not None]
    pages = sum(length // PAGE for _, length in spans)
    if not pages:
        raise OSError(0, "its RAM blocks are not known")
    anonymous = [each.addresses for each in mappings.everything(pid) if each.file is None]
    with pagemap.entries_of(pid) as entries:
        samples = tuple(
            _window(pid, entries, at, in_file=not any(at in each for each in anonymous))
            for at in _places(spans)
        )
    return Layout(pages, samples, "samples of its memory")


def _places(spans: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Yield the addresses of windows, evenly over the spans, in proportion to their lengths."""
    starts = [
        range(address, address + length - WINDOW * PAGE + 1, WINDOW * PAGE)
        for address, length in spans
    ]
    total = sum(map(len, starts))
    wanted = range(0, total, max(1, -(-total // _SAMPLES)))
    first = 0
    for each in starts:
        yield from (each[at - first] for at in wanted if first <= at < first + len(each))
        first += len(each)


def _window(pid: int, entries: int, address: int, *, in_file: bool) -> int:
    """Return which pages of a window have contents."""
    touched = list(range(WINDOW))
    if not in_file:
        touched = list(pagemap.entries(entries, address, WINDOW).search(1))
    if not touched:
        return 0
    if len(touched) == WINDOW:
        data = process_memory.read(pid, [(address, WINDOW * PAGE)])  # a quarter less time
    else:
        data = process_memory.read(pid, [(address + at * PAGE, PAGE) for at in touched])
    found = 0
    for number, at in enumerate(touched):
        if data[number * PAGE : (number + 1) * PAGE] != _ZERO:
            found |= 1 << at
    return found
