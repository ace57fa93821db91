"""Read QEMU's migration stream in a mapped-ram file, as hostile input.

Every length, offset, count and name is checked against the file before it is used, and no
allocation follows an unchecked number. The cost is bounded by the number of RAM blocks, the bytes
of their bitmaps and the device state; pages are never read. The layout is QEMU's
(``docs/devel/migration/mapped-ram.rst``, ``migration/ram.c``, ``migration/savevm.c`` of 10.0):
header, configuration, a RAM section whose blocks each bring bitmap and pages, iterations, device
sections, and a JSON description that ends with the file.
"""

import dataclasses
import uuid as uuids

from mapsave import errors, instant_names, units
from mapsave.image import page_size as page_sizes
from mapsave.image import sections
from mapsave.image import stream_format as fmt
from mapsave.image.cursor import Cursor

MAX_RAM = 64 * units.TIB  # x86 hosts address no more; its bitmaps have 2 GiB
MAX_BLOCKS = 16384  # a guest has some dozens: RAM, DIMMs, ROMs
MAX_SECTIONS = 65536  # four for each CPU, some dozens more
MAX_ITERATIONS = 1 << 24  # QEMU ends one after 50 ms (``ram_save_iterate``): nine days of saving
MAX_CAPABILITIES = 64
# Bytes of device state that look like a footer: a good image has hardly one.
MAX_FALSE_FOOTERS = 1 << 18
PAGE_BITS = range(10, 17)
_PARTS = 4096  # iterations that are looked at in one go


@dataclasses.dataclass(frozen=True)
class RamBlock:
    """One RAM block: where its bitmap and pages lie. Offsets and lengths in bytes of the file.

    With ``has_alias`` the stream has the block under another name (``instant_names.py``).
    """

    name: str
    used_length: int
    page_size: int
    bitmap_offset: int
    bitmap_bytes: int
    pages_offset: int
    has_alias: bool = False

    @property
    def pages(self) -> int:
        return -(-self.used_length // self.page_size)

    @property
    def end(self) -> int:
        """The offset after the block's last page, where the next record begins."""
        return self.pages_offset + self.used_length


@dataclasses.dataclass(frozen=True)
class DeviceSection:
    """One device's state: ``length`` bytes from ``offset``, header and footer not counted."""

    name: str
    instance: int
    version: int
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class Stream:
    """QEMU's stream from ``offset`` to ``end``, both bytes of the file."""

    offset: int
    machine: str
    capabilities: tuple[str, ...]
    uuid: uuids.UUID | None
    page_bits: int | None
    blocks: tuple[RamBlock, ...]
    iterations: int
    devices: tuple[DeviceSection, ...]
    description_offset: int
    description_length: int
    end: int

    @property
    def ram_bytes(self) -> int:
        """The sum of the RAM blocks' lengths, ROMs included."""
        return sum(block.used_length for block in self.blocks)


def read(fd: int, offset: int, size: int) -> Stream:
    """Read the stream at ``offset`` of a file of ``size`` bytes.

    Raises NotAnImage where no QEMU stream begins there, TruncatedImage where the file ends too
    early, UnsupportedImage for a stream that is not mapped-ram, InvalidImage for anything else.
    """
    return Reader(Cursor(fd, offset, size)).read()


def read_devices(fd: int, size: int) -> tuple[DeviceSection, ...]:
    """Read what QEMU wrote by ``xen-save-devices-state``: a stream of devices alone.

    Raises as ``read`` does.
    """
    return Reader(Cursor(fd, 0, size)).read_devices()


class Reader:
    """The walk through one stream; its methods follow the order of the bytes.

    ``legacy_stream`` reads streams in which RAM blocks and pages are otherwise.
    """

    def __init__(self, cursor: Cursor) -> None:
        self._at = cursor
        self._start = cursor.offset
        self._machine = ""
        self._capabilities: tuple[str, ...] = ()
        self._uuid: uuids.UUID | None = None
        self._page_bits: int | None = None
        self._page_size: int | None = None  # of the RAM blocks
        self._blocks: list[RamBlock] = []
        self._devices: list[DeviceSection] = []
        self._iterations = 0
        self._ram_section: int | None = None
        self._ram_ended = False
        self._seen: set[int] = set()  # section ids
        self._false_footers = 0

    def read(self) -> Stream:
        self._header()
        self._configuration()
        self._sections()
        description_offset, description_length = self._description()
        if not self._ram_ended:
            raise errors.InvalidImage("the stream has no complete RAM section")
        return Stream(
            offset=self._start,
            machine=self._machine,
            capabilities=self._capabilities,
            uuid=self._uuid,
            page_bits=self._page_bits,
            blocks=tuple(self._blocks),
            iterations=self._iterations,
            devices=tuple(self._devices),
            description_offset=description_offset,
            description_length=description_length,
            end=self._at.offset,
        )

    def read_devices(self) -> tuple[DeviceSection, ...]:
        self._header()
        self._sections()
        return tuple(self._devices)

    def _header(self) -> None:
        magic, version = fmt.HEADER.unpack(self._at.take(fmt.HEADER.size, "stream header"))
        if magic != fmt.MAGIC:
            raise errors.NotAnImage(f"no QEMU stream at offset {self._start}")
        if version != fmt.VERSION:
            raise errors.UnsupportedImage(f"QEMU stream of version {version}, expected 3")

    def _configuration(self) -> None:
        if self._at.u8("configuration") != fmt.CONFIGURATION:
            raise errors.InvalidImage(f"no configuration section at offset {self._at.offset - 1}")
        length = self._at.u32("machine name length")
        if not 0 < length <= 255:
            raise errors.InvalidImage(f"machine name of {length} bytes")
        self._machine = self._at.text(length, "machine name")
        known: set[str] = set()
        while self._at.peek_u8("section") == fmt.SUBSECTION:
            self._at.u8("subsection")
            name = self._at.text(self._at.u8("subsection name length"), "subsection name")
            self._at.u32("subsection version")
            if name in known:
                raise errors.InvalidImage(f"subsection {name!r} appears twice in the configuration")
            known.add(name)
            if name == fmt.SUBSECTION_CAPABILITIES:
                self._read_capabilities()
            elif name == fmt.SUBSECTION_PAGE_BITS:
                self._page_bits = self._at.u32("target page bits")
                if self._page_bits not in PAGE_BITS:
                    raise errors.InvalidImage(f"pages of 2^{self._page_bits} bytes")
            elif name == fmt.SUBSECTION_UUID:
                self._uuid = uuids.UUID(bytes=self._at.take(16, "guest uuid"))
            else:
                raise errors.UnsupportedImage(f"configuration has an unknown subsection {name!r}")

    def _read_capabilities(self) -> None:
        count = self._at.u32("capability count")
        if count > MAX_CAPABILITIES:
            raise errors.InvalidImage(f"{count} capabilities in the configuration")
        lengths = (self._at.u8("capability length") for _ in range(count))
        self._capabilities = tuple(self._at.text(each, "capability") for each in lengths)

    def _sections(self) -> None:
        for _ in range(MAX_SECTIONS):
            start = self._at.offset
            kind = self._at.u8("section type")
            if kind == fmt.EOF:
                return
            if kind == fmt.SECTION_START:
                self._section_start()
            elif kind == fmt.SECTION_PART:
                self._iteration()
            elif kind == fmt.SECTION_END:
                self._ram_end()
            elif kind == fmt.SECTION_FULL:
                self._device()
            elif kind == fmt.COMMAND:
                self._command()
            else:
                raise errors.InvalidImage(f"unknown section type 0x{kind:02x} at offset {start}")
        raise errors.InvalidImage(f"more than {MAX_SECTIONS} sections")

    def _section_start(self) -> None:
        start = self._at.offset - 1
        section, name, _, version = self._section_head()
        if name != fmt.RAM_SECTION:
            raise errors.UnsupportedImage(
                f"iterative section {name!r} at offset {start}: only RAM is understood",
                hint="the guest has a device that QEMU saves in iterations (VFIO for example)",
            )
        if self._ram_section is not None or self._ram_ended:
            raise errors.InvalidImage(f"a second RAM section at offset {start}")
        if version != fmt.RAM_VERSION:
            raise errors.UnsupportedImage(f"RAM section of version {version}, expected 4")
        self._ram_section = section
        self._ram_setup()
        self._end_of_part(section)

    def _section_head(self) -> tuple[int, str, int, int]:
        """Return (section id, name, instance, version) after the type byte."""
        section = self._at.u32("section id")
        self._seen.add(section)
        name = self._at.text(self._at.u8("section name length"), "section name")
        return section, name, self._at.u32("section instance"), self._at.u32("section version")

    def _ram_setup(self) -> None:
        word = self._at.u64("RAM size")
        if word & fmt.RAM_FLAG_MASK != fmt.RAM_FLAG_MEM_SIZE:
            raise errors.InvalidImage(f"RAM section begins with flags 0x{word & 0xFFF:x}")
        left = word & ~fmt.RAM_FLAG_MASK
        self._check_capabilities()
        if left > MAX_RAM:
            raise errors.UnsupportedImage(f"{left} bytes of RAM, more than {MAX_RAM}")
        names: set[str] = set()
        while left:
            block = self._ram_block()
            if block.name in names:
                raise errors.InvalidImage(f"RAM block {block.name!r} appears twice in the stream")
            if block.used_length > left:
                raise errors.InvalidImage(f"RAM block {block.name!r} exceeds the RAM size")
            names.add(block.name)
            left -= block.used_length
            self._blocks.append(block)
            if len(self._blocks) > MAX_BLOCKS:
                raise errors.InvalidImage(f"more than {MAX_BLOCKS} RAM blocks")
        if not self._blocks:
            raise errors.InvalidImage("the stream has no RAM blocks")

    def _check_capabilities(self) -> None:
        if fmt.CAPABILITY_MAPPED_RAM not in self._capabilities:
            raise errors.UnsupportedImage(
                "the stream was not saved with mapped-ram",
                hint="QEMU itself can load it: -incoming file:PATH,offset=M",
            )
        if fmt.CAPABILITY_IGNORE_SHARED in self._capabilities:
            raise errors.UnsupportedImage(
                "the stream was saved with x-ignore-shared: it lacks the guest's shared memory"
            )

    def _ram_block(self) -> RamBlock:
        start = self._at.offset
        name = self._at.text(self._at.u8("RAM block name length"), "RAM block name")
        used_length = self._at.u64("RAM block length")
        head = self._at.take(fmt.MAPPED_RAM_HEADER.size, "mapped-ram header")
        version, page_size, bitmap_offset, pages_offset = fmt.MAPPED_RAM_HEADER.unpack(head)
        where = f"RAM block {name!r} at offset {start}"
        if version != fmt.MAPPED_RAM_VERSION:
            raise errors.UnsupportedImage(f"{where}: mapped-ram version {version}, expected 1")
        if page_size.bit_count() != 1 or page_size.bit_length() - 1 not in PAGE_BITS:
            raise errors.InvalidImage(f"{where}: page size {page_size}")
        if self._page_bits is not None and page_size != 1 << self._page_bits:
            raise errors.InvalidImage(
                f"{where}: page size {page_size}, but the configuration has 2^{self._page_bits}"
            )
        wanted = self._page_size or page_sizes.of_machine(self._machine) or page_size
        if page_size != wanted:
            raise errors.InvalidImage(
                f"{where}: page size {page_size}, expected {wanted} (machine {self._machine})"
            )
        self._page_size = page_size
        if not used_length or used_length % page_size:
            raise errors.InvalidImage(f"{where}: length {used_length}")
        if used_length > self._at.size:
            raise errors.TruncatedImage(
                f"{where}: {used_length} bytes of pages in a file of {self._at.size}"
            )
        length = fmt.bitmap_bytes(used_length, page_size)
        if bitmap_offset != self._at.offset:
            raise errors.InvalidImage(
                f"{where}: bitmap at {bitmap_offset}, expected {self._at.offset}"
            )
        bitmap_end = bitmap_offset + length
        if pages_offset % page_size or not 0 <= pages_offset - bitmap_end < fmt.PAGES_ALIGNMENT:
            raise errors.InvalidImage(
                f"{where}: pages at {pages_offset}, bitmap ends at {bitmap_end}"
            )
        self._at.skip_to(pages_offset + used_length, f"pages of RAM block {name!r}")
        return RamBlock(
            name=instant_names.original(name),
            used_length=used_length,
            page_size=page_size,
            bitmap_offset=bitmap_offset,
            bitmap_bytes=length,
            pages_offset=pages_offset,
            has_alias=name != instant_names.original(name),
        )

    def _iteration(self) -> None:
        """Skip this part of the RAM section and all that follow it directly.

        A terabyte saved to a slow disk has hundreds of thousands, 18 bytes each.
        """
        section = self._started()
        self._end_of_part(section)
        part = sections.ram_part(section)
        count, full = 1, _PARTS
        while full == _PARTS:
            data = self._at.peek_up_to(_PARTS * len(part))
            full = 0
            while data.startswith(part, full * len(part)):
                full += 1
            self._at.seek(self._at.offset + full * len(part))
            count += full
        self._iterations += count
        if self._iterations > MAX_ITERATIONS:
            raise errors.InvalidImage(f"more than {MAX_ITERATIONS} iterations")

    def _ram_end(self) -> None:
        self._end_of_part(self._started())
        self._ram_section, self._ram_ended = None, True

    def _started(self) -> int:
        section = self._at.u32("section id")
        if section != self._ram_section:
            raise errors.InvalidImage(
                f"section {section} at offset {self._at.offset - 5} was never started"
            )
        return section

    def _end_of_part(self, section: int) -> None:
        """Pages are never in the stream, so every part holds just its end mark, then the footer."""
        flags = self._at.u64("RAM end mark")
        if flags != fmt.RAM_FLAG_EOS:
            raise errors.InvalidImage(
                f"RAM flags 0x{flags:x} at offset {self._at.offset - 8}, expected the end mark"
            )
        if self._at.take(5, "section footer") != sections.footer(section):
            raise errors.InvalidImage(f"wrong section footer at offset {self._at.offset - 5}")

    def _command(self) -> None:
        command, length = fmt.COMMAND_HEAD.unpack(self._at.take(fmt.COMMAND_HEAD.size, "command"))
        if command != fmt.COMMAND_SWITCHOVER_START or length:
            raise errors.UnsupportedImage(f"stream command 0x{command:x} is not understood")

    def _device(self) -> None:
        """A device's state has no length; it ends at its footer followed by a possible section."""
        section, name, instance, version = self._section_head()
        start = self._at.offset
        footer = sections.footer(section)
        what = f"state of device {name!r}"
        while True:
            end = self._at.find(footer, what)
            self._at.skip_to(end + len(footer), what)
            if sections.may_follow_device(self._at, self._seen, self._ram_section):
                break
            self._false_footers += 1
            if self._false_footers > MAX_FALSE_FOOTERS:
                raise errors.UnsupportedImage(f"{what} has too many bytes like its footer")
            self._at.seek(end + 1)
        self._devices.append(DeviceSection(name, instance, version, start, end - start))

    def _description(self) -> tuple[int, int]:
        """Return offset and length of the JSON description; it must end with the file."""
        if not self._at.remaining:
            return self._at.offset, 0  # a machine with suppress-vmdesc writes none
        kind = self._at.u8("description type")
        if kind != fmt.VMDESCRIPTION:
            raise errors.InvalidImage(
                f"0x{kind:02x} at offset {self._at.offset - 1}, expected the JSON description"
            )
        length = self._at.u32("description length")
        offset = self._at.offset
        self._at.skip_to(offset + length, "JSON description")
        if self._at.remaining:
            raise errors.InvalidImage(f"{self._at.remaining} bytes after the JSON description")
        return offset, length
