"""Digests of an image's data: XXH3-128 over each MiB of the file from its stream on.

They are taken of the file when it is final, by direct reads, into the area that the superblock has
reserved for them, at the end of the header. A hole is as good as zeros: both have the digest 0. So
copies with other holes have the same digests. Little endian, but for the digests::

    0    8   magic MSDIGEST
    8    4   version, 1
    12   4   algorithm, 1: XXH3-128
    16   8   bytes of a piece of the file, 1 MiB; the first piece begins with the file
    24   8   the first byte that is covered: M
    32   8   the end of what is covered: the length of the file
    40   8   when they were taken, seconds since 1970
    48   16  XXH3-128 of the 48 bytes before and the digests after it
    64       16 bytes for each piece from that of the first byte on

A digest is over those bytes of its piece that are covered. See https://xxhash.com.
"""

import dataclasses
import os
import struct
import time

from mapsave import errors, units
from mapsave.image import bitmaps, piece_reader, syscalls
from mapsave.image.piece_reader import PIECE, Note, Put
from mapsave.image.superblock import DIGEST_HEAD, MAX_DIGESTS, SLOT_SIZE, Superblock
from mapsave.image.superblock import DIGEST_SIZE as SIZE

_MAGIC = b"MSDIGEST"
_VERSION = 1
_XXH3_128 = 1
_HEAD = struct.Struct("<8sIIQQQQ")
_BEGIN = DIGEST_HEAD
# Of bitmaps, device state, video memory and ROMs, beside the RAM that a guest is said to have.
_BESIDE = 1 * units.GIB


def ignore(_: int) -> None:
    """Note nothing."""


@dataclasses.dataclass(frozen=True)
class Digests:
    """The digests of the pieces of a file from ``begin`` to ``end``, ``taken`` at that time.

    ``begin`` and ``end`` in bytes, ``taken`` in seconds since the epoch.
    """

    begin: int
    end: int
    taken: int
    table: bytes

    def pack(self) -> bytes:
        """Return the digest area as it is on disk."""
        head = _HEAD.pack(_MAGIC, _VERSION, _XXH3_128, PIECE, self.begin, self.end, self.taken)
        return head + _checksum(head, self.table) + self.table

    def digest(self, number: int) -> bytes:
        """Return that of the piece of that number."""
        at = (number - self.begin // PIECE) * SIZE
        return self.table[at : at + SIZE]

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first byte and the end of what is covered of the piece of that number."""
        return max(self.begin, number * PIECE), min(self.end, (number + 1) * PIECE)

    def part(self, begin: int, end: int) -> "Digests":
        """Return those from ``begin`` to ``end``, both between two pieces or where they end."""
        first = begin // PIECE - self.begin // PIECE
        count = -(-end // PIECE) - begin // PIECE
        table = self.table[first * SIZE : (first + count) * SIZE]
        return Digests(begin, end, self.taken, table)

    def differing(self, table: bytes) -> list[tuple[int, int]]:
        """Return the pieces, by first byte and end, that have other digests in ``table``."""
        if table == self.table:
            return []
        first = self.begin // PIECE
        return [
            self.bounds(first + at)
            for at in range(len(table) // SIZE)
            if table[at * SIZE : (at + 1) * SIZE] != self.table[at * SIZE : (at + 1) * SIZE]
        ]


def room(ram_bytes: int) -> int:
    """Return how many bytes of header to reserve for the digests of a guest with so much RAM.

    0 where that would be too much.
    """
    pages = units.round_up(ram_bytes, PIECE) + ram_bytes // 8192
    wanted = _BEGIN + SIZE * ((pages + _BESIDE) // PIECE)
    return units.round_up(wanted, SLOT_SIZE) if wanted <= MAX_DIGESTS else 0


def take(fd: int, begin: int, end: int, note: Note = ignore, look: Put | None = None) -> Digests:
    """Return the digests of a file from ``begin`` to ``end``.

    ``note`` is called with the bytes of each piece before it is read; what it raises ends the
    reading. ``look`` gets each piece as well, as it is digested. Raises TruncatedImage where the
    file is shorter, OSError, and what ``look`` raises.
    """
    when = int(time.time())
    return Digests(begin, end, when, _table(fd, begin, end, note, look))


def differing(fd: int, known: Digests, note: Note = ignore) -> list[tuple[int, int]]:
    """Return the pieces, by first byte and end, that have not the digests that are ``known``.

    ``note`` and what is raised are as for ``take``.
    """
    return known.differing(_table(fd, known.begin, known.end, note))


class Table:
    """Digests of the pieces of a file from ``begin`` to ``end``, taken in any order."""

    def __init__(self, begin: int, end: int) -> None:
        import xxhash  # what takes no digests does without

        self.digests = bytearray(packed_length(begin, end) - _BEGIN)
        self._first = begin // PIECE
        self._hash = xxhash.xxh3_128_digest
        self._zeros = memoryview(bytes(PIECE))
        self._of_zeros = {PIECE: self._hash(self._zeros)}

    def of(self, data: memoryview) -> bytes:
        """Return the digest of (a part of) a piece."""
        digest: bytes = self._hash(data)
        length = len(data)
        if length not in self._of_zeros:  # the first piece and the last
            self._of_zeros[length] = self._hash(self._zeros[:length])
        return digest if digest != self._of_zeros[length] else bytes(SIZE)

    def put(self, number: int, data: memoryview) -> bytes:
        """Take the digest of the piece of that number, and return it."""
        digest = self.of(data)
        self.note(number, digest)
        return digest

    def note(self, number: int, digest: bytes) -> None:
        """Note the digest of the piece of that number."""
        at = (number - self._first) * SIZE
        self.digests[at : at + SIZE] = digest


class Comparing:
    """Compares pieces of the file ``fd``, in any order, with the digests that are ``known``.

    It reads through the page cache.
    """

    def __init__(self, fd: int, known: Digests) -> None:
        self._fd = fd
        self._known = known
        self._table = Table(known.begin, known.end)
        self._buffer = memoryview(bytearray(PIECE))

    def differs(self, number: int) -> bool:
        """Return whether the piece of that number has another digest.

        Raises TruncatedImage where the file is shorter, OSError.
        """
        low, high = self._known.bounds(number)
        data = self._buffer[: high - low]
        at = low
        while at < high:
            if not (count := os.preadv(self._fd, [data[at - low :]], at)):
                raise errors.TruncatedImage(f"the file ends at {at}, while it is read")
            at += count
        return self._table.of(data) != self._known.digest(number)


def _table(fd: int, begin: int, end: int, note: Note, look: Put | None = None) -> bytes:
    table = Table(begin, end)
    if bitmaps.data_from(fd, begin) >= end:
        return bytes(table.digests)

    def put(number: int, data: memoryview) -> None:
        table.put(number, data)
        if look is not None:
            look(number, data)

    piece_reader.read(fd, begin, end, put, note)
    return bytes(table.digests)


def write(fd: int, block: Superblock, digests: Digests) -> Superblock:
    """Write the digest area that ``block`` has reserved; return a superblock that points to it.

    That is not written yet, and the area not on stable storage. Raises OSError, ValueError where
    they do not fit.
    """
    raw = digests.pack()
    if len(raw) > block.digest_room:
        raise ValueError(f"digests of {len(raw)} bytes, {block.digest_room} bytes are reserved")
    syscalls.write_all(fd, raw, block.digest_offset)
    return dataclasses.replace(block, digest_length=len(raw))


def read(fd: int, block: Superblock) -> Digests | None:
    """Return the digests of an image; None where none were taken.

    Raises DigestsDamaged where they are not what was written, or do not cover the image.
    """
    if not block.digest_length:
        return None
    begin, end = block.stream_offset, block.file_length
    length = block.digests_needed
    if block.digest_length != length or length > MAX_DIGESTS:
        raise _damaged(block, f"they have {block.digest_length} bytes in place of {length}")
    try:
        return unpack(os.pread(fd, length, block.digest_offset), begin, end)
    except ValueError as error:
        raise _damaged(block, str(error)) from None


def unpack(raw: bytes, begin: int, end: int) -> Digests:
    """Return the digests that ``pack`` has packed, of a file from ``begin`` to ``end``.

    Raises ValueError that says what is wrong with them, UnsupportedImage.
    """
    head, table = raw[: _HEAD.size], raw[_BEGIN:]
    if len(raw) < packed_length(begin, end) or raw[_HEAD.size : _BEGIN] != _checksum(head, table):
        raise ValueError("their checksum does not match")
    magic, version, algorithm, piece, first, last, taken = _HEAD.unpack(head)
    if (version, algorithm, piece) != (_VERSION, _XXH3_128, PIECE):
        raise errors.UnsupportedImage(
            f"the digests of its data are of version {version}, algorithm {algorithm}, over pieces "
            f"of {piece} bytes, which this mapsave does not support",
            hint="use the mapsave that took them, or a newer one",
        )
    if (magic, first, last) != (_MAGIC, begin, end):
        raise ValueError("they are of another file")
    return Digests(begin, end, taken, table)


def packed_length(begin: int, end: int) -> int:
    """Return how many bytes the digests of a file from ``begin`` to ``end`` are packed in."""
    return _BEGIN + SIZE * (-(-end // PIECE) - begin // PIECE)


def _checksum(head: bytes, table: bytes) -> bytes:
    import xxhash

    hashed = xxhash.xxh3_128(head)
    hashed.update(table)
    return hashed.digest()


def _damaged(block: Superblock, why: str) -> errors.DigestsDamaged:
    return errors.DigestsDamaged(
        f"the digests of its data at {block.digest_offset} are damaged ({why})",
        hint="whether the data is damaged as well is not known: compare it with another copy of "
        "the image, or save the guest again",
        offset=block.digest_offset,
        length=block.digest_length,
    )
