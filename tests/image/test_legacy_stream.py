"""Streams with page records: read as QEMU writes them, refused where they are anything else."""

import struct

import pytest
from mapsave import errors
from mapsave.image import legacy_stream, mapped_ram, stream_parts
from mapsave.image.legacy_stream import LegacyStream

from tests.image import build, build_legacy
from tests.image.build_legacy import CONTINUE, DATA, PAGE, Legacy, Record, contents
from tests.kit import files


def _read(data: bytes, architecture: str = "x86_64") -> LegacyStream:
    with build_legacy.opened(data) as fd:
        return legacy_stream.read(fd, len(data), architecture)


def test_blocks_and_pages() -> None:
    data = Legacy().built()
    stream = _read(data)
    assert stream.machine == "pc-q35-10.0"
    found = {each.name: each for each in stream.pages}
    assert [(each.name, each.used_length) for each in stream.pages] == Legacy().blocks
    assert not found["shared"].is_there and not found["shared"].places
    assert found["other"].is_there and not found["other"].places
    places = found["small"].places
    assert {page: data[at : at + PAGE] for page, at in places.items()} == {
        0: contents(10),
        2: contents(12),
    }


def test_its_parts_are_those_of_the_mapped_ram_stream() -> None:
    """All but RAM blocks and parts is as in the stream that QEMU writes with mapped-ram."""
    blocks = [build.Block(name, length) for name, length in Legacy().blocks]
    whole = build.Image(blocks=blocks, iterations=0, offset=build.M).built()
    with whole.opened() as path, files.opened(path) as fd:
        wanted = stream_parts.take_apart(fd, mapped_ram.read(fd, build.M, whole.size))
    parts = _read(Legacy().built()).parts
    assert (parts.head, parts.tail) == (wanted.head, wanted.tail)


def test_devices_before_the_ram_section_stay_before_it() -> None:
    early = b"\x04" + struct.pack(">I", 9) + b"\x05early" + struct.pack(">II", 0, 1) + b"state"
    early += b"\x7e" + struct.pack(">I", 9)
    parts = _read(Legacy(early=early).built()).parts
    assert early in parts.head
    assert early not in parts.tail


def test_a_page_that_is_sent_again() -> None:
    again = [[], [Record(0, contents(1), "small"), Record(1, contents(2))], []]
    again[2] = [Record(0, None, "small"), Record(1, contents(3))]
    data = Legacy(records=again).built()
    (small,) = (each for each in _read(data).pages if each.name == "small")
    assert list(small.places) == [1]
    assert data[small.places[1] :][:PAGE] == contents(3)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (Record(4, contents(1), "small"), "is in none of the RAM blocks"),
        (Record(0, contents(1), "unknown"), "is in none of the RAM blocks"),
        (Record(0, contents(1)), "is in none of the RAM blocks"),
        (Record(0, contents(1), "small", flags=DATA | 0x40), "RAM flags 0x48"),
        (Record(0, contents(1), "small", flags=DATA | 0x02), "RAM flags 0xa"),
        (Record(0, contents(1), "small", flags=0), "RAM flags 0x0"),
        (Record(0, None, "small", fill=b"\1"), "is filled with a byte"),
    ],
)
def test_records_that_are_refused(record: Record, problem: str) -> None:
    with pytest.raises(errors.InvalidImage, match=problem):
        _read(Legacy(records=[[], [record], []]).built())


@pytest.mark.parametrize("names", [(), (b"mapped-ram",), (b"x-ignore-shared", b"mapped-ram")])
def test_other_capabilities_are_refused(names: tuple[bytes, ...]) -> None:
    with pytest.raises(errors.UnsupportedImage, match="expected x-ignore-shared"):
        _read(Legacy(capabilities=names).built())


def test_an_unknown_page_size_is_refused() -> None:
    with pytest.raises(errors.UnsupportedImage, match="page size of xtensa"):
        _read(Legacy().built(), "xtensa")


@pytest.mark.parametrize("machine", [b"none", b"s390-ccw-virtio-10.0"])
def test_the_architecture_says_the_page_size(machine: bytes) -> None:
    found = _read(Legacy(machine=machine).built(), "s390x")
    assert {each.page_size for each in found.pages} == {PAGE}


def test_no_cut_is_taken_for_a_whole_stream() -> None:
    """Wherever the file ends before the description's end, that is found."""
    data = Legacy().built()
    ends = data.rindex(b"\x06", 0, data.rindex(b'{"configuration"'))
    for end in [*range(600), *range(600, ends, 97)]:
        with pytest.raises(errors.InvalidImage):
            _read(data[:end])


def test_changed_bytes_never_do_more_than_be_refused() -> None:
    data = bytearray(Legacy().built())
    for at in [*range(400), *range(400, len(data), 211)]:
        for value in (0, 0xFF, data[at] ^ 0x10):
            changed = bytes(data[:at]) + bytes([value]) + bytes(data[at + 1 :])
            try:
                found = _read(changed)
            except errors.InvalidImage:
                continue
            assert all(
                at + each.page_size <= len(data)
                for each in found.pages
                for at in each.places.values()
            )


def test_a_record_may_continue_in_the_next_part() -> None:
    """QEMU remembers the block of the last page throughout (``ram_block_from_stream``)."""
    records = [[], [Record(0, contents(1), "small")], [Record(1, contents(2))]]
    assert records[2][0].encoded()[7] & CONTINUE
    (small,) = (each for each in _read(Legacy(records=records).built()).pages if each.places)
    assert sorted(small.places) == [0, 1]
