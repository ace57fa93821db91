"""Read an image from a tar into a file: bounds first, and every digest compared in the end."""

import contextlib
import dataclasses
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from mapsave import errors
from mapsave.archive import sparse_tar
from mapsave.archive.coding import Source
from mapsave.archive.ends import Syncing
from mapsave.archive.sparse_tar import Head
from mapsave.image import data_digests, descriptors, superblock, syscalls
from mapsave.image.data_digests import Table
from mapsave.image.piece_reader import PIECE, Note

# Held back until all of it is there: what says that a file is an image, and whole, is in it (the
# slots of a native one, the magic of libvirt's header).
HELD_BACK = superblock.MIN_STREAM_OFFSET
_EXTENT = struct.Struct("=QQ")
_READ = _EXTENT.size << 12
_SHOWN = 8


@dataclasses.dataclass
class Received:
    """An image whose data is in a file, all but its first ``HELD_BACK`` bytes."""

    fd: int
    size: int
    first: bytes
    holes: list[tuple[int, int]]
    data_bytes: int

    def complete(self) -> None:
        """Write the bytes that were held back; what were holes there are holes. Raises OSError."""
        syscalls.write_all(self.fd, self.first, 0)
        for start, end in self.holes:
            with contextlib.suppress(OSError):  # it has zeros now, which is as good
                syscalls.punch_hole(self.fd, start, end - start)
        os.ftruncate(self.fd, self.size)


def receive(source: Source, head: Head, fd: int, directory: int, note: Note) -> Received:
    """Read what follows ``head`` to the end of the archive, into the new file ``fd``.

    ``directory`` is where a file for the map may be made, which may be long. ``note`` is called
    with the length of what is read next. Memory does not depend on the image, but for 16 bytes for
    each MiB of it. Raises BadArchive, NoRoom, and what reading raises; OSError where writing fails.
    """
    if head.size <= HELD_BACK:
        raise errors.BadArchive(f"the archive has a file of only {head.size} bytes")
    with descriptors.unnamed(directory) as spool, open(spool, "w+b", closefd=False) as extents:
        data_bytes = 0
        for first, end in sparse_tar.read_map(source.exactly, head, note):
            extents.write(_EXTENT.pack(first, end))
            data_bytes += end - first
        extents.seek(0)
        _check_room(directory, data_bytes)
        os.ftruncate(fd, head.size)
        into = _Into(fd, head, note)
        for first, end in _extents(extents):
            into.read(source, first, end)
        into.finish()
    if source.exactly(-head.stored % sparse_tar.BLOCK).strip(b"\0"):
        raise _damaged()
    _compare(source, head, into.table, note)
    return Received(fd, head.size, bytes(into.first), into.holes(), data_bytes)


def _extents(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the extents that were written to a file."""
    while piece := file.read(_READ):
        yield from _EXTENT.iter_unpack(piece)


def _check_room(directory: int, data_bytes: int) -> None:
    """Raise NoRoom where there is surely too little."""
    stats = os.fstatvfs(directory)
    free = stats.f_bfree * stats.f_frsize
    if data_bytes > free:
        raise errors.NoRoom(
            f"the image has {data_bytes} bytes of data, and {free} bytes are free",
            hint="free some space there, or import it into another directory",
        )


class _Into:
    """Writes a file piece by piece, in order, and takes the digest of each piece."""

    def __init__(self, fd: int, head: Head, note: Note) -> None:
        self.table = Table(0, head.size)
        self.first = bytearray(HELD_BACK)
        self._fd = fd
        self._size = head.size
        self._note = note
        self._piece = memoryview(bytearray(PIECE))
        self._number = 0
        self._is_blank = True
        self._held: list[tuple[int, int]] = []  # of what is held back
        self._syncing = Syncing(fd)

    def read(self, source: Source, first: int, end: int) -> None:
        """Read the data of an extent. Raises as ``receive``."""
        while first < end:
            number = first // PIECE
            if number != self._number:
                self._close()
                self._number = number
            low = number * PIECE
            stop = min(end, low + PIECE)
            self._note(stop - first)
            with self._piece[first - low : stop - low] as part:
                source.fill(part)
                self._is_blank = False
                self._write(part, first)
            first = stop

    def _write(self, part: memoryview, at: int) -> None:
        """Write data of one piece, all but what is held back."""
        if at < HELD_BACK:
            held = part[: HELD_BACK - at]
            self.first[at : at + len(held)] = held
            self._held.append((at, at + len(held)))
            part, at = part[len(held) :], at + len(held)
        done = 0
        while done < len(part):
            done += os.pwrite(self._fd, part[done:], at + done)
        self._syncing.wrote(done)

    def _close(self) -> None:
        """Take the digest of the piece that ends."""
        if self._is_blank:
            return
        with self._piece[: min(PIECE, self._size - self._number * PIECE)] as whole:
            self.table.put(self._number, whole)
        self._piece[:] = bytes(PIECE)
        self._is_blank = True

    def finish(self) -> None:
        """Take the digest of the last piece, and wait for the disk. Raises OSError."""
        self._close()
        self._syncing.wait()

    def holes(self) -> list[tuple[int, int]]:
        """Return the holes in what is held back."""
        ends = [0, *(end for _, end in self._held)]
        begins = [*(begin for begin, _ in self._held), HELD_BACK]
        return [(end, begin) for end, begin in zip(ends, begins, strict=True) if end < begin]


def _compare(source: Source, head: Head, table: Table, note: Note) -> None:
    """Compare digests with those that end the archive. Raises BadArchive."""
    length = data_digests.packed_length(0, head.size)
    expected = head.pack_manifest(length)
    if source.exactly(len(expected)) != expected:
        raise _damaged()
    raw = bytearray(length)
    with memoryview(raw) as view:
        source.fill(view)
    try:
        known = data_digests.unpack(bytes(raw), 0, head.size)
    except ValueError as error:
        raise errors.BadArchive(f"the digests in the archive are damaged: {error}") from None
    rest = source.exactly(len(sparse_tar.padding(length) + sparse_tar.END))
    note(0)
    if rest.strip(b"\0"):
        raise _damaged()
    source.finish()
    if places := known.differing(bytes(table.digests)):
        words = ", ".join(f"{start} to {end}" for start, end in places[:_SHOWN])
        more = f" and {len(places) - _SHOWN} places more" if len(places) > _SHOWN else ""
        raise errors.BadArchive(
            f"the archive is damaged: bytes {words}{more} of its image are not what they were",
            hint="copy or export it again",
            damaged=[{"offset": start, "length": end - start} for start, end in places],
        )


def _damaged() -> errors.BadArchive:
    return errors.BadArchive(
        "the archive is damaged: a header, or what fills a block, is not what it must be",
        hint="copy or export it again",
    )
