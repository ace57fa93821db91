"""Which pages of another process's memory it has touched, or may have contents, without reading.

Of memory that is in no file, a page that is in no page table is zero
(``Documentation/admin-guide/mm/pagemap.rst``). Of a file's the file itself knows, which is opened
by ``/proc/PID/map_files`` (proc(5)): reading its holes would fill them.
"""

import bisect
import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from bitarray import bitarray
from bitarray.util import zeros

from mapsave.monitor import mappings
from mapsave.monitor.mappings import File, Mapping

PAGE = 4096
_ENTRY = 8  # bytes of an entry
_HIGHEST = _ENTRY - 1 if sys.byteorder == "little" else 0
# Of the highest byte of an entry: in memory (0x80), swapped out (0x40), a page of a file (0x20)
# (pagemap.rst: bits 63, 62 and 61).
_TOUCHED = bytes(bool(byte & 0xC0) for byte in range(256))
# What a private mapping of a file has as its own.
_CHANGED = bytes(bool(byte & 0x40) or byte & 0xA0 == 0x80 for byte in range(256))
_AT_ONCE = 1 << 18  # pages


class Touched:
    """Knows of each page whether it may have contents. Made by ``opened``."""

    def __init__(self, found: list[Mapping], pagemap: int) -> None:
        self._mappings = found
        self._starts = [each.addresses.start for each in found]
        self._pagemap = pagemap

    def pages(self, address: int, pages: int) -> bitarray:
        """Return a bit for each page from ``address`` on. Raises OSError: EFAULT where some of
        that is not mapped, EPERM where a file may not be looked into."""
        bits = zeros(pages, "little")
        at, end = address, address + pages * PAGE
        while at < end:
            mapping = self._at(at)
            stop = min(end, mapping.addresses.stop)
            first, last = (at - address) // PAGE, (stop - address) // PAGE
            found = entries(self._pagemap, at, last - first)
            bits[first : first + len(found)] = found
            if mapping.file is not None:  # pages of which it may have, or have copied
                start = mapping.offset + at - mapping.addresses.start
                for begin, over in _data(mapping.file, start, start + stop - at):
                    bits[first + (begin - start) // PAGE : first + -(-(over - start) // PAGE)] = 1
            at = stop
        return bits

    def _at(self, address: int) -> Mapping:
        found = self._mappings[bisect.bisect_right(self._starts, address) - 1]
        if address not in found.addresses:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return found


def entries(pagemap: int, address: int, pages: int, wanted: bytes = _TOUCHED) -> bitarray:
    """Return a bit for each page that is in memory or swapped out. ``pagemap`` is the open file."""
    raw = os.pread(pagemap, pages * _ENTRY, address // PAGE * _ENTRY)
    bits = bitarray(endian="little")
    bits.pack(raw[_HIGHEST::_ENTRY].translate(wanted))
    return bits


def of_file(pid: int, file: File, *, changed: bool = False) -> Iterator[tuple[int, bitarray]]:
    """Yield (offset in the file, bits) of what a process has touched of a file that it maps.

    With ``changed``: of what it has made its own by writing to a private mapping. The kernel maps
    up to 16 pages around one that is read, if they are in the page cache: these count as well.
    Raises OSError.
    """
    with entries_of(pid) as fd:
        for mapping in mappings.everything(pid):
            if mapping.is_of(file):
                at, stop = mapping.addresses.start, mapping.addresses.stop
                for address in range(at, stop, _AT_ONCE * PAGE):
                    pages = min(_AT_ONCE, (stop - address) // PAGE)
                    found = entries(fd, address, pages, _CHANGED if changed else _TOUCHED)
                    yield mapping.offset + address - at, found


@contextlib.contextmanager
def opened(pid: int) -> Iterator[Touched]:
    """Yield what knows the pages of a process. Raises OSError where that may not be looked at."""
    found = mappings.everything(pid)
    with entries_of(pid) as fd:
        yield Touched(found, fd)


@contextlib.contextmanager
def entries_of(pid: int) -> Iterator[int]:
    """Yield the file of a process's entries. Raises OSError where that may not be looked at."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _data(path: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the extents of data of a file; all of it where it does not know of holes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while start < end:
            try:
                first = os.lseek(fd, start, os.SEEK_DATA)
                over = os.lseek(fd, first, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                    return
                first, over = start, end
            if first >= end:
                return
            yield first, min(over, end)
            start = over
    finally:
        os.close(fd)
