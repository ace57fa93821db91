"""RAM blocks seen from far away: how many pages of each cell are in the file, and shared.

The cells of a block are equally many pages each, and at most 4^order, so that they make a square.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from bitarray import bitarray

from mapsave.image import bitmaps, extents
from mapsave.image.mapped_ram import RamBlock, Stream


@dataclasses.dataclass(frozen=True)
class Cells:
    """A RAM block: of each cell how many pages are used, and how many of these are shared.

    ``shared`` is None where the file system does not say.
    """

    block: RamBlock
    order: int
    cell_pages: int
    used: Sequence[int]
    shared: Sequence[int] | None


def order_of(pages: int, most: int) -> int:
    """Return the lowest order that has a cell for each page, or ``most``."""
    return min(most, ((pages - 1).bit_length() + 1) // 2)


def drawn_blocks(stream: Stream, most_blocks: int) -> list[RamBlock]:
    """Return the largest blocks, largest first."""
    return sorted(stream.blocks, key=lambda block: -block.used_length)[:most_blocks]


def orders(pages: Sequence[int], largest: int, most_cells: int) -> list[int]:
    """Return the order of each block, so that all of them have at most ``most_cells`` together."""
    for most in range(largest, -1, -1):
        found = [order_of(each, most) for each in pages]
        if sum(1 << 2 * order for order in found) <= most_cells:
            break
    return found


def of_block(fd: int, block: RamBlock, order: int) -> Cells:
    """Return the cells of a block. Raises TruncatedImage, OSError."""
    each = cell_pages(block.pages, order)
    used = [0] * -(-block.pages // each)
    shared = _shared_pages(fd, block)
    of_shared = [0] * len(used)
    for first, bits in bitmaps.chunks(fd, block):
        if bits.any():
            _count(used, each, first, bits)
            if shared:
                _count(of_shared, each, first, bits & _within(shared, first, len(bits)))
    return Cells(block, order, each, used, None if shared is None else of_shared)


def cell_pages(pages: int, order: int) -> int:
    """Return how many pages a cell has."""
    return -(-pages // (1 << 2 * order))


def count(bits: bitarray, each: int, first: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (cell, set bits in it) of cells of ``each`` pages; bit 0 is page ``first``."""
    for cell in range(first // each, -(-(first + len(bits)) // each)):
        start = cell * each - first
        yield cell, bits.count(1, max(start, 0), min(start + each, len(bits)))


def _count(into: list[int], each: int, first: int, bits: bitarray) -> None:
    for cell, found in count(bits, each, first):
        if found:  # bits after the last page, which a damaged bitmap may have, are refused before
            into[cell] += found


def _shared_pages(fd: int, block: RamBlock) -> list[tuple[int, int]] | None:
    """Return (first page, end) of what lies in shared extents."""
    found = extents.shared(fd, block.pages_offset, block.end)
    if found is None:
        return None
    size = block.page_size
    return [
        ((start - block.pages_offset) // size, (end - block.pages_offset) // size)
        for start, end in found
    ]


def _within(ranges: Sequence[tuple[int, int]], first: int, pages: int) -> bitarray:
    bits = bitmaps.empty(pages)
    for start, end in ranges:
        if start < first + pages and end > first:
            bits[max(start - first, 0) : min(end - first, pages)] = 1
    return bits
