"""Take a mapped-ram stream apart, and put one together of such parts.

A stream is its head (header, configuration, beginning of the RAM section), then for each RAM block
a record, a bitmap and the pages, then its tail (end of the RAM section, devices, description). All
offsets in it are absolute, so parts that are put together elsewhere, or with other blocks, get new
records. Bitmaps and pages may be many GiB: they are never parts, but copied from file to file.
"""

import dataclasses
import os
from collections.abc import Sequence

from mapsave import errors, units
from mapsave.image import bitmaps, syscalls
from mapsave.image import stream_format as fmt
from mapsave.image.mapped_ram import RamBlock, Stream

_PIECE = 64 * units.MIB  # bytes that sendfile(2) copies in one call
_RECORD = 1 + fmt.U64.size + fmt.MAPPED_RAM_HEADER.size  # bytes of a record without the name


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a stream: ``head`` without the 8 bytes of the RAM's size, which end it."""

    head: bytes
    blocks: tuple[RamBlock, ...]
    tail: bytes


@dataclasses.dataclass(frozen=True)
class Layout:
    """A stream put together: what is written at which offset of the file, in bytes.

    ``blocks`` are where bitmaps and pages belong, ``end`` is the length of the file.
    """

    pieces: tuple[tuple[int, bytes], ...]
    blocks: tuple[RamBlock, ...]
    end: int


def take_apart(fd: int, stream: Stream) -> Parts:
    """Return the parts of a stream: some hundred KiB for most guests, the devices' state at most.

    Raises TruncatedImage where the file has shrunk since it was read, OSError.
    """
    first, last = stream.blocks[0], stream.blocks[-1]
    length = first.bitmap_offset - _RECORD - len(first.name.encode()) - stream.offset
    head = _read(fd, stream.offset, length - fmt.U64.size)
    return Parts(head, stream.blocks, _read(fd, last.end, stream.end - last.end))


def put_together(parts: Parts, offset: int) -> Layout:
    """Lay a stream out that begins at ``offset``; of ``parts.blocks`` only name and sizes count."""
    size = sum(block.used_length for block in parts.blocks)
    data = parts.head + fmt.U64.pack(size | fmt.RAM_FLAG_MEM_SIZE)
    pieces, blocks = [], []
    for each in parts.blocks:
        record = fmt.counted(each.name) + fmt.U64.pack(each.used_length)
        block = placed(each.name, each.used_length, each.page_size, offset + len(data + record))
        pieces.append((offset, data + record + mapped_ram_header(block)))
        blocks.append(block)
        offset, data = block.end, b""
    pieces.append((offset, parts.tail))
    return Layout(tuple(pieces), tuple(blocks), offset + len(parts.tail))


def placed(name: str, used_length: int, page_size: int, header: int) -> RamBlock:
    """Return a RAM block as QEMU places it: its mapped-ram header at ``header``, then the bitmap.

    The pages begin at the next multiple of 1 MiB (``mapped_ram_setup_ramblock`` in QEMU 10.0).
    """
    bitmap = header + fmt.MAPPED_RAM_HEADER.size
    length = fmt.bitmap_bytes(used_length, page_size)
    pages = units.round_up(bitmap + length, fmt.PAGES_ALIGNMENT)
    return RamBlock(name, used_length, page_size, bitmap, length, pages)


def mapped_ram_header(block: RamBlock) -> bytes:
    """Return the 28 bytes that say where bitmap and pages of a block are."""
    return fmt.MAPPED_RAM_HEADER.pack(
        fmt.MAPPED_RAM_VERSION, block.page_size, block.bitmap_offset, block.pages_offset
    )


def name_back(fd: int, stream: Stream) -> bool:
    """Give blocks that have an alias in the stream their names, on stable storage.

    Returns whether there was one. Raises OSError.
    """
    renamed = [block for block in stream.blocks if block.has_alias]
    for block in renamed:
        name = block.name.encode()
        syscalls.write_all(fd, name, block.bitmap_offset - _RECORD + 1 - len(name))
    if renamed:
        os.fsync(fd)
    return bool(renamed)


def write(fd: int, layout: Layout) -> None:
    """Write all but bitmaps and pages, and give the file its length. Raises OSError."""
    os.ftruncate(fd, layout.end)
    for offset, data in layout.pieces:
        syscalls.write_all(fd, data, offset)


def copy_block(source: int, block: RamBlock, target: int, to: RamBlock) -> None:
    """Copy the bitmap of a block, and the pages that are used, from file to file.

    ``target`` is a sparse file, and moves. Raises TruncatedImage, OSError.
    """
    for first, bits in bitmaps.chunks(source, block):
        syscalls.write_all(target, bitmaps.to_words(bits), to.bitmap_offset + first // 8)
    for first, end in bitmaps.set_runs(source, block):
        start, length = first * block.page_size, (end - first) * block.page_size
        os.lseek(target, to.pages_offset + start, os.SEEK_SET)
        at, stop = block.pages_offset + start, block.pages_offset + start + length
        while at < stop:
            copied = os.sendfile(target, source, at, min(_PIECE, stop - at))
            if not copied:
                raise errors.TruncatedImage(f"the pages of RAM block {block.name!r} are cut short")
            at += copied


def mark_used(fd: int, block: RamBlock, runs: Sequence[tuple[int, int]]) -> None:
    """Set the bits of ``runs`` of pages (first, number) in an empty bitmap. Raises OSError."""
    for first, pages in runs:
        begin, end = first // 64 * 64, units.round_up(first + pages, 64)
        words = os.pread(fd, (end - begin) // 8, block.bitmap_offset + begin // 8)
        bits = bitmaps.from_words(words)
        bits[first - begin : first - begin + pages] = 1
        syscalls.write_all(fd, bitmaps.to_words(bits), block.bitmap_offset + begin // 8)


def _read(fd: int, offset: int, length: int) -> bytes:
    pieces = []
    while length:
        data = os.pread(fd, length, offset)
        if not data:
            raise errors.TruncatedImage(f"the stream is cut short at offset {offset}")
        pieces.append(data)
        offset, length = offset + len(data), length - len(data)
    return b"".join(pieces)
