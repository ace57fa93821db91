"""Read the migration stream that QEMU writes without mapped-ram, as hostile input.

With ``x-ignore-shared`` alone it lacks the guest's shared memory, so it is short: the states of the
devices, and the RAM blocks that are not shared files. There each page is a record of its own, after
the set-up of the RAM section or in one of its parts (QEMU 10.0, ``ram_save_page`` and
``ram_save_setup`` in ``migration/ram.c``): the page's offset in its block with flags in the low
bits, the block's name unless it is that of the record before, and the page, or one byte where it is
zeros. The rest is as ``mapped_ram`` reads it.
"""

import dataclasses

from mapsave import errors
from mapsave.image import page_size as page_sizes
from mapsave.image import sections, stream_parts
from mapsave.image import stream_format as fmt
from mapsave.image.cursor import Cursor
from mapsave.image.mapped_ram import RamBlock, Reader

_KINDS = fmt.RAM_FLAG_PAGE | fmt.RAM_FLAG_ZERO
_KNOWN_FLAGS = _KINDS | fmt.RAM_FLAG_CONTINUE


@dataclasses.dataclass
class Pages:
    """What the stream has of a RAM block of ``used_length`` bytes.

    ``places`` are the offsets in the file of the pages that are no zeros, by the page's number.
    ``is_there``: there is a record of it, be it of zeros; a shared block has none.
    """

    name: str
    used_length: int
    page_size: int
    places: dict[int, int] = dataclasses.field(default_factory=dict)
    is_there: bool = False


@dataclasses.dataclass(frozen=True)
class LegacyStream:
    """A stream, with the parts of the mapped-ram stream of the same guest (``stream_parts.py``).

    ``pages`` has each RAM block of the parts, in the same order.
    """

    machine: str
    parts: stream_parts.Parts
    pages: tuple[Pages, ...]


def read(fd: int, size: int, architecture: str) -> LegacyStream:
    """Read the stream that a file of ``size`` bytes consists of.

    ``architecture``: of the QEMU that wrote it, as ``query-target`` names it. Raises NotAnImage,
    TruncatedImage, UnsupportedImage and InvalidImage, as ``mapped_ram.read``; UnsupportedImage as
    well where it was not saved with x-ignore-shared alone.
    """
    return _LegacyReader(Cursor(fd, 0, size), architecture).read_legacy()


class _LegacyReader(Reader):
    """The walk through such a stream; what a mapped-ram stream has as well is kept in pieces.

    ``_kept`` are the parts of the file that the other stream has too, after its RAM blocks.
    """

    def __init__(self, cursor: Cursor, architecture: str) -> None:
        super().__init__(cursor)
        self._architecture = architecture
        self._head = b""
        self._capabilities_at = (0, 0)
        self._kept: list[bytes] = []
        self._pages: list[Pages] = []
        self._by_name: dict[str, Pages] = {}
        self._latest: Pages | None = None  # whose page the last record was

    def read_legacy(self) -> LegacyStream:
        stream = self.read()
        return LegacyStream(
            stream.machine,
            stream_parts.Parts(self._head, stream.blocks, b"".join(self._kept)),
            tuple(self._pages),
        )

    def _read_capabilities(self) -> None:
        start = self._at.offset
        super()._read_capabilities()
        self._capabilities_at = (start, self._at.offset)

    def _check_capabilities(self) -> None:
        if self._capabilities != (fmt.CAPABILITY_IGNORE_SHARED,):
            names = ", ".join(self._capabilities) or "no capability"
            raise errors.UnsupportedImage(
                f"the stream was saved with {names}, expected {fmt.CAPABILITY_IGNORE_SHARED}"
            )

    def _ram_setup(self) -> None:
        """Read the names and lengths of the blocks; what comes before them is the head."""
        end = self._at.offset
        super()._ram_setup()
        start, after = self._capabilities_at
        capabilities = fmt.U32.pack(1) + fmt.counted(fmt.CAPABILITY_MAPPED_RAM)
        before = self._bytes(self._start, start, "configuration")
        self._head = before + capabilities + self._bytes(after, end, "RAM section")

    def _ram_block(self) -> RamBlock:
        start = self._at.offset
        name = self._at.text(self._at.u8("RAM block name length"), "RAM block name")
        used_length = self._at.u64("RAM block length")
        self._at.u64("RAM block address")
        size = page_sizes.of_target(self._architecture, self._page_bits)
        if size is None:
            raise errors.UnsupportedImage(f"the page size of {self._architecture} is not known")
        if not used_length or used_length % size:
            raise errors.InvalidImage(f"RAM block {name!r} at offset {start}: length {used_length}")
        pages = Pages(name, used_length, size)
        self._pages.append(pages)
        self._by_name[name] = pages
        return RamBlock(name, used_length, size, 0, 0, 0)

    def _end_of_part(self, section: int) -> None:
        """Read the records of pages, then the end mark and the footer."""
        while (word := self._at.u64("RAM record")) & fmt.RAM_FLAG_MASK != fmt.RAM_FLAG_EOS:
            self._record(word)
        if word != fmt.RAM_FLAG_EOS:
            raise errors.InvalidImage(f"RAM end mark 0x{word:x} at offset {self._at.offset - 8}")
        if self._at.take(5, "section footer") != sections.footer(section):
            raise errors.InvalidImage(f"wrong section footer at offset {self._at.offset - 5}")
        if not self._kept:  # of the set-up
            self._kept.append(fmt.U64.pack(fmt.RAM_FLAG_EOS) + sections.footer(section))

    def _record(self, word: int) -> None:
        start = self._at.offset - fmt.U64.size
        flags, at = word & fmt.RAM_FLAG_MASK, word & ~fmt.RAM_FLAG_MASK
        if flags & ~_KNOWN_FLAGS or (flags & _KINDS).bit_count() != 1:
            raise errors.UnsupportedImage(f"RAM flags 0x{flags:x} at offset {start}")
        if not flags & fmt.RAM_FLAG_CONTINUE:
            name = self._at.text(self._at.u8("RAM block name length"), "RAM block name")
            self._latest = self._by_name.get(name)
        pages = self._latest
        if pages is None or at % pages.page_size or at >= pages.used_length:
            raise errors.InvalidImage(f"the page at offset {start} is in none of the RAM blocks")
        pages.is_there = True
        page = at // pages.page_size
        if flags & fmt.RAM_FLAG_ZERO:
            if self._at.u8("zero page"):
                raise errors.UnsupportedImage(f"the page at offset {start} is filled with a byte")
            pages.places.pop(page, None)
            return
        pages.places[page] = self._at.offset
        self._at.skip_to(self._at.offset + pages.page_size, "page")

    def _iteration(self) -> None:
        self._end_of_part(self._started())
        self._iterations += 1

    def _sections(self) -> None:
        """Keep the bytes of all that is no part of the RAM section."""
        super()._sections()
        self._kept.append(bytes([fmt.EOF]))

    def _ram_end(self) -> None:
        section = self._ram_section
        super()._ram_end()
        assert section is not None
        self._kept.append(sections.ram_part(section, fmt.SECTION_END))

    def _command(self) -> None:
        start = self._at.offset - 1
        super()._command()
        self._keep(start, "command")

    def _device(self) -> None:
        start = self._at.offset - 1
        super()._device()
        self._keep(start, "device")

    def _description(self) -> tuple[int, int]:
        start = self._at.offset
        found = super()._description()
        self._keep(start, "JSON description")
        return found

    def _keep(self, start: int, what: str) -> None:
        """Keep the bytes from ``start`` on; those before the RAM section are in the head."""
        if self._head:
            self._kept.append(self._bytes(start, self._at.offset, what))

    def _bytes(self, start: int, end: int, what: str) -> bytes:
        """Return a part of the file, which was read before, whatever its length."""
        here = self._at.offset
        self._at.seek(start)
        data = self._at.take_long(end - start, what)
        self._at.seek(here)
        return data
