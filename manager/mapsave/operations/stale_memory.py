"""Memory of a destination that is not empty before it is loaded.

QEMU writes only pages whose bit is set (10.0, ``migration/ram.c``): where the image has none, what
the destination has of its files or drives would stay. So those pages must be zero there. What the
image does not hold, as the memory of a virtio-pmem device, is a disk like any other.
"""

import dataclasses
import os
import stat
from collections.abc import Mapping, Sequence

from mapsave import blocking, errors
from mapsave.image import bitmaps, holes
from mapsave.image.mapped_ram import RamBlock
from mapsave.image.validation import Contents
from mapsave.monitor import process, process_memory, ram_blocks
from mapsave.operations.memory_backends import Backend

_CHUNK = 1 << 20
# Blocks that have contents from elsewhere and are in no backend: flash from its drive, and what an
# ivshmem server gives.
_WITH_CONTENTS = ("flash", "ivshmem")


@dataclasses.dataclass(frozen=True)
class Destination:
    """The process of a destination, and what its QEMU says of its memory.

    ``mapped`` are RAM blocks that it maps from the image itself.
    """

    pid: int | None
    blocks: Mapping[str, ram_blocks.RamBlock]
    backends: Sequence[Backend]
    mapped: frozenset[str] = frozenset()


async def check(destination: Destination, fd: int, contents: Contents) -> list[str]:
    """Compare the destination's memory with the image ``fd``; return warnings.

    Raises DestinationNotZero, DestinationMismatch where QEMU cannot write to it.
    """
    pid, found, backends = destination.pid, destination.blocks, destination.backends
    names = list(found) or [block.name for block in contents.stream.blocks]
    by_block = {name: each for each in backends if (name := each.block(names)) is not None}
    warnings: list[str] = []
    for block, used in zip(contents.stream.blocks, contents.used_pages, strict=True):
        if block.name in destination.mapped:
            continue
        there, backend = found.get(block.name), by_block.get(block.name)
        if backend is not None and backend.is_rom and used:
            raise errors.DestinationMismatch(
                f"the destination's RAM {backend.name!r} is read-only, and the image has pages of "
                f"RAM block {block.name!r}: QEMU would crash while loading them",
                hint="start the destination with readonly=off, or rom=off, for that memory backend",
            )
        if used == block.pages:
            continue
        if backend is not None:
            if backend.path is not None:
                await blocking.call(_check_file, pid, fd, block, backend, there)
        elif there is not None and not there.read_only:
            # QEMU fills read-only ones, its ROMs, only where no guest is to come in.
            warnings += await blocking.call(_check_memory, pid, fd, block, there)
    return warnings


def _check_file(
    pid: int | None, fd: int, block: RamBlock, backend: Backend, there: ram_blocks.RamBlock | None
) -> None:
    """Check a file; where it cannot be read, what QEMU has mapped of it."""
    assert backend.path is not None
    where = f"RAM {backend.name!r}, backed by {backend.path!r},"
    try:
        stale = _in_file(pid, fd, block, backend)
    except OSError as error:
        try:
            stale = _in_memory(pid, fd, block, there)
        except OSError:
            raise errors.of_os_error(
                error,
                f"the destination's {where} cannot be checked ({error.strerror}): where the "
                "image has no page, QEMU would keep what is there",
                backend.path,
                otherwise=errors.DestinationNotZero,
                hint="run mapsave on the host, and in the mount namespace, of the file",
                path=backend.path,
            ) from None
    if stale is not None:
        raise errors.DestinationNotZero(
            f"the destination's {where} has contents at page {stale}, where the image has "
            "none, which QEMU would not clear",
            hint="it has changed since the save: restore its former contents, or start the "
            "destination with a new, empty file instead; the image has the contents",
            path=backend.path,
        )


def _in_file(pid: int | None, fd: int, block: RamBlock, backend: Backend) -> int | None:
    """Return the first page with contents in the file and none in the image. Raises OSError."""
    assert backend.path is not None
    path = process.path_seen_by(pid, backend.path)
    if os.path.isdir(path):
        return None  # QEMU makes an unnamed file there, which is fresh
    # A character device, of DAX, is to be mapped only: its memory is read then.
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(0, "not a regular file")
        for first, pages in bitmaps.clear_runs(fd, block):
            start = backend.offset + first * block.page_size
            for begin, end in holes.extents(file, start, start + pages * block.page_size):
                at = _first_contents(file, begin, end)
                if at is not None:
                    return (at - backend.offset) // block.page_size
    finally:
        os.close(file)
    return None


def _first_contents(file: int, begin: int, end: int) -> int | None:
    """Return where the first chunk that is not zero begins, to the byte; None without one."""
    at = begin
    while at < end:
        data = os.pread(file, min(_CHUNK, end - at), at)
        if not data:
            return None
        if data.count(0) != len(data):
            return at + len(data) - len(data.lstrip(b"\0"))
        at += len(data)
    return None


def _check_memory(
    pid: int | None, fd: int, block: RamBlock, there: ram_blocks.RamBlock
) -> list[str]:
    try:
        stale = _in_memory(pid, fd, block, there)
    except OSError as error:
        if not any(word in block.name for word in _WITH_CONTENTS):
            return []
        return [
            f"RAM block {block.name!r} of the destination could not be compared with the image "
            f"({error.strerror}): contents that differ from those at the save may remain"
        ]
    if stale is not None:
        raise errors.DestinationNotZero(
            f"the destination's RAM block {block.name!r} has contents at page {stale}, "
            "where the image has none, which QEMU would not clear",
            hint="start the destination with what the guest had at the save (for flash, the "
            "same firmware files), or with new files of zeros of that size; the image has "
            "the contents",
        )
    return []


def _in_memory(
    pid: int | None, fd: int, block: RamBlock, there: ram_blocks.RamBlock | None
) -> int | None:
    """Return the same of QEMU's memory. Raises OSError."""
    if pid is None or there is None or there.address is None:
        raise OSError(0, "QEMU's process cannot be seen")
    for first, pages in bitmaps.clear_runs(fd, block):
        start, length = first * block.page_size, pages * block.page_size
        for at in range(start, start + length, _CHUNK):
            piece = (there.address + at, min(_CHUNK, start + length - at))
            data = process_memory.read(pid, [piece])
            if contents := len(data.lstrip(b"\0")):
                return (at + len(data) - contents) // block.page_size
    return None
