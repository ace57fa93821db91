"""The guest's RAM: contents, dirty log, and a thread that plays the guest.

It is a memfd, or a mapping of a file: a private one, or a shared one, where all that the guest
writes is in the file.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import struct
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mapsave.emulator.options import PAGE, Backend, EmulatorOptions

if TYPE_CHECKING:
    from bitarray import bitarray

BLOCK = "ram"  # as QEMU calls main memory of -machine none that has no backend of the user's
_ZERO_PAGE = bytearray(PAGE)
_COUNTER = struct.Struct("=Q")
_RANDOM_PAGES = 1024  # pages of random bytes that are repeated, each with its number
_WRITER_PAUSE = 0.001  # seconds between two bursts of the writer
_WRITER_BURST = 8  # pages it dirties in a burst: about 25 MiB/s


class GuestMemory:
    """RAM of ``options.memory`` bytes, filled by ``options.pattern`` or, before a restore, zero."""

    def __init__(self, options: EmulatorOptions) -> None:
        self.size = options.memory
        self.pages = options.memory // PAGE
        self.backend = options.backend
        self.block = options.backend.id if options.backend is not None else BLOCK
        self._map = _mapped(options.backend) if options.backend is not None else _fresh(self.size)
        self.view = memoryview(self._map)
        self._dirty: set[int] = set()
        self._gate = threading.Lock()
        self._running = False
        self._wake = threading.Event()
        if options.incoming is None or options.stale:
            fill(self.view, options.pattern, options.seed)
        if options.writer:
            threading.Thread(
                target=self._write_forever, args=(options.seed,), name="writer", daemon=True
            ).start()

    @property
    def is_shared(self) -> bool:
        """Whether it is a shared file, which x-ignore-shared leaves out."""
        return self.backend is not None and self.backend.is_shared

    @property
    def address(self) -> int:
        """Where the RAM is in this process, for ``x-query-ramblock``."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def resume(self) -> None:
        """Let the guest run: the writer may write."""
        with self._gate:
            self._running = True
        self._wake.set()

    def halt(self) -> None:
        """Stop the guest: when this returns no page changes any more."""
        self._wake.clear()
        with self._gate:
            self._running = False

    def is_zero(self, page: int) -> bool:
        page_bytes = self.view[page * PAGE : (page + 1) * PAGE]
        return _ZERO_PAGE == page_bytes  # noqa: SIM300 (the other way round takes 100 times longer)

    def collect_dirty(self, into: bitarray) -> None:
        """Move the dirty log into ``into``."""
        with self._gate:
            into[list(self._dirty)] = 1
            self._dirty.clear()

    def _write_forever(self, seed: int) -> None:
        generator = random.Random(seed)  # noqa: S311 (to be repeated)
        while True:
            self._wake.wait()
            with self._gate:
                if self._running:
                    for page in (generator.randrange(self.pages) for _ in range(_WRITER_BURST)):
                        (count,) = _COUNTER.unpack_from(self.view, page * PAGE)
                        _COUNTER.pack_into(self.view, page * PAGE, (count + 1) % (1 << 64))
                        self._dirty.add(page)
            threading.Event().wait(_WRITER_PAUSE)


def _fresh(size: int) -> mmap.mmap:
    fd = os.memfd_create("mapsave-emulator-ram")
    os.ftruncate(fd, size)
    return mmap.mmap(fd, size)


def _mapped(backend: Backend) -> mmap.mmap:
    """Map the RAM from a file, which is made where it is to be shared. Raises OSError."""
    kind, flags = mmap.MAP_PRIVATE, os.O_RDONLY
    if backend.is_shared:
        kind, flags = mmap.MAP_SHARED, os.O_RDWR | os.O_CREAT
    try:
        fd = os.open(backend.path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        words = f"can't open backing store {backend.path} for guest RAM: {error.strerror}"
        raise OSError(error.errno, words) from None
    try:
        size, end = os.fstat(fd).st_size, backend.offset + backend.size
        if backend.offset < size < end:
            reason = f"backing store size 0x{size:x} does not match 'size' option 0x"
            raise OSError(errno.EINVAL, f"{reason}{backend.size:x}")
        if backend.is_shared and size < end:
            os.ftruncate(fd, end)
        access = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(fd, backend.size, kind, access, offset=backend.offset)
    finally:
        os.close(fd)


def fill(ram: memoryview, pattern: str, seed: int) -> None:
    """Fill ``ram`` with ``pattern``: the same for the same seed."""
    generator = random.Random(seed)  # noqa: S311 (to be repeated)
    contents = memoryview(generator.randbytes(_RANDOM_PAGES * PAGE))
    for first, end in used_pages(pattern, len(ram) // PAGE, generator):
        for page in range(first, end):
            at, source = page * PAGE, page % _RANDOM_PAGES * PAGE
            ram[at : at + PAGE] = contents[source : source + PAGE]
            _COUNTER.pack_into(ram, at, page + 1)


def used_pages(pattern: str, pages: int, generator: random.Random) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the runs of pages that are not zero, ``end`` being after the last.

    ``sparse`` has a sixteenth in runs of 256 pages, ``fragmented`` every second page by chance;
    ``linux`` is a booted guest's: kernel at the bottom, then runs of all lengths, 40 % in all.
    """
    if pattern == "random":
        yield 0, pages
    elif pattern == "fragmented":
        yield from ((page, page + 1) for page in range(pages) if generator.random() < 0.5)
    elif pattern == "sparse":
        for first in range(0, pages, 256):
            if not first or generator.random() < 1 / 16:
                yield first, min(first + 256, pages)
    elif pattern == "linux":
        yield 0, pages // 32
        at = pages // 32
        while at < pages:
            at += 1 + int(generator.expovariate(1 / 96))
            used = 1 + int(generator.expovariate(1 / 64))
            yield min(at, pages), min(at + used, pages)
            at += used
