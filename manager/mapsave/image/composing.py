"""Compose a mapped-ram image of a legacy stream and copies of the guest's shared memory.

In a mapped-ram image the pages of a RAM block lie as in a RAM file, so a block that is a file on
the same file system is put into the image by a reflink: its bits are set where the file has data.
The other blocks are in the stream, page by page, and all the rest is byte for byte as QEMU has
written it. The result is what QEMU would have written itself.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping

from mapsave import errors
from mapsave.image import bitmaps, holes, reflink, stream_parts, syscalls
from mapsave.image import stream_format as fmt
from mapsave.image.legacy_stream import LegacyStream, Pages
from mapsave.image.mapped_ram import RamBlock


@dataclasses.dataclass(frozen=True)
class Composed:
    """How many bytes of RAM the image shares with the copies, and how many were written to it."""

    shared_bytes: int
    written_bytes: int


Share = Callable[[int, RamBlock, int], object]


def share_file(fd: int, block: RamBlock, copy: int) -> None:
    """Share a block's copy with the image. Raises OSError."""
    reflink.share(copy, 0, block.used_length, fd, block.pages_offset)


def compose(
    fd: int,
    offset: int,
    legacy: int,
    stream: LegacyStream,
    copies: Mapping[str, int],
    share: Share = share_file,
) -> Composed:
    """Write the image's stream at ``offset`` of ``fd``, a file with nothing after that.

    ``legacy`` is the file of ``stream``; ``copies`` are files with the shared blocks, by name. The
    stream's first bytes are written last: before that no one takes it for one. ``share`` puts a
    block's copy into the image. Raises InvalidImage where blocks of the stream and copies do not
    fit together, OSError.
    """
    _check(stream, copies)
    layout = stream_parts.put_together(stream.parts, offset)
    (first, head), *others = layout.pieces
    begin, rest = head[: fmt.HEADER.size], head[fmt.HEADER.size :]
    pieces = ((first + len(begin), rest), *others)
    stream_parts.write(fd, dataclasses.replace(layout, pieces=pieces))
    shared = written = 0
    for pages, block in zip(stream.pages, layout.blocks, strict=True):
        if (copy := copies.get(block.name)) is not None:
            share(fd, block, copy)
            shared += _note(fd, block)
        else:
            written += _copy(fd, block, legacy, pages)
    syscalls.write_all(fd, begin, first)
    return Composed(shared, written)


def _check(stream: LegacyStream, copies: Mapping[str, int]) -> None:
    """See that each block is in the stream, or is one of ``copies``, whole."""
    for pages in stream.pages:
        copy = copies.get(pages.name)
        if pages.is_there == (copy is not None):
            problem = (
                "in the stream, though it is shared" if pages.is_there else "not in the stream"
            )
            raise errors.InvalidImage(f"RAM block {pages.name!r} is {problem}")
        if copy is not None and os.fstat(copy).st_size != pages.used_length:
            raise errors.InvalidImage(
                f"RAM block {pages.name!r} has {pages.used_length} bytes in the stream, but "
                f"{os.fstat(copy).st_size} in its file"
            )
    if missing := set(copies) - {pages.name for pages in stream.pages}:
        raise errors.InvalidImage(f"RAM block {min(missing)!r} is not in the stream")


def _note(fd: int, block: RamBlock) -> int:
    """Set the bits of the pages that have data; return how many bytes they are."""
    bits = bitmaps.empty(block.bitmap_bytes * 8)
    place, size = block.pages_offset, block.page_size
    for start, end in holes.extents(fd, place, block.end):
        bits[(start - place) // size : -(-(end - place) // size)] = 1
    syscalls.write_all(fd, bitmaps.to_words(bits), block.bitmap_offset)
    return bits.count() * size


def _copy(fd: int, block: RamBlock, legacy: int, pages: Pages) -> int:
    """Write the pages that the stream has, and set their bits; return how many bytes they are."""
    bits = bitmaps.empty(block.bitmap_bytes * 8)
    for page, at in pages.places.items():
        data = os.pread(legacy, block.page_size, at)
        syscalls.write_all(fd, data, block.pages_offset + page * block.page_size)
        bits[page] = 1
    syscalls.write_all(fd, bitmaps.to_words(bits), block.bitmap_offset)
    return len(pages.places) * block.page_size
