"""The page bitmaps of a mapped-ram image: which pages were written, and in what runs.

Bit i of a block's bitmap says that page i is in the file; a page whose bit is clear was zero. The
words are native, which on every little-endian host means: page i is bit i & 7 of byte i >> 3.
Bitmaps are read in chunks, so memory does not grow with the guest.
"""

import collections
import dataclasses
import errno
import os
import sys
from collections.abc import Iterator

from bitarray import bitarray
from bitarray.util import byteswap, count_and, zeros

from mapsave import errors, units
from mapsave.image.mapped_ram import RamBlock, Stream

_CHUNK = 64 * units.KIB
CHUNK_PAGES = _CHUNK * 8
_WORD = 8  # bytes
# Chunks begin at a multiple of this many bytes: 128 pages, what a job of QEMU's channels has.
_ALIGNMENT = 16


def empty(pages: int) -> bitarray:
    return zeros(pages, "little")


def chunks(fd: int, block: RamBlock, ahead: int = 0) -> Iterator[tuple[int, bitarray]]:
    """Yield the block's bitmap in order: the first page, and the bits of up to ``CHUNK_PAGES``.

    Each is followed by as many as ``ahead`` bytes of the next one. Holes of the file are left out:
    they are zeros, and a bitmap that was made to take long has terabytes of them. Raises
    TruncatedImage where the file has shrunk since it was read.
    """
    at = 0
    while at < block.bitmap_bytes:
        begin = data_from(fd, block.bitmap_offset + at) - block.bitmap_offset
        at = max(at, begin // _ALIGNMENT * _ALIGNMENT)
        want = min(block.bitmap_bytes - at, _CHUNK + ahead)
        if want <= 0:
            return
        data = os.pread(fd, want, block.bitmap_offset + at)
        if len(data) < want:
            raise errors.TruncatedImage(f"the bitmap of RAM block {block.name!r} is cut short")
        yield at * 8, from_words(data)
        at += _CHUNK


def window(fd: int, block: RamBlock, first: int, pages: int) -> bitarray:
    """Return the bits of ``pages`` from page ``first`` on, which is a multiple of 64.

    Raises TruncatedImage where the file has shrunk since it was read.
    """
    want = -(-pages // (8 * _WORD)) * _WORD
    data = os.pread(fd, want, block.bitmap_offset + first // 8)
    if len(data) < want:
        raise errors.TruncatedImage(f"the bitmap of RAM block {block.name!r} is cut short")
    bits = from_words(data)
    del bits[pages:]
    return bits


def from_words(data: bytes) -> bitarray:
    """Return the bits of native 64-bit words."""
    if sys.byteorder == "big":
        swapped = bytearray(data)
        byteswap(swapped, _WORD)
        data = bytes(swapped)
    return bitarray(data, endian="little")


def to_words(bits: bitarray) -> bytes:
    """Return what ``from_words`` has made the bits of."""
    data = bits.tobytes()
    if sys.byteorder == "big":
        swapped = bytearray(data)
        byteswap(swapped, _WORD)
        data = bytes(swapped)
    return data


def data_from(fd: int, offset: int) -> int:
    """Return the offset of the first data of the file from ``offset`` on, as lseek(2) knows it."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        # No data at all from there on: up to its length the file is a hole.
        return os.fstat(fd).st_size if error.errno == errno.ENXIO else offset


def used_pages(fd: int, block: RamBlock) -> int:
    """Return how many of the pages are in the file. Raises InvalidImage for bits after them."""
    count = 0
    for first, bits in chunks(fd, block):
        count += bits.count()
        if bits.find(1, max(0, block.pages - first)) >= 0:
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
        return sum(self.runs)


def run_histogram(fd: int, stream: Stream) -> RunHistogram:
    """Return the run-length histogram over all RAM blocks (a run ends with its block).

    No run is looked at by itself but those that reach from one chunk into the next: a terabyte may
    have 134 million.
    """
    counts: collections.Counter[int] = collections.Counter()  # by the number of bits of the length
    for block in stream.blocks:
        reaching, end = 0, 0
        for first, bits in chunks(fd, block):
            if first > end:  # a hole ends the run before it
                counts[reaching.bit_length()] += 1
                reaching = 0
            end = first + len(bits)
            head = bits.find(0)
            if head < 0:
                reaching += len(bits)
                continue
            counts[(reaching + head).bit_length()] += 1
            tail = bits.find(0, right=True)
            reaching = len(bits) - 1 - tail
            _count_runs(bits[head:tail], counts)
        counts[reaching.bit_length()] += 1
    del counts[0]
    longest = max((power for power, count in counts.items() if count), default=0)
    return RunHistogram(tuple(counts[power] for power in range(1, longest + 1)))


def _count_runs(bits: bitarray, counts: collections.Counter[int]) -> None:
    """Count the runs of ``bits``, by the number of bits of their length; ``bits`` is used up.

    In each round a bit stays set where twice as many follow it as in the round before, so that as
    many runs are left as are at least that long.
    """
    power = 0
    runs = number_of_runs(bits)
    while runs:
        bits &= bits << (1 << power)
        power += 1
        longer = number_of_runs(bits)
        counts[power] += runs - longer
        runs = longer


def number_of_runs(bits: bitarray) -> int:
    return bits.count() - count_and(bits, bits << 1)


def runs(bits: bitarray) -> Iterator[tuple[int, int]]:
    """Return an iterator over (first, end) of each run of set bits, ``end`` being after its last.

    A bit that differs from its predecessor is an edge, and edges are searched for in words.
    """
    edges = bits.copy()
    edges.append(0)
    edges ^= edges >> 1
    places = edges.search(1)
    return zip(places, places, strict=True)


def set_runs(fd: int, block: RamBlock) -> Iterator[tuple[int, int]]:
    """Yield (first page, end) of each run of pages that are in the file."""
    begin = end = 0
    for first, bits in chunks(fd, block):
        for start, stop in runs(bits):
            if first + start > end:
                if end:
                    yield begin, end
                begin = first + start
            end = first + stop
    if end:
        yield begin, end


def clear_runs(fd: int, block: RamBlock) -> Iterator[tuple[int, int]]:
    """Yield (first page, pages) of each run of pages that are not in the file."""
    at = 0
    for start, end in set_runs(fd, block):
        if start > at:
            yield at, start - at
        at = end
    if at < block.pages:
        yield at, block.pages - at
