"""What a save or a restore by a strategy will cost: seconds, bytes, and the size of the file.

Which requests QEMU makes of a job's pages follows from how it looks for zero pages (10.0): the
channels (``multifd-zero-page.c``) exchange each zero page with the last page of the job, so that
the pages after it are out of order and are written one by one; the main thread (``legacy``) leaves
zero pages out and keeps the order; and with ``none`` jobs are written whole. A restore reads each
run of pages that are in the image by requests of up to 1 MiB (``migration/ram.c``).
"""

import collections
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterable

from mapsave.plan.layout import PAGE, WINDOW, Layout, Stored
from mapsave.plan.probe import LARGE, SMALL, Costs, Probe

# Seconds to look whether a page is zero, and that a request through the page cache takes beside
# its bytes (docs/benchmarks.md).
_SCAN = 4e-7
_CACHED_REQUEST = 6e-6
# Seconds to see that a page in a long run of zeros is one, and to make a hole of it.
_DIG = 1e-6
# Channels with which a restore is expected to read, while its image is made.
_READING = 8
# Seconds that QEMU's main thread takes to hand a read to a channel and wake it, and seconds a byte
# that one thread copies from the page cache into memory that was not touched before (QEMU 10.0).
_DISPATCH = 1.7e-5
_COPY = 1 / 1.2e9
# Seconds that a QEMU takes to start and to load devices (docs/benchmarks.md).
_LOAD = 0.3


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to write an image, as a Strategy has it."""

    direct_io: bool
    zero_pages: str
    channels: int
    preallocate: bool

    def text(self) -> str:
        """Name it in a few words."""
        direct = "direct" if self.direct_io else "page cache"
        preallocated = ", preallocated" if self.preallocate else ""
        return f"{direct}, zero pages {self.zero_pages}, {self.channels} channels{preallocated}"


@dataclasses.dataclass(frozen=True)
class ReadWay:
    """One way to read an image, as a ReadStrategy has it."""

    direct_io: bool
    channels: int

    def text(self) -> str:
        """Name it in a few words."""
        return f"{'direct' if self.direct_io else 'page cache'}, {self.channels} channels"


@dataclasses.dataclass(frozen=True)
class ReadPrediction:
    """What a restore by ``way`` takes from when QEMU has the image: seconds, and bytes read."""

    way: ReadWay
    seconds: float
    read_bytes: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a save by ``way`` takes: seconds, bytes written in ``requests``, bytes on the disk."""

    way: Way
    seconds: float
    written_bytes: int
    file_bytes: int
    requests: float = 1.0


def predict(layout: Layout, probe: Probe, way: Way) -> Prediction:
    """Predict a save; where the probe has no figures for direct ways, by those of the cache."""
    requests = _requests(layout, way.zero_pages)
    pages = sum(length * number for length, number in requests.items())
    seconds = _seconds(requests.items(), _write_costs(probe, way)) + layout.pages * _scan(way)
    if way.zero_pages == "none":
        seconds += min(layout.empty * layout.pages * _DIG, search_limit(seconds))
    whole = way.preallocate or way.zero_pages == "none"
    written = round(pages) * PAGE
    size = layout.pages * PAGE if whole else written
    return Prediction(way, seconds, written, size, sum(requests.values()))


def search_limit(seconds: float) -> float:
    """Return for how long a save that took ``seconds`` may search for zeros that it has written."""
    return max(0.25, seconds / 10)


def read_request(probe: Probe) -> float:
    """Return the seconds that a restore takes for a request beside those for its further pages."""
    small, _ = _read_costs(probe, ReadWay(direct_io=True, channels=_READING), cached=0.0)
    return small


def course(layout: Layout, probe: Probe, found: Prediction) -> tuple[float, ...]:
    """Return the seconds of a prediction until each sampled part of the RAM is written."""
    parts = [
        _seconds(_of_job(sample, found.way.zero_pages).items(), _write_costs(probe, found.way))
        + WINDOW * _scan(found.way)
        for sample in layout.samples or (0,)
    ]
    scale = found.seconds / (sum(parts) or 1.0)
    return tuple(scale * until for until in itertools.accumulate(parts))


def proof(layout: Layout, probe: Probe, prove: str) -> float:
    """Return the seconds that a proof takes; with ``pages`` all that has contents is read."""
    if prove != "pages":
        return _LOAD
    _, large = _read_costs(probe, ReadWay(direct_io=True, channels=_READING), cached=0.0)
    return _LOAD + layout.filled * layout.pages * PAGE / LARGE * large


def predict_read(stored: Stored, probe: Probe, way: ReadWay) -> ReadPrediction:
    """Predict a restore; where the probe has no figures for direct ways, by those of the cache."""
    costs = _read_costs(probe, way, stored.cached)
    seconds = _seconds([(stored.run, stored.requests)], costs) + stored.requests * _DISPATCH
    return ReadPrediction(way, seconds, stored.pages * PAGE)


def _seconds(requests: Iterable[tuple[float, float]], costs: tuple[float, float]) -> float:
    """Return what pairs of length and number take by the ``costs`` of a page and a whole job."""
    small, large = costs
    each = (large - small) / (LARGE // SMALL - 1)  # of a further page in a request
    return sum(number * (small + (length - 1) * each) for length, number in requests)


def _scan(way: Way) -> float:
    """Return the seconds that it takes for each page to see whether it is zero."""
    if way.zero_pages == "none":
        return 0.0
    return _SCAN / (min(way.channels, os.cpu_count() or 1) if way.zero_pages == "multifd" else 1)


@functools.lru_cache(maxsize=16)
def _requests(layout: Layout, zero_pages: str) -> dict[int, float]:
    """Return how many requests of how many pages QEMU makes for the whole RAM."""
    samples = layout.samples or ((1 << WINDOW) - 1,)
    scale = layout.pages / WINDOW / len(samples)
    found: dict[int, float] = {}
    for sample, times in collections.Counter(samples).items():
        for length, number in _of_job(sample, zero_pages).items():
            found[length] = found.get(length, 0) + scale * times * number
    return found


def _of_job(sample: int, zero_pages: str) -> dict[int, int]:
    """Return how many requests of how many pages QEMU makes of a job with these pages."""
    if zero_pages == "none":
        return {WINDOW: 1}
    pages = list(range(WINDOW))
    if zero_pages == "multifd":
        first, last = 0, WINDOW - 1
        while first <= last:
            if sample >> pages[first] & 1:
                first += 1
                continue
            pages[first], pages[last] = pages[last], pages[first]
            last -= 1
        pages = pages[:first]
    else:
        pages = [page for page in pages if sample >> page & 1]
    found: dict[int, int] = {}
    length = 0
    for at, page in enumerate(pages):
        length += 1
        if at + 1 == len(pages) or pages[at + 1] != page + 1:
            found[length] = found.get(length, 0) + 1
            length = 0
    return found


def _read_costs(probe: Probe, way: ReadWay, cached: float) -> tuple[float, float]:
    """Return the same of reads, where that part of what is read is in the page cache."""
    if way.direct_io and probe.reads:
        small, large = (_at_depth(probe.reads, size, way.channels) for size in (SMALL, LARGE))
        return small, large
    threads = min(way.channels, os.cpu_count() or 1)
    each = cached * _COPY / threads + (1 - cached) * (_COPY + probe.cached_reads)
    small, large = (size * each + _CACHED_REQUEST for size in (SMALL, LARGE))
    return small, large


def _write_costs(probe: Probe, way: Way) -> tuple[float, float]:
    """Return the seconds that a request of one page takes, and one of a whole job."""
    if not way.direct_io or not probe.holes:
        small, large = (size * probe.buffered + _CACHED_REQUEST for size in (SMALL, LARGE))
        return small, large
    costs = probe.preallocated if way.preallocate and probe.preallocated else probe.holes
    small, large = (_at_depth(costs, size, way.channels) for size in (SMALL, LARGE))
    return small, large


def _at_depth(costs: Costs, size: int, depth: int) -> float:
    """Return the cost with ``depth`` requests in flight, between those that were measured."""
    known = sorted(costs[size].items())
    below = [each for each in known if each[0] <= depth] or known[:1]
    above = [each for each in known if each[0] >= depth] or known[-1:]
    (low, before), (high, after) = below[-1], above[0]
    if low == high:
        return before
    part = math.log(depth / low) / math.log(high / low)
    return before + (after - before) * part
