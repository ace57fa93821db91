"""Sending RAM: which pages are left, which are zero, and where each goes in the file.

Two forms, as QEMU has them: mapped-ram, where every page has its place in the file and a bitmap
says which places count, and the plain stream, where every page comes after its address.

Sources: QEMU's ``docs/devel/migration/mapped-ram.rst``, ``migration/ram.c`` and
``migration/multifd-nocomp.c`` of 10.0.
"""

import abc
import dataclasses
import errno
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence

from bitarray.util import ones, zeros

from mapsave.emulator import stream
from mapsave.emulator.channels import Channels
from mapsave.emulator.faults import ChannelError, StreamError
from mapsave.emulator.memory import GuestMemory
from mapsave.emulator.options import PAGE
from mapsave.image import stream_format as fmt
from mapsave.image import stream_parts

JOB_PAGES = 128  # pages in a job: QEMU's MULTIFD_PACKET_SIZE of 512 KiB


@dataclasses.dataclass
class Counters:
    """What ``query-migrate`` reports, in pages and bytes."""

    normal: int = 0
    duplicate: int = 0
    multifd_bytes: int = 0
    page_bytes: int = 0  # page data that went through the main channel
    syncs: int = 0


class Throttle:
    """Holds page data back to ``rate`` bytes a second over all threads; 0 lets everything pass."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = time.monotonic()
        self.lifted = threading.Event()

    def wait(self, size: int) -> None:
        """Wait until ``size`` bytes more may go; not at all once the throttle is ``lifted``."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            delay = self._free_at - now
        self.lifted.wait(delay)


class RamSave(abc.ABC):
    """The RAM of one save. ``left`` has a bit for each page that is still to be sent.

    ``ignore_shared``: the capability, by which memory ``is_left_out`` that is a shared file.
    """

    def __init__(
        self,
        memory: GuestMemory,
        writer: stream.StreamWriter,
        throttle: Throttle,
        *,
        ignore_shared: bool = False,
    ) -> None:
        self.memory = memory
        self.writer = writer
        self.throttle = throttle
        self.counters = Counters()
        self.is_left_out = ignore_shared and memory.is_shared
        self._ignore_shared = ignore_shared
        self.left = ones(memory.pages, "little")
        self._collect()  # the dirty log begins here
        self._cursor = 0
        self._count_lock = threading.Lock()

    @property
    def bytes_left(self) -> int:
        return self.left.count() * PAGE

    @property
    def total_bytes(self) -> int:
        """The RAM that is to be sent."""
        return 0 if self.is_left_out else self.memory.size

    def _collect(self) -> None:
        self.memory.collect_dirty(self.left)
        if self.is_left_out:
            self.left.setall(0)

    def sync(self, *, counted: bool = True) -> None:
        """Take in what the guest has written since the last call."""
        self._collect()
        self.counters.syncs += counted

    def take(self) -> list[int]:
        """Return up to a job's pages, in order, and count them as sent; none if none are left."""
        for _ in range(2):
            pages = list(itertools.islice(self.left.search(1, self._cursor), JOB_PAGES))
            if pages:
                self.left[pages] = 0
                self._cursor = pages[-1] + 1
                return pages
            self.wrap()
        return []

    def count(self, normal: int, duplicate: int, *, multifd: bool) -> None:
        """Add pages to the counters; called from all threads."""
        with self._count_lock:
            self.counters.normal += normal
            self.counters.duplicate += duplicate
            if multifd:
                self.counters.multifd_bytes += normal * PAGE
            else:
                self.counters.page_bytes += normal * PAGE

    def wrap(self) -> None:
        """The end of RAM is reached; another round begins, which must not overtake this one."""
        self._cursor = 0

    def settle(self) -> None:  # noqa: B027 (see check)
        """Wait until all that was sent is written."""

    def check(self) -> None:  # noqa: B027 (a form without channels has nothing to check)
        """Raise StreamError if a channel failed in the meantime."""

    def close(self) -> None:  # noqa: B027 (see check)
        """Let the channels end."""

    def _list_block(self) -> None:
        size = self.memory.size
        out = fmt.U64.pack(size | fmt.RAM_FLAG_MEM_SIZE)
        out += fmt.counted(self.memory.block) + fmt.U64.pack(size)
        # The block's guest physical address.
        self.writer.write(out + (fmt.U64.pack(0) if self._ignore_shared else b""))

    @abc.abstractmethod
    def setup(self) -> None:
        """Write what the RAM section begins with."""

    @abc.abstractmethod
    def send(self, pages: Sequence[int]) -> None:
        """Send ``pages``. Raises StreamError."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Write what belongs after the last page, before the end mark. Raises StreamError."""


class MappedRamSave(RamSave):
    """Pages at fixed places, written by channels or, without multifd, by the main channel."""

    def __init__(
        self,
        memory: GuestMemory,
        writer: stream.StreamWriter,
        throttle: Throttle,
        *,
        channels: list[int],
        detection: str,
        ignore_shared: bool = False,
        marks_left_out: bool = False,
    ) -> None:
        super().__init__(memory, writer, throttle, ignore_shared=ignore_shared)
        self._marks_left_out = marks_left_out
        self._present = zeros(memory.pages, "little")
        self._multifd = bool(channels)
        self._detection = detection
        self._channels: Channels[Sequence[int]] = Channels(channels, self._write_job)
        self._bitmap_offset = self._pages_offset = 0

    def setup(self) -> None:
        """Write block record and mapped-ram header, and go on after the pages' place.

        Where QEMU ``marks_left_out``, a block that is left out has no such place.
        """
        self._list_block()
        memory = self.memory
        block = stream_parts.placed(memory.block, memory.size, PAGE, self.writer.position)
        if self.is_left_out and self._marks_left_out:
            nowhere = dataclasses.replace(block, bitmap_offset=0, pages_offset=0)
            self.writer.write(stream_parts.mapped_ram_header(nowhere))
            return
        self._bitmap_offset, self._pages_offset = block.bitmap_offset, block.pages_offset
        self.writer.write(stream_parts.mapped_ram_header(block))
        self.writer.skip_to(block.end)

    def send(self, pages: Sequence[int]) -> None:
        """Hand ``pages`` to a channel, or write them here without multifd."""
        if self._multifd and self._detection != "legacy":
            self._channels.submit(pages)
            return
        wanted = self._without_zero(pages) if self._detection != "none" else pages
        if not wanted:
            return
        if self._multifd:
            self._channels.submit(wanted)
            return
        try:
            self._write_runs(self.writer.fd, wanted)
        except OSError as error:
            raise _broken(stream.unable_to_write(error)) from None

    def _write_job(self, fd: int, pages: Sequence[int]) -> None:
        """Runs in a channel. Legacy detection has taken out the zero pages before."""
        if self._detection == "multifd":
            pages = self._without_zero(pages)
        self._write_runs(fd, pages)

    def _without_zero(self, pages: Sequence[int]) -> list[int]:
        used = [page for page in pages if not self.memory.is_zero(page)]
        self._present[list(pages)] = 0  # it may have been written in an earlier round
        self.count(0, len(pages) - len(used), multifd=self._multifd)
        return used

    def _write_runs(self, fd: int, pages: Sequence[int]) -> None:
        self._present[list(pages)] = 1
        for first, last in runs(pages):
            start, size = first * PAGE, (last - first + 1) * PAGE
            self.throttle.wait(size)
            # As in QEMU a channel looks at errors only: a short write goes unnoticed.
            os.pwritev(fd, [self.memory.view[start : start + size]], self._pages_offset + start)
        self.count(len(pages), 0, multifd=self._multifd)

    def settle(self) -> None:
        self._channels.sync()

    def wrap(self) -> None:
        """Wait for the channels, so that no older copy of a page is written over a newer one."""
        self._channels.sync()
        super().wrap()

    def check(self) -> None:
        error = self._channels.error
        if isinstance(error, OSError):
            raise ChannelError(stream.unable_to_write(error).desc)
        if error is not None:
            raise error

    def finish(self) -> None:
        """Wait for the channels and write the bitmap to its place."""
        self._channels.sync()
        self.check()
        if self.is_left_out:
            if self._marks_left_out:
                return
            # Its bitmap was never made: QEMU writes from a null pointer.
            error = stream.unable_to_write(OSError(errno.EFAULT, ""))
            raise StreamError(error.desc, f"Failed to write bitmap to file: {error.desc}")
        bits = self._present.tobytes().ljust(fmt.bitmap_bytes(self.memory.size, PAGE), b"\0")
        try:
            os.pwrite(self.writer.fd, bits, self._bitmap_offset)
        except OSError as error:
            raise stream.unable_to_write(error) from None
        self.writer.written += len(bits)

    def close(self) -> None:
        self._channels.close()


class PlainRamSave(RamSave):
    """The stream of ever: address, flags and contents of page after page."""

    _named = False  # the block's name came already in this section

    def setup(self) -> None:
        self._list_block()

    def send(self, pages: Sequence[int]) -> None:
        zero = [self.memory.is_zero(page) for page in pages]
        duplicate = sum(zero)
        self.throttle.wait((len(pages) - duplicate) * PAGE)
        for page, is_zero in zip(pages, zero, strict=True):
            start = page * PAGE
            flag = stream.RAM_FLAG_ZERO if is_zero else stream.RAM_FLAG_PAGE
            name = fmt.counted(self.memory.block)
            if self._named:
                flag, name = flag | stream.RAM_FLAG_CONTINUE, b""
            self._named = True
            data = b"\0" if is_zero else bytes(self.memory.view[start : start + PAGE])
            try:
                self.writer.write(fmt.U64.pack(start | flag) + name + data)
            except StreamError as error:
                raise _broken(error) from None
        self.count(0, duplicate, multifd=False)
        self.counters.normal += len(pages) - duplicate

    def finish(self) -> None:
        """Nothing: the stream holds all."""


def _broken(error: StreamError) -> StreamError:
    """Return ``error`` of the main channel with what QEMU reports first."""
    return StreamError(error.desc, "failed to save SaveStateEntry with id(name): 1(ram): -5")


def runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of each run of consecutive numbers in the ascending ``pages``."""
    for _, run in itertools.groupby(enumerate(pages), lambda item: item[1] - item[0]):
        numbers = [page for _, page in run]
        yield numbers[0], numbers[-1]
