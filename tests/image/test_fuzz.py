"""Random and mutated images: only the declared errors come out, and memory stays small."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import errors
from mapsave.image import bitmaps, image, superblock, validation

from tests.image import build

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.image.conftest import Real

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
    """Do all that reading an image does; tell whether it is good. No other error may come out."""
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
    fd = os.memfd_create("fuzz")
    try:
        os.pwrite(fd, content, 0)
        os.ftruncate(fd, len(content) if size is None else size)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


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


@FEW
@given(st.binary(max_size=9000))
def test_random_bytes(content: bytes) -> None:
    with in_memory(content) as path:
        assert not survive(path)


@FEW
@given(st.binary(max_size=400), st.sampled_from(["", "magic", "machine", "ram.total", "end.type"]))
def test_random_bytes_behind_a_good_beginning(content: bytes, begin: str) -> None:
    end = GOOD.fields[begin][0] if begin else build.M
    beginning = [(at, data) for at, data in GOOD.pieces if build.M <= at < end]
    size = max(end + len(content), build.M)
    header = [(0, build.slot(file_length=size, metadata=b"{}")), (8192, b"{}")]
    with build.Built([*beginning, *header, (end, content)], size, {}).opened() as path:
        assert not survive(path)


@FEW
@given(CHANGES)
def test_mutations_of_the_stream(changes: list[tuple[str, int, bytes]]) -> None:
    # Pages and holes are most of the file, and nothing looks at them: mutate what lies around.
    head = GOOD.fields["block0.pages"][0] - GOOD.fields["magic"][0]
    start, end = GOOD.fields["setup.mark"][0], GOOD.size
    image_bytes = _content(GOOD)
    used = GOOD.fields["block0.bitmap"][0] + 32
    front = mutated(image_bytes[build.M : used], changes[::2])
    back = mutated(image_bytes[start:end], changes[1::2])
    front = front[:head].ljust(head, b"\0")
    whole = image_bytes[: build.M] + front + image_bytes[build.M + head : start] + back
    with in_memory(whole) as path:
        fd = os.open(path, os.O_RDONLY)
        try:
            validation.validate_stream(fd, build.M, len(whole))
        except errors.InvalidImage:
            pass
        finally:
            os.close(fd)


@FEW
@given(CHANGES)
def test_mutations_of_the_header(changes: list[tuple[str, int, bytes]]) -> None:
    header = _content(GOOD)[:9000]
    with in_memory(mutated(header, changes), size=GOOD.size) as path:
        assert not survive(path) or mutated(header, changes)[:8300] == header[:8300]


@FEW
@given(st.lists(st.tuples(st.sampled_from(NUMERIC), NUMBERS), min_size=1, max_size=3))
def test_numbers_of_the_stream(changes: list[tuple[str, int]]) -> None:
    built = GOOD
    for name, value in changes:
        built = built.patched(name, value & ((1 << 8 * GOOD.fields[name][1]) - 1))
    with built.opened() as path, little_memory():
        survive(path)


@FEW
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "state": NUMBERS.map(lambda value: value & 0xFFFFFFFF),
            "version": st.integers(0, 3),
            "sequence": NUMBERS,
            "stream_offset": NUMBERS,
            "file_length": NUMBERS,
            "metadata_offset": NUMBERS,
            "metadata_length": NUMBERS,
            "digest": st.tuples(NUMBERS, NUMBERS),
            "must": NUMBERS,
            "optional": NUMBERS,
        },
    ),
)
def test_numbers_of_the_superblock(header: dict[str, int]) -> None:
    # The checksum is right: this is an image that somebody made to hurt.
    with build.Image(header=header).built().opened() as path, little_memory():
        survive(path)


@FEW
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_metadata(metadata: bytes) -> None:
    with build.Image(metadata=metadata).built().opened() as path:
        survive(path)


@pytest.mark.qemu
def test_mutations_of_real_images(real: Real) -> None:
    content = real.path.read_bytes()
    with image.opened(real.path) as opened:
        start = opened.validate().stream.blocks[-1].end
    descriptor = os.memfd_create("real")
    path = f"/proc/self/fd/{descriptor}"

    @settings(FEW, max_examples=40)
    @given(CHANGES)
    def run(changes: list[tuple[str, int, bytes]]) -> None:
        tail = mutated(content[start:], changes)
        os.ftruncate(descriptor, start)
        os.pwrite(descriptor, tail, start)
        fd = os.open(path, os.O_RDONLY)
        try:
            validation.validate_stream(fd, build.MIB, start + len(tail))
        except errors.InvalidImage:
            pass
        finally:
            os.close(fd)

    try:
        os.pwrite(descriptor, content, 0)
        run()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("hostile", ["metadata", "page bits", "description", "nested", "devices"])
def test_memory_for_lengths_that_lie(hostile: str) -> None:
    gib = 1 << 30
    made = build.Image()
    size = 0
    if hostile == "metadata":
        made.header = {"stream_offset": gib, "metadata_length": gib - 8192, "file_length": 2 * gib}
        size = 2 * gib
    elif hostile == "page bits":
        made.subsections = ((b"configuration/target-page-bits", b"\xff" * 4),)
    elif hostile == "description":
        made.description = b"[" + b'"a",' * (1 << 20)
    elif hostile == "nested":
        made.description = b'{"devices": [' + b"{}," * (1 << 20) + b"{}]}"
    else:
        made.devices = [build.Device("d", n, b"x") for n in range(10, 30_000)]
    built = made.built()
    with build.Built(built.pieces, size or built.size, {}).opened() as path, little_memory():
        assert survive(path) is (hostile == "devices")


def test_terabyte_of_holes_is_not_searched() -> None:
    built = build.Image().built()
    end = built.fields["device2.footer"][0]
    pieces = [(at, data) for at, data in built.pieces if at < end and at >= 2 * build.SLOT]
    size = 1 << 40
    header = (0, build.slot(metadata=build.Image().metadata, file_length=size))
    before = time.process_time()
    with (
        build.Built([*pieces, header], size, {}).opened() as path,
        little_memory(),
        image.opened(path) as opened,
        pytest.raises(errors.UnsupportedImage, match="of device state"),
    ):
        opened.validate()
    # All of it would take minutes: this is no measurement.
    assert time.process_time() - before < 30


def test_superblock_of_an_image_with_a_forged_sequence_cannot_break_an_update() -> None:
    last = superblock.MAX_SEQUENCE - 1
    header = {"sequence": last}
    with build.Image(header=header).built().opened() as path, image.opened(path) as opened:
        opened.mark(superblock.State.RESTORED)
        assert opened.block.sequence == last + 1


def _content(built: build.Built) -> bytes:
    data = bytearray(built.size)
    for at, piece in built.pieces:
        data[at : at + len(piece)] = piece
    return bytes(data)


def test_content_is_that_of_the_file() -> None:
    with in_memory(_content(GOOD)) as path:
        assert survive(path)
    assert struct.unpack_from(">I", _content(GOOD), build.M)[0] == 0x5145564D
