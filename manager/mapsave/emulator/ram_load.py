"""Loading RAM: blocks, bitmaps and pages of a mapped-ram file, or the pages of a plain stream.

As in QEMU pages whose bit is clear are not touched: RAM that was not zero stays as it was.

Sources: QEMU's ``migration/ram.c`` and ``migration/multifd.c`` of 10.0, observed.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

from mapsave.emulator import faults, stream
from mapsave.emulator.channels import Channels
from mapsave.emulator.faults import LoadError
from mapsave.emulator.memory import GuestMemory
from mapsave.emulator.options import PAGE
from mapsave.emulator.stream_reader import StreamReader
from mapsave.emulator.versions import Version
from mapsave.image import bitmaps
from mapsave.image import stream_format as fmt

if TYPE_CHECKING:
    from bitarray import bitarray

_READ = 1 << 20  # bytes a channel reads in one go
_MAX_BITMAP = 1 << 30  # bytes; larger ones are not believed
Read = tuple[int, memoryview]  # file offset, and where the bytes go


_ENDED = LoadError(errno.EIO)
_ADDRESS_ENDED = LoadError(errno.EIO, reports=["Getting RAM address failed"])


def invalid(*reports: str) -> LoadError:
    """Return the error of a RAM section that QEMU does not take."""
    return LoadError(errno.EINVAL, reports=reports)


class RamLoad:
    """RAM of one restore. Blocks of other machine types that are not RAM land in ``aside``."""

    def __init__(
        self,
        memory: GuestMemory,
        reader: StreamReader,
        version: Version,
        *,
        mapped: bool,
        ignore_shared: bool,
    ) -> None:
        self._version = version
        self._memory = memory
        self._reader = reader
        self._mapped = mapped
        self._ignore_shared = ignore_shared
        self._has_addresses = ignore_shared and (not mapped or version.knows_left_out)
        self._block: memoryview | None = None
        self._loaded_ram = False
        self.foreign = False  # the image is of another machine type
        self.aside: dict[str, memoryview] = {}
        self._channels: Channels[Read] | None = None

    def use_channels(self, fds: list[int]) -> None:
        """Read pages by multifd channels on ``fds``."""
        self._channels = Channels(fds, _read_job)

    def close(self) -> None:
        if self._channels is not None:
            self._channels.close()

    def section(self, name: str, section_id: int) -> None:
        """Load one RAM section up to its end mark. Raises the LoadError ``name``."""
        try:
            self._section()
        except LoadError as error:
            raise self._version.load_error(name, error, id=section_id) from None

    def _section(self) -> None:
        while True:
            word = self._reader.u64()
            self._reader.require(_ADDRESS_ENDED)
            address, flags = word & ~fmt.RAM_FLAG_MASK, word & fmt.RAM_FLAG_MASK
            if flags == fmt.RAM_FLAG_EOS:
                if self._channels is not None:
                    self._channels.sync()
                return
            if flags & fmt.RAM_FLAG_MEM_SIZE:
                self._blocks(address)
            elif not self._mapped and flags & (stream.RAM_FLAG_ZERO | stream.RAM_FLAG_PAGE):
                self._page(address, flags)
                self._reader.require(_ENDED)
            else:
                raise invalid(f"Unexpected RAM flags: {flags}")

    def _blocks(self, total: int) -> None:
        while total > 0:
            name = self._reader.counted()
            length = self._reader.u64()
            block = self._find(name, length)
            if self._has_addresses:
                self._check_address(name, self._reader.u64())
            if self._mapped:
                self._mapped_block(name, length, block)
            elif length != len(block):
                raise invalid(
                    f"Size mismatch: {name}: 0x{length:x} != 0x{len(block):x}: Invalid argument"
                )
            if self._reader.failed:
                raise invalid()
            total -= length

    def _check_address(self, name: str, address: int) -> None:
        """Refuse shared memory that the guest has elsewhere: here it is at 0."""
        is_left_out = self._ignore_shared and self._memory.is_shared
        if name == self._memory.block and is_left_out and address:
            raise invalid(f"Mismatched GPAs for block {name} {address}!= 0")

    def _find(self, name: str, length: int) -> memoryview:
        """Return the memory of block ``name``: the guest's RAM, or some to keep aside."""
        ours = self._memory.view
        if name == self._memory.block:
            return ours
        if not self.foreign and (self._mapped or length != len(ours)):
            raise invalid(f'Unknown ramblock "{name}", cannot accept migration')
        if length == len(ours) and not self._loaded_ram:
            self._loaded_ram = True
            self.aside[name] = ours
        elif length > len(ours):
            raise invalid(f'Unknown ramblock "{name}", cannot accept migration')
        return self.aside.setdefault(name, memoryview(bytearray(length)))

    def _mapped_block(self, name: str, length: int, block: memoryview) -> None:
        raw = self._reader.read(fmt.MAPPED_RAM_HEADER.size)
        if self._reader.failed:
            raise invalid(
                "Could not read whole mapped-ram migration header"
                f" (expected {fmt.MAPPED_RAM_HEADER.size}, got {self._reader.last_read} bytes)"
            )
        version, page_size, bitmap_at, pages_at = fmt.MAPPED_RAM_HEADER.unpack(raw)
        if version > fmt.MAPPED_RAM_VERSION:
            raise invalid(
                "Migration mapped-ram capability version not supported"
                f" (expected <= {fmt.MAPPED_RAM_VERSION}, got {version})"
            )
        if self._has_addresses and not bitmap_at and not pages_at:
            return  # it was left out
        if pages_at % PAGE:
            raise invalid(f"Error reading ramblock {name} pages, region has bad alignment")
        if self._version.checks_page_size and page_size != PAGE:
            raise invalid(
                f"Migration mapped-ram header has invalid page_size {page_size} (expected {PAGE})"
            )
        if page_size == 0:
            faults.die("the page size of a mapped-ram block is 0", signal.SIGFPE)
        bits = self._bitmap(length, page_size, bitmap_at)
        for first, end in bitmaps.runs(bits[: length // page_size]):
            self._run(name, block, pages_at, first * page_size, end * page_size)
        self._reader.skip_to(pages_at + length)

    def _bitmap(self, length: int, page_size: int, offset: int) -> bitarray:
        size = fmt.bitmap_bytes(length // page_size * page_size, page_size)
        raw = self._reader.pread(size, offset) if size <= _MAX_BITMAP else b""
        if len(raw) != size:
            raise invalid("Error reading dirty bitmap")
        return bitmaps.from_words(raw)

    def _run(self, name: str, block: memoryview, base: int, start: int, end: int) -> None:
        """Read the bytes ``start`` to ``end`` of a block, a piece at a time."""
        for at in range(start, end, _READ):
            stop = min(at + _READ, end)
            if stop > len(block):
                raise invalid(f"page outside of ramblock {name} range")
            if self._channels is not None:
                self._channels.submit((base + at, block[at:stop]))
                continue
            got = self._reader.preadv(block[at:stop], base + at)
            if got != stop - at:
                raise invalid(
                    f"({name}) failed to read page {at:x}from file offset {base + at:x}:"
                    f" {self._version.partial_read.format(got=got, expected=stop - at)}"
                )

    def _page(self, address: int, flags: int) -> None:
        if not flags & stream.RAM_FLAG_CONTINUE:
            name = self._reader.counted()
            ours = name == self._memory.block
            self._block = self._memory.view if ours else self.aside.get(name)
        if self._block is None or address + PAGE > len(self._block):
            raise invalid(f"Illegal RAM offset 0x{address:x}")
        if flags & stream.RAM_FLAG_ZERO:
            fill = self._reader.read(1)
            self._block[address : address + PAGE] = fill * PAGE
        else:
            self._block[address : address + PAGE] = self._reader.read(PAGE)


def _read_job(fd: int, job: Read) -> None:
    offset, target = job
    got = os.preadv(fd, [target], offset)
    if got != len(target):
        faults.die("a multifd channel read beyond the end of the file")
