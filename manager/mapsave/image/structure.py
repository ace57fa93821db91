"""The digest of a stream's structure: all that QEMU wrote but the pages themselves.

A bit that turns in a bitmap makes QEMU leave a page out of the restore, without a word; one in
the device state restores another device. Both look valid to a reader of the structure only.
"""

import hashlib
import os
import struct
from collections.abc import Iterator

from mapsave import errors, units
from mapsave.image import bitmaps
from mapsave.image.mapped_ram import Stream

_CHUNK = 64 * units.KIB
_PLACE = struct.Struct("<QQ")


def digest(fd: int, stream: Stream) -> str:
    """Return the SHA-256 over the stream's structure, in hex.

    Of each stretch between pages: its first and last offset in the file, then each piece of 64 KiB,
    counted from its beginning, that is not all zeros, with offset and length. So a hole counts as
    zeros, and costs nothing. Raises TruncatedImage where the file has shrunk since it was read,
    OSError.
    """
    hashed = hashlib.sha256()
    for first, last in _stretches(stream):
        hashed.update(_PLACE.pack(first, last))
        for offset, data in _pieces(fd, first, last):
            hashed.update(_PLACE.pack(offset, len(data)))
            hashed.update(data)
    return hashed.hexdigest()


def check(fd: int, stream: Stream, recorded: str | None) -> None:
    """Raise InvalidImage where the stream's structure has another digest than the one recorded.

    Older images have none: nothing is known of them then. Raises TruncatedImage, OSError.
    """
    if recorded is not None and recorded != digest(fd, stream):
        raise errors.InvalidImage(
            "the stream is damaged: a bitmap, a record or the state of a device (digest does not "
            "match)",
            hint="restore from another copy",
        )


def _stretches(stream: Stream) -> Iterator[tuple[int, int]]:
    """Yield what is not pages, nor the hole that a bitmap has up to its pages."""
    at = stream.offset
    for block in stream.blocks:
        yield at, block.bitmap_offset + block.bitmap_bytes
        at = block.end
    yield at, stream.end


def _pieces(fd: int, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    at = first
    while at < last:
        at += (min(bitmaps.data_from(fd, at), last) - at) // _CHUNK * _CHUNK
        wanted = min(_CHUNK, last - at)
        if wanted <= 0:
            return
        data = os.pread(fd, wanted, at)
        if len(data) < wanted:
            raise errors.TruncatedImage(f"the stream is cut short at offset {at + len(data)}")
        if data.strip(b"\0"):
            yield at, data
        at += wanted
