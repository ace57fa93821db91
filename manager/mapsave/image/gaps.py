"""Gaps between used pages: short runs of clear bits between set ones.

QEMU reads each run of set bits by requests of its own, so an image of many short runs takes long to
restore. A gap may be filled, its bits being set, where the file has a hole there: that reads as
zeros. Gaps are looked at within one chunk of a bitmap: what reaches into the next one is none.
"""

import dataclasses
from collections.abc import Iterator

from bitarray import bitarray

from mapsave.image import bitmaps, syscalls
from mapsave.image.mapped_ram import RamBlock, Stream

# Pages that a gap may have to count as short; more would become resident for little.
LENGTHS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Gaps:
    """How many gaps there are: ``number[n]`` have at most ``LENGTHS[n]`` pages, ``pages[n]`` is
    how many pages these have together."""

    number: tuple[int, ...]
    pages: tuple[int, ...]


def count(fd: int, stream: Stream) -> Gaps:
    """Count the gaps of all RAM blocks. Raises TruncatedImage, OSError."""
    number, pages = [0] * len(LENGTHS), [0] * len(LENGTHS)
    for block in stream.blocks:
        for _, bits in bitmaps.chunks(fd, block):
            between = _span(bits) & ~bits
            for at, (gaps, length) in enumerate(_of_each_length(between)):
                number[at] += gaps
                pages[at] += length
    return Gaps(tuple(number), tuple(pages))


def _of_each_length(clear: bitarray) -> Iterator[tuple[int, int]]:
    """Yield how many runs have at most each of the lengths, and their pages; ``clear`` is used up.

    In each round those bits stay set that are followed by as many as the length, so that of each
    longer run as many are left as it is longer.
    """
    runs, total = bitmaps.number_of_runs(clear), clear.count()
    longer, left, before = runs, total, 0
    for length in LENGTHS:
        if longer:
            _shrink(clear, before, length)
            longer, left, before = bitmaps.number_of_runs(clear), clear.count(), length
        yield runs - longer, total - left - longer * length


def fill(fd: int, block: RamBlock, most: int) -> None:
    """Set the bits of all gaps of at most ``most`` pages. Raises TruncatedImage, OSError.

    It may stop anywhere, and be done again: each bit that is set is right by itself.
    """
    for first, bits in bitmaps.chunks(fd, block):
        whole = filled(bits, most)
        if whole != bits:
            words = bitmaps.to_words(whole)
            syscalls.write_all(fd, words, block.bitmap_offset + first // 8)


def filled(bits: bitarray, most: int) -> bitarray:
    """Return ``bits`` with all gaps of at most ``most`` pages filled."""
    whole = _span(bits)
    longer = whole & ~bits
    if longer.any():
        _shrink(longer, 0, most)
        _grow(longer, most)
        whole &= ~longer
    return whole


def long_clear_runs(fd: int, block: RamBlock, least: int) -> Iterator[tuple[int, int]]:
    """Yield (first page, pages) of each run of at least ``least`` pages that are not in the file.

    A bitmap may have millions of shorter ones, which are not looked at by themselves. Raises as
    ``fill`` does.
    """
    at = 0
    for first, bits in bitmaps.chunks(fd, block):
        for start, end in bitmaps.runs(filled(bits, least - 1)):
            if first + start - at >= least:
                yield at, first + start - at
            at = first + end
    if block.pages - at >= least:
        yield at, block.pages - at


def _span(bits: bitarray) -> bitarray:
    """Return all bits from the first set one to the last."""
    span = bitmaps.empty(len(bits))
    first = bits.find(1)
    if first >= 0:
        span[first : bits.find(1, right=True) + 1] = 1
    return span


def _shrink(bits: bitarray, before: int, by: int) -> None:
    """Leave of each run its first bits, ``by`` fewer than it had; ``before`` are gone already."""
    for step in _steps(before, by):
        bits &= bits << step


def _grow(bits: bitarray, by: int) -> None:
    """Give the runs that ``_shrink`` has left the length that they had before."""
    for step in _steps(0, by):
        bits |= bits >> step


def _steps(before: int, by: int) -> Iterator[int]:
    """Yield shifts that lead from ``before`` to ``by``, together.

    None is longer than what a bit represents already, one more than was shifted before.
    """
    while before < by:
        step = min(before + 1, by - before)
        yield step
        before += step
