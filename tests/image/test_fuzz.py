"""Random and mutated images: only the declared errors come out, and memory stays small."""

import os
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import errors
from mapsave.image import image, superblock, validation

from tests.image import build
from tests.image.conftest import Real
from tests.image.fuzz import (
    CHANGES,
    FEW,
    GOOD,
    NUMBERS,
    NUMERIC,
    in_memory,
    little_memory,
    mutated,
    survive,
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
    )
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
