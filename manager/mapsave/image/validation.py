"""What a stream holds: read whole, structure, bitmaps and description."""

import dataclasses

from mapsave.image import bitmaps, description, mapped_ram
from mapsave.image.mapped_ram import Stream


@dataclasses.dataclass(frozen=True)
class Contents:
    """What validation found: the stream, and how many pages of each RAM block are in the file.

    ``structure_digest`` is there where QEMU has just written the stream.
    """

    stream: Stream
    used_pages: tuple[int, ...]
    structure_digest: str | None = None

    @property
    def data_bytes(self) -> int:
        """Bytes of RAM that are in the file: used pages times page size."""
        return sum(
            used * block.page_size
            for used, block in zip(self.used_pages, self.stream.blocks, strict=True)
        )


def validate_stream(fd: int, offset: int, size: int) -> Contents:
    """Read the stream whole: structure, bitmaps, JSON description. Raises InvalidImage."""
    stream = mapped_ram.read(fd, offset, size)
    description.check(fd, stream)
    used = tuple(bitmaps.used_pages(fd, block) for block in stream.blocks)
    return Contents(stream, used)
