"""The two sides of a comparison: an image, or the RAM of a guest that is there."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Protocol

from bitarray import bitarray

from mapsave.image import bitmaps, descriptors, holes, image
from mapsave.image.mapped_ram import RamBlock, Stream
from mapsave.monitor import pagemap, process_memory, ram_blocks


class Side(Protocol):
    """RAM that is compared, in blocks by their names."""

    @property
    def pages(self) -> Mapping[str, int]:
        """How many pages each block has."""
        ...

    @property
    def page_size(self) -> int:
        """The bytes of a page."""
        ...

    def used(self, block: str, first: int, pages: int) -> bitarray:
        """Return which pages from ``first`` on may have contents; others are zero."""
        ...

    def read(self, block: str, first: int, pages: int) -> bytes | bytearray:
        """Return the pages; what is read of those that are not used means nothing."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageSide:
    """An image that was validated."""

    path: str
    fd: int
    blocks: Mapping[str, RamBlock]
    knows_holes: bool

    @property
    def pages(self) -> Mapping[str, int]:
        return {name: block.pages for name, block in self.blocks.items()}

    @property
    def page_size(self) -> int:
        return next(iter(self.blocks.values())).page_size

    def used(self, block: str, first: int, pages: int) -> bitarray:
        found = self.blocks[block]
        with descriptors.reading(self.path):
            bits = bitmaps.window(self.fd, found, first, pages)
            return bits & self._data(found, first, pages) if self.knows_holes else bits

    def _data(self, block: RamBlock, first: int, pages: int) -> bitarray:
        """Return which pages are in data of the file: used ones in a hole are zero, too."""
        size = block.page_size
        start = block.pages_offset + first * size
        bits = bitmaps.empty(pages)
        for begin, end in holes.extents(self.fd, start, start + pages * size):
            bits[(begin - start) // size : -(-(end - start) // size)] = 1
        return bits

    def read(self, block: str, first: int, pages: int) -> bytes:
        found = self.blocks[block]
        length = pages * found.page_size
        with descriptors.reading(self.path):
            data = os.pread(self.fd, length, found.pages_offset + first * found.page_size)
        return data.ljust(length, b"\0")  # the file may end within the last page's hole


@dataclasses.dataclass(frozen=True)
class GuestSide:
    """The RAM of a QEMU in our sight."""

    pid: int
    blocks: Mapping[str, ram_blocks.RamBlock]
    touched: pagemap.Touched
    page_size: int = pagemap.PAGE

    @property
    def pages(self) -> Mapping[str, int]:
        return {name: block.used // pagemap.PAGE for name, block in self.blocks.items()}

    def used(self, block: str, first: int, pages: int) -> bitarray:
        return self.touched.pages(self._address(block, first), pages)

    def read(self, block: str, first: int, pages: int) -> bytearray:
        return process_memory.read(self.pid, [(self._address(block, first), pages * pagemap.PAGE)])

    def _address(self, block: str, first: int) -> int:
        start = self.blocks[block].address
        assert start is not None
        return start + first * pagemap.PAGE


@contextlib.contextmanager
def of_image(path: str) -> Iterator[tuple[ImageSide, Stream]]:
    """Yield an image as a side, and its stream. Raises as ``image.opened`` and ``validate`` do."""
    with image.opened(path) as opened:
        stream = opened.validate().stream
        blocks = {block.name: block for block in stream.blocks}
        known = holes.are_known(opened.fd, opened.size)
        yield ImageSide(path, opened.fd, blocks, known), stream


@contextlib.contextmanager
def of_guest(pid: int, blocks: Mapping[str, ram_blocks.RamBlock]) -> Iterator[GuestSide]:
    """Yield a guest as a side; blocks whose address QEMU does not report are left out.

    Raises OSError where its memory may not be looked at.
    """
    known = {name: block for name, block in blocks.items() if block.address is not None}
    with pagemap.opened(pid) as touched:
        yield GuestSide(pid, known, touched)
