"""The tar that an image is exported in: one sparse file, and the digests of it.

Its format is PAX sparse 1.0, which GNU tar writes and reads (its manual, "Storing Sparse Files"),
as do bsdtar and Python: an extended header with the file's name and real size, the file's header,
and as its contents a map followed by the data. The map has decimal numbers, one a line: how many
extents there are, then offset and length of each; it is padded to a block. A hole at the end is an
extent without bytes. The second member has the digests, as an image's digest area is laid out, but
of the whole file, from its first byte.

What is read must be, byte for byte, what would have been written.
"""

import dataclasses
import os
import re
import struct
from collections.abc import Callable, Iterator

from mapsave import errors, units
from mapsave.image import holes
from mapsave.image.piece_reader import Note

BLOCK = 512
END = bytes(2 * BLOCK)
# Of the file: its digests take 128 MiB then, the most that an image has room for.
MOST_BYTES = 8 * units.TIB
_MOST_EXTENDED = 4096
_OCTAL = 1 << 33  # bytes, from which on a size does not fit the header
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_CHECKSUM = slice(148, 156)
_SIZE, _MODIFIED = slice(124, 136), slice(136, 148)
_RECORD = re.compile(rb"(\d{1,4}) ([^=\n]{1,40})=")
_NAME_MAX = 255
_CHUNK = 64 << 10
_OFTEN = 4096  # extents

Exactly = Callable[[int], bytes]


@dataclasses.dataclass(frozen=True)
class Head:
    """What precedes an image in the tar: its name, length, and how many bytes map and data have.

    ``modified`` in seconds since the epoch.
    """

    name: str
    size: int
    stored: int
    modified: int

    def pack(self) -> bytes:
        """Return the headers of the image."""
        name = os.fsencode(self.name)
        records = {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": name,
            b"GNU.sparse.realsize": b"%d" % self.size,
        }
        if self.stored >= _OCTAL:
            records[b"size"] = b"%d" % self.stored
        # What tells apart nothing but a tar that does not know sparse files.
        shown = b"GNUSparseFile.0/" + name
        return _extended(records, self.modified) + _header(shown, self.stored, self.modified, b"0")

    def pack_manifest(self, length: int) -> bytes:
        """Return the headers of the digests, which have so many bytes."""
        name = os.fsencode(self.name) + b".digests"
        if len(name) > _NAME_MAX:
            name = b"image.digests"
        headers = _extended({b"path": name}, self.modified)
        return headers + _header(name, length, self.modified, b"0")


def padding(length: int) -> bytes:
    """Return what fills the last block of so many bytes."""
    return bytes(-length % BLOCK)


def _header(name: bytes, size: int, modified: int, kind: bytes) -> bytes:
    numbers = (
        b"0000600\0",
        b"0000000\0",
        b"0000000\0",
        b"%011o\0" % (size if size < _OCTAL else 0),
    )
    fields = (name[:100], *numbers, b"%011o\0" % modified, b" " * 8, kind, b"", b"ustar\0", b"00")
    raw = _HEADER.pack(*fields, b"root", b"root", b"0000000\0", b"0000000\0", b"")
    return raw[: _CHECKSUM.start] + b"%06o\0 " % sum(raw) + raw[_CHECKSUM.stop :]


def _extended(records: dict[bytes, bytes], modified: int) -> bytes:
    raw = b"".join(_record(key, value) for key, value in records.items())
    return _header(b"PaxHeaders/image", len(raw), modified, b"x") + raw + padding(len(raw))


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" %b=%b\n" % (key, value)
    length = len(rest)
    while length != len(b"%d" % length) + len(rest):  # the length counts its own digits
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def read_head(exactly: Exactly) -> Head:
    """Return what precedes the image; ``exactly`` reads so many bytes. Raises BadArchive."""
    first = exactly(BLOCK)
    length = _octal(first[_SIZE])
    if first[257:263] != b"ustar\0" or first[156:157] != b"x" or not 0 < length <= _MOST_EXTENDED:
        raise foreign()
    raw = exactly(length)
    rest = exactly(-length % BLOCK + BLOCK)
    records = _records(raw)
    try:
        name = records[b"GNU.sparse.name"]
        size = _number(records[b"GNU.sparse.realsize"])
    except KeyError:
        raise foreign() from None
    header = rest[-BLOCK:]
    stored = _number(records[b"size"]) if b"size" in records else _octal(header[_SIZE])
    head = Head(os.fsdecode(name), size, stored, _octal(header[_MODIFIED]))
    if head.pack() != first + raw + rest:
        raise foreign()
    if not 0 < stored <= size + _most_map_bytes(size) or size > MOST_BYTES:
        raise errors.BadArchive(
            f"the archive says that its image has {size} bytes, {stored} of them stored",
            hint="no image has that",
        )
    return head


def foreign() -> errors.BadArchive:
    """Return the error for what is no export of mapsave."""
    return errors.BadArchive(
        "the archive was not written by 'mapsave export', or its headers are damaged",
        hint="unpack another tar with 'tar -xS', and move the image to the image directory",
    )


def _records(raw: bytes) -> dict[bytes, bytes]:
    """Return the records of an extended header. Raises BadArchive."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(raw):
        match = _RECORD.match(raw, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(raw):
            raise foreign()
        found[match[2]] = raw[match.end() : end - 1]
        at = end
    return found


def _octal(field: bytes) -> int:
    """Return the number in a field of a header. Raises BadArchive."""
    digits = field.rstrip(b"\0")
    if len(digits) != len(field) - 1 or digits.strip(b"01234567"):
        raise foreign()
    return int(digits, 8)


def _number(digits: bytes) -> int:
    """Return a decimal number. Raises BadArchive."""
    if not digits.isdigit() or len(digits) > 19 or digits != b"%d" % int(digits):
        raise foreign()
    return int(digits)


def _most_extents(size: int) -> int:
    # File systems have blocks of 512 bytes at least, and a hole follows each extent.
    return size // (2 * BLOCK) + 2


def _most_map_bytes(size: int) -> int:
    line = len(b"%d\n" % size)
    return 32 + 2 * line * _most_extents(size) + BLOCK


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the extents of a file, as (offset, end), as the map has them. Raises OSError."""
    begin = end = 0
    for first, last in holes.extents(fd, 0, size):
        if first == end:
            end = last
            continue
        if begin < end:
            yield begin, end
        begin, end = first, last
    if begin < end:
        yield begin, end
    if end < size:
        yield size, size


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file is stored: its extents, the bytes of their map, padded, and of their data.

    ``digest`` is over the extents.
    """

    extents: int
    map_bytes: int
    data_bytes: int
    digest: bytes

    @property
    def stored(self) -> int:
        """Bytes of map and data."""
        return self.map_bytes + self.data_bytes


class Extents:
    """Takes the digest of extents, which may come in parts, in their order."""

    def __init__(self) -> None:
        import xxhash

        self._hash = xxhash.xxh3_128()
        self._begin = self._end = 0
        self.data_bytes = 0

    def add(self, first: int, end: int) -> None:
        """Add an extent, or more of the last one."""
        self.data_bytes += end - first
        if first > self._end:
            self._close()
            self._begin = first
        self._end = end

    def _close(self) -> None:
        self._hash.update(struct.pack("<QQ", self._begin, self._end))

    def digest(self) -> bytes:
        """Return the digest of all."""
        self._close()
        found: bytes = self._hash.digest()
        return found


def layout(fd: int, size: int, note: Note) -> Layout:
    """Return how the file ``fd`` of ``size`` bytes is stored.

    ``note`` is called with 0 now and then, and may end it. Raises OSError.
    """
    seen = Extents()
    count = length = 0
    for first, end in extents(fd, size):
        if count % _OFTEN == 0:
            note(0)
        if end > first:
            seen.add(first, end)
        count += 1
        length += len(b"%d\n%d\n" % (first, end - first))
    length += len(b"%d\n" % count)
    return Layout(count, length + -length % BLOCK, seen.data_bytes, seen.digest())


def map_of(fd: int, size: int, layout: Layout) -> Iterator[bytes]:
    """Yield the map in pieces, padded: as many bytes as ``layout`` says if it is still right."""
    piece = bytearray(b"%d\n" % layout.extents)
    length = 0
    for first, end in extents(fd, size):
        piece += b"%d\n%d\n" % (first, end - first)
        if len(piece) >= _CHUNK:
            length += len(piece)
            yield bytes(piece)
            piece.clear()
    yield bytes(piece) + padding(length + len(piece))


def read_map(exactly: Exactly, head: Head, note: Note) -> Iterator[tuple[int, int]]:
    """Yield the extents of an archive, as (offset, end); ``note`` is as for ``layout``.

    They are in order, do not touch each other, lie in the file, and have as many bytes of data as
    ``head`` says. Raises BadArchive.
    """
    numbers = _Numbers(exactly, head.stored)
    count = numbers.next()
    data, before = 0, -1
    for number in range(count):
        if number % _OFTEN == 0:
            note(0)
        first, length = numbers.next(), numbers.next()
        is_end = (first, length) == (head.size, 0)
        if first <= before or first + length > head.size or not (length or is_end):
            raise _bad_map()
        before = first + length
        data += length
        yield first, before
    # As many bytes are in the map as it has lines: that bounds them.
    if before != head.size or numbers.end() + data != head.stored:
        raise _bad_map()


class _Numbers:
    """The numbers of a map, which is read a block at a time."""

    def __init__(self, exactly: Exactly, most: int) -> None:
        self._exactly = exactly
        self._most = most
        self._length = 0
        self._rest = b""

    def next(self) -> int:
        """Return the next one. Raises BadArchive."""
        while (end := self._rest.find(b"\n")) < 0:
            if len(self._rest) >= BLOCK or self._length + BLOCK > self._most:
                raise _bad_map()
            self._rest += self._exactly(BLOCK)
            self._length += BLOCK
        digits, self._rest = self._rest[:end], self._rest[end + 1 :]
        return _number(digits)

    def end(self) -> int:
        """Return how many bytes the map has. Raises BadArchive where it goes on."""
        if self._rest.strip(b"\0"):
            raise _bad_map()
        return self._length


def _bad_map() -> errors.BadArchive:
    return errors.BadArchive("the archive is damaged: its map of holes is not a valid one")
