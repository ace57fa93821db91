"""What a stream holds: read whole, structure, bitmaps and description."""

import dataclasses
from typing import Self

from mapsave.image import bitmaps, description, mapped_ram, stream_parts, structure
from mapsave.image.mapped_ram import Stream


@dataclasses.dataclass(frozen=True)
class Contents:
    """What validation found: the stream, and how many pages of each RAM block are in the file.

    ``filled_pages`` of them are zeros in short gaps, which the save has marked as used
    (``gaps.py``). ``structure_digest`` is there where QEMU has just written the stream.
    """

    stream: Stream
    used_pages: tuple[int, ...]
    filled_pages: int = 0
    structure_digest: str | None = None

    @property
    def page_size(self) -> int:
        """The size of a page in bytes: that of every RAM block."""
        return self.stream.blocks[0].page_size

    @property
    def used_bytes(self) -> int:
        """Bytes of the used pages: what a restore reads."""
        return sum(self.used_pages) * self.page_size

    @property
    def filled_bytes(self) -> int:
        """Bytes of the filled gaps."""
        return self.filled_pages * self.page_size

    @property
    def data_bytes(self) -> int:
        """Bytes of the used pages but those of filled gaps: what QEMU wrote."""
        return self.used_bytes - self.filled_bytes

    def of_data(self, data_bytes: int) -> Self:
        """Return it with as many filled pages as are used beyond ``data_bytes``."""
        filled = (self.used_bytes - min(max(data_bytes, 0), self.used_bytes)) // self.page_size
        return dataclasses.replace(self, filled_pages=filled)


def validate_stream(fd: int, offset: int, size: int) -> Contents:
    """Read the stream whole: structure, bitmaps, JSON description. Raises InvalidImage."""
    stream = mapped_ram.read(fd, offset, size)
    description.check(fd, stream)
    used = tuple(bitmaps.used_pages(fd, block) for block in stream.blocks)
    return Contents(stream, used)


def validate_written(fd: int, offset: int, size: int) -> Contents:
    """Read a stream that QEMU has just written, as ``validate_stream`` does, with its digest.

    Memory that QEMU had under an alias gets its own name in it, which every QEMU has it by. Raises
    InvalidImage, OSError.
    """
    contents = validate_stream(fd, offset, size)
    if stream_parts.name_back(fd, contents.stream):
        contents = validate_stream(fd, offset, size)
    return dataclasses.replace(contents, structure_digest=structure.digest(fd, contents.stream))
