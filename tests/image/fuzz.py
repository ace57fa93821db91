"""Random and mutated images, and what reading one may cost."""

import os
import random
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hypothesis import settings
from hypothesis import strategies as st
from mapsave import errors
from mapsave.image import bitmaps, image, mapped_ram

from tests.image import build
from tests.kit import files

# The time limit of an example, in ms, is for a loop without bound; most take one.
FEW = settings(max_examples=150, deadline=5000)
SMALL = 64 * build.MIB
# What breaks readers: borders of types, of alignments, of the file.
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 7, 8, 63, 64, 255, 256, 4095, 4096, 4097, 65535, 65536, 1 << 20]),
    st.integers(0, 64).map(lambda bits: (1 << bits) - 1),
    st.integers(0, 63).map(lambda bits: 1 << bits),
    st.integers(0, (1 << 64) - 1),
)


GOOD = build.Image(iterations=3).built()
NUMERIC = sorted(name for name, (_, length) in GOOD.fields.items() if length in (1, 4, 8))


def survive(path: str) -> bool:
    """Do all that reading an image does; return whether it is good. No other error may come out."""
    try:
        with image.opened(path) as opened:
            contents = opened.validate()
            bitmaps.run_histogram(opened.fd, contents.stream)
    except errors.InvalidImage as error:
        assert error.message
        return False
    return True


@contextmanager
def in_memory(content: bytes, size: int | None = None) -> Iterator[str]:
    """Yield the path of a file with this content, extended by a hole to ``size``."""
    with files.in_memory() as fd:
        os.pwrite(fd, content, 0)
        os.ftruncate(fd, len(content) if size is None else size)
        yield f"/proc/self/fd/{fd}"


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail where what happens inside takes 64 MiB at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < SMALL
    finally:
        tracemalloc.stop()


def mutated(content: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """Apply changes: flip, insert, delete, duplicate at places of the content."""
    data = bytearray(content)
    for kind, place, piece in changes:
        at = place % (len(data) + 1)
        if kind == "flip" and at < len(data):
            data[at] ^= piece[0] or 1
        elif kind == "insert":
            data[at:at] = piece
        elif kind == "delete":
            del data[at : at + len(piece)]
        elif kind == "duplicate":
            data[at:at] = data[at : at + 32 * len(piece)]
    return bytes(data)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "duplicate"]),
        st.integers(0, 1 << 24),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def boundaries(stream: mapped_ram.Stream) -> set[int]:
    """Return the offsets in a stream where something begins or ends."""
    found = {stream.offset, stream.description_offset, stream.description_offset - 5}
    for block in stream.blocks:
        found |= {block.bitmap_offset, block.bitmap_offset + block.bitmap_bytes}
        found |= {block.bitmap_offset - 28, block.pages_offset, block.end}
    for device in stream.devices:
        head = 4 + 1 + 1 + len(device.name) + 8
        found |= {device.offset - head, device.offset, device.offset + device.length}
        found.add(device.offset + device.length + 5)
    return found


def places(marks: Iterable[int], size: int) -> list[int]:
    """Return each mark, the bytes beside it, and 200 random places; all within the file."""
    near = {mark + by for mark in marks for by in (-1, 0, 1)}
    generator = random.Random(1)
    return sorted(
        at for at in near | {generator.randrange(size) for _ in range(200)} if 0 <= at < size
    )
