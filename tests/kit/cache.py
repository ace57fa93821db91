"""What of a file is in the page cache, by mincore(2), which reads nothing."""

import ctypes
import mmap
import os
from pathlib import Path

from mapsave.image import syscalls

PAGE = mmap.PAGESIZE
_TMPFS = 0x01021994  # statfs(2)


def unavailable(path: Path) -> str | None:
    """Say why a file there is always in the page cache; None where it need not be."""
    fd = os.open(path, os.O_RDONLY)
    try:
        in_memory = syscalls.file_system_type(fd) == _TMPFS
    finally:
        os.close(fd)
    return f"{path} is in a tmpfs, which is nowhere but in memory" if in_memory else None


def evict(path: Path) -> None:
    """Bring a file to the disk and out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def resident(path: Path, start: int = 0, end: int | None = None) -> list[bool]:
    """Return of each page of a part of a file whether it is in the page cache."""
    with path.open("rb") as file:
        return of_descriptor(file.fileno(), start, end)


def of_descriptor(fd: int, start: int = 0, end: int | None = None) -> list[bool]:
    """Do as ``resident`` for an open file."""
    length = (os.fstat(fd).st_size if end is None else end) - start
    # Writable, because ctypes tells the address of nothing else; private, so nothing is written.
    writable = mmap.PROT_READ | mmap.PROT_WRITE
    with mmap.mmap(fd, length, mmap.MAP_PRIVATE, writable, offset=start) as held:
        pages = (ctypes.c_ubyte * -(-length // PAGE))()
        first = ctypes.c_char.from_buffer(held)
        place = ctypes.c_void_p(ctypes.addressof(first))
        failed = ctypes.CDLL(None, use_errno=True).mincore(place, ctypes.c_size_t(length), pages)
        number = ctypes.get_errno()
        del first  # or the mapping cannot be closed
    if failed:
        raise OSError(number, f"mincore: {os.strerror(number)}")
    return [bool(page & 1) for page in pages]
