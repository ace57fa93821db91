"""A working set: which pages of its RAM a guest touched after a restore, in a file of its own.

The file has a head of 48 bytes, a description in JSON, and a bitmap for each RAM block. The head is
the magic, the format's version, the length of the description (both 32 bits, big-endian), and the
SHA-256 of all that follows it. A bitmap has a bit for each ``page_bytes`` of the block, the lowest
bit first, and as many bytes as that takes. Pages are those of the RAM block, not of a file, so a
working set holds for each image of that guest.
"""

import dataclasses
import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec
from bitarray import bitarray

from mapsave import typed
from mapsave.image import bitmaps
from mapsave.image.mapped_ram import RamBlock, Stream

VERSION = 1
MOST_BYTES = 64 << 20  # a file of 2 TiB of RAM
_MAGIC = b"MAPSAVEW"
_HEAD = struct.Struct(">8sII32s")
_PAGE_BYTES = range(512, (1 << 20) + 1)

By = Literal["save", "learn"]


class _Block(msgspec.Struct, frozen=True):
    name: str
    pages: int


class _Description(msgspec.Struct, frozen=True):
    uuid: str
    by: By
    recorded: float
    page_bytes: int
    blocks: tuple[_Block, ...]


@dataclasses.dataclass(frozen=True)
class WorkingSet:
    """The working set of an image: by RAM block, a bit for each page of ``page_bytes``.

    ``uuid`` is the image's, ``by`` what recorded it at the time ``recorded``.
    """

    uuid: str
    by: By
    recorded: float
    page_bytes: int
    blocks: Mapping[str, bitarray]

    @property
    def total_bytes(self) -> int:
        """The bytes of its pages, be they zeros in the image or not."""
        return sum(bits.count() for bits in self.blocks.values()) * self.page_bytes

    def encoded(self) -> bytes:
        """Return the file. Raises ValueError where the RAM is too large for one."""
        described = _Description(
            self.uuid,
            self.by,
            self.recorded,
            self.page_bytes,
            tuple(_Block(name, len(bits)) for name, bits in self.blocks.items()),
        )
        description = msgspec.json.encode(described)
        rest = b"".join([description, *(bits.tobytes() for bits in self.blocks.values())])
        if _HEAD.size + len(rest) > MOST_BYTES:
            raise ValueError("there is too much RAM for a working set")
        digest = hashlib.sha256(rest).digest()
        return _HEAD.pack(_MAGIC, VERSION, len(description), digest) + rest

    def stored(self, fd: int, stream: Stream) -> Iterator[tuple[RamBlock, bitarray]]:
        """Yield, by RAM block of an image, its pages that the image ``fd`` has contents for.

        Blocks that the image has not, or of another size, are left out. Raises TruncatedImage.
        """
        for block in stream.blocks:
            bits = self.blocks.get(block.name)
            if bits is None or len(bits) * self.page_bytes != block.used_length:
                continue
            if block.page_size == self.page_bytes:
                used = bitmaps.empty(len(bits))
                for first, found in bitmaps.chunks(fd, block):
                    end = min(first + len(found), len(bits))
                    used[first:end] = found[: end - first]
                bits = bits & used
            yield block, bits

    def joined(self, other: "WorkingSet | None") -> "WorkingSet":
        """Return it with the pages that ``other`` has as well."""
        if other is None or other.page_bytes != self.page_bytes:
            return self
        blocks = {**other.blocks, **self.blocks}
        for name, bits in self.blocks.items():
            if len(before := other.blocks.get(name, bits)) == len(bits):
                blocks[name] = bits | before
        return dataclasses.replace(self, blocks=blocks)


def collected(
    blocks: Iterable[RamBlock], pieces: Iterable[tuple[int, bitarray]], page_bytes: int
) -> dict[str, bitarray]:
    """Return the pages by RAM block of ``pieces`` of an image: (offset in the file, bits)."""
    found = {block: bitmaps.empty(block.used_length // page_bytes) for block in blocks}
    for offset, bits in pieces:
        for block, into in found.items():
            at = (offset - block.pages_offset) // page_bytes
            begin, end = max(at, 0), min(at + len(bits), len(into))
            if begin < end:
                into[begin:end] |= bits[begin - at : end - at]
    return {block.name: bits for block, bits in found.items() if bits.any()}


def decode(raw: bytes) -> WorkingSet:
    """Return what a file holds. Raises ValueError, which says what is wrong with it."""
    if len(raw) < _HEAD.size or len(raw) > MOST_BYTES:
        raise ValueError("it has the wrong length")
    magic, version, length, digest = _HEAD.unpack_from(raw)
    if magic != _MAGIC:
        raise ValueError("it is not a working set")
    if version != VERSION:
        raise ValueError(f"it is of version {version} of the format, not {VERSION}")
    rest = memoryview(raw)[_HEAD.size :]
    if length > len(rest) or hashlib.sha256(rest).digest() != digest:
        raise ValueError("it is damaged (digest does not match)")
    described = typed.decode(bytes(rest[:length]), _Description)
    if described.page_bytes not in _PAGE_BYTES or any(b.pages < 0 for b in described.blocks):
        raise ValueError("its description makes no sense")
    sizes = [-(-block.pages // 8) for block in described.blocks]
    if sum(sizes) != len(rest) - length or len(dict.fromkeys(described.blocks)) != len(sizes):
        raise ValueError("its bitmaps are not those of its description")
    blocks, at = {}, length
    for block, size in zip(described.blocks, sizes, strict=True):
        bits = bitarray(bytes(rest[at : at + size]), endian="little")
        del bits[block.pages :]
        blocks[block.name], at = bits, at + size
    return WorkingSet(
        described.uuid, described.by, described.recorded, described.page_bytes, blocks
    )
