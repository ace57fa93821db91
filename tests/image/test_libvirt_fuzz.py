"""Random and mutated images in libvirt format: only the declared errors, and little memory."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapsave import errors
from mapsave.image import image, libvirt_header
from mapsave.image.superblock import State

from tests.image import build, build_libvirt
from tests.image.build_libvirt import PART, SAVE, LibvirtImage, of_virsh
from tests.image.fuzz import CHANGES, FEW, NUMBERS, in_memory, little_memory, mutated, survive
from tests.kit import files

NUMBERS32 = NUMBERS.map(lambda number: number & 0xFFFFFFFF)
MADE = st.sampled_from([LibvirtImage(), of_virsh(), of_virsh(cookie=None)])


@FEW
@given(st.sampled_from([SAVE, PART]), st.binary(max_size=9000))
def test_random_bytes_behind_the_magic(magic: bytes, content: bytes) -> None:
    with in_memory(magic + content) as path, little_memory():
        assert not survive(path)


@FEW
@given(
    st.sampled_from([SAVE, PART]),
    st.tuples(st.sampled_from([0, 1, 2, 2, 2, 3]) | NUMBERS32, NUMBERS32, NUMBERS32),
    st.sampled_from([0, 6, 6, 6, 7]) | NUMBERS32,
    st.sampled_from([0, len(build_libvirt.XML) + 1]) | NUMBERS32,
    st.sampled_from([build.M, 1 << 20, 1 << 33]),
)
def test_numbers_of_the_header(
    magic: bytes, numbers: tuple[int, int, int], number: int, cookie: int, size: int
) -> None:
    head = magic + struct.pack("=IIIII", *numbers, number, cookie) + bytes(56)
    texts = build_libvirt.XML + b"\0" + build_libvirt.COOKIE + b"\0"
    with in_memory(head + texts, size) as path, little_memory():
        survive(path)


@FEW
@given(MADE, st.integers(0, 0xFFFFFFFF), NUMBERS32)
def test_one_number_of_a_good_image(made: LibvirtImage, which: int, value: int) -> None:
    names = ["version", "data_length", "was_running", "format", "cookie_offset"]
    name = names[which % len(names)]
    built = made.built().patched(f"lv.{name}", struct.pack("=I", value))
    with built.opened() as path, little_memory():
        survive(path)


@FEW
@given(MADE, CHANGES)
def test_mutations_of_the_header(made: LibvirtImage, changes: list[tuple[str, int, bytes]]) -> None:
    built = made.built()
    content = bytearray(made.offset)
    for at, piece in built.pieces:
        if at < made.offset:
            content[at : at + len(piece)] = piece
    texts = built.fields["lv.padding"][0]
    # Places in the texts, and in what stands before the stream: else most would hit the padding.
    spread = [(kind, at % (texts + 64) if at & 1 else -at, data) for kind, at, data in changes]
    header = mutated(bytes(content), spread)[: made.offset].ljust(made.offset, b"\0")
    stream = [(at, data) for at, data in built.pieces if at >= made.offset]
    with build.Built([(0, header), *stream], built.size, {}).opened() as path, little_memory():
        if survive(path):
            with image.opened(path) as opened:
                marked_or_left(opened, header)


def marked_or_left(opened: image.Image, header: bytes) -> None:
    """Mark a good image: it stays good, and nothing but the slots changes; or it is left alone."""
    offset = opened.block.stream_offset
    try:
        opened.mark(State.RESTORED)
    except OSError:
        assert os.pread(opened.fd, len(header), 0) == header
        return
    slots = offset - 8192 if opened.libvirt is not None else 0
    now = os.pread(opened.fd, len(header), 0)
    assert now[:slots] == header[:slots]
    opened.reread()
    assert opened.block.state is State.RESTORED
    opened.validate()


@FEW
@given(st.text(max_size=300), st.none() | st.text(max_size=50))
def test_any_text(xml: str, cookie: str | None) -> None:
    made = of_virsh(xml=xml.encode(), cookie=None if cookie is None else cookie.encode())
    with made.built().opened() as path:
        survive(path)


@FEW
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "state": st.integers(0, 5),
            "version": st.integers(0, 3),
            "sequence": NUMBERS,
            "stream_offset": NUMBERS,
            "file_length": NUMBERS,
            "metadata_offset": NUMBERS,
            "metadata_length": NUMBERS,
            "digest": st.tuples(NUMBERS, NUMBERS),
            "must": NUMBERS,
        },
    )
)
def test_numbers_of_the_slots(header: dict[str, int]) -> None:
    with LibvirtImage(header=header).built().opened() as path, little_memory():
        survive(path)


@FEW
@given(st.text(), st.none() | st.text(), st.booleans(), st.integers(-10, 10))
def test_what_is_written_is_read(
    xml: str, cookie: str | None, was_running: bool, extra: int
) -> None:
    new = libvirt_header.NewLibvirtHeader(xml, cookie, was_running)
    try:
        header = libvirt_header.laid_out(new, libvirt_header.text_length(new) + extra)
    except ValueError:
        assert not xml or "\0" in xml + (cookie or "") or extra < 0
        return
    with in_memory(b"") as path, files.opened(path, os.O_RDWR) as fd:
        libvirt_header.write(fd, header)
        assert libvirt_header.read(fd) == header


@pytest.mark.parametrize("made", [LibvirtImage(), of_virsh()])
def test_images_that_are_mutated_are_good(made: LibvirtImage) -> None:
    with made.built().opened() as path:
        assert survive(path)


def test_magic_alone_is_truncated() -> None:
    with in_memory(SAVE) as path, pytest.raises(errors.TruncatedImage), image.opened(path):
        pass
