"""Each field of the stream, made wrong: what the reader says, and that it says nothing else."""

import re
import struct
from dataclasses import replace
from typing import Any

import pytest
from mapsave import errors

from tests.image import build, ours

FULL = (1 << 64) - 1


def refused(built: build.Built) -> errors.InvalidImage:
    with pytest.raises(errors.InvalidImage) as caught:
        ours.validated(built)
    return caught.value


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("magic", b"QEVN", errors.NotAnImage, "no QEMU stream at offset 65536"),
        ("version", 4, errors.UnsupportedImage, "version 4"),
        ("configuration", 6, errors.InvalidImage, "no configuration"),
        ("machine.length", 0, errors.InvalidImage, "machine name of 0"),
        ("machine.length", 0xFFFFFFFF, errors.InvalidImage, "machine name of 4294967295"),
        ("machine", b"pc\0q35-10.0", errors.InvalidImage, "not a name"),
        ("machine", b"pc-q35-\xff\xfe.0", errors.InvalidImage, "not a name"),
        ("subsection.name.length", 0, errors.InvalidImage, "not a name"),
        ("subsection.name", b"configuration/capabilitieZ", errors.UnsupportedImage, "unknown"),
        ("subsection.count", 0xFFFFFFFF, errors.InvalidImage, "4294967295 capabilities"),
        ("subsection.count", 0, errors.InvalidImage, "unknown section type"),
        ("subsection.data", b"\x0amapped-rum", errors.UnsupportedImage, "mapped-ram"),
        ("ram.type", 9, errors.InvalidImage, "unknown section type 0x09"),
        ("ram.name", b"rom", errors.UnsupportedImage, "iterative section 'rom'"),
        ("ram.version", 3, errors.UnsupportedImage, "version 3"),
        ("ram.total", build.MIB + 40960, errors.InvalidImage, "flags 0x0"),
        ("ram.total", build.MIB + 40960 | 0x14, errors.InvalidImage, "flags 0x14"),
        ("ram.total", 4, errors.InvalidImage, "no RAM blocks"),
        ("ram.total", build.MIB + 36864 | 4, errors.InvalidImage, "exceeds the RAM size"),
        ("ram.total", build.MIB | 4, errors.InvalidImage, "expected the end mark"),
        ("ram.total", build.MIB + 45056 | 4, errors.InvalidImage, "not a name"),
        ("ram.total", FULL & ~0xFFF | 4, errors.UnsupportedImage, "bytes of RAM, more than"),
        ("block0.name.length", 0, errors.InvalidImage, "not a name"),
        ("block0.length", 0, errors.InvalidImage, "length 0"),
        ("block0.length", build.MIB + 1, errors.InvalidImage, "length 1048577"),
        ("block0.length", build.MIB + 4096, errors.InvalidImage, ""),
        ("block0.length", 1 << 40, errors.TruncatedImage, "in a file of"),
        ("block0.length", FULL & ~0xFFF, errors.TruncatedImage, "in a file of"),
        ("block0.version", 2, errors.UnsupportedImage, "mapped-ram version 2"),
        ("block0.version", 0, errors.UnsupportedImage, "mapped-ram version 0"),
        ("block0.page_size", 0, errors.InvalidImage, "page size 0"),
        ("block0.page_size", 1, errors.InvalidImage, "page size 1"),
        ("block0.page_size", 4095, errors.InvalidImage, "page size 4095"),
        ("block0.page_size", 6144, errors.InvalidImage, "page size 6144"),
        ("block0.page_size", 1 << 17, errors.InvalidImage, "page size 131072"),
        ("block0.page_size", FULL, errors.InvalidImage, "page size"),
        ("block0.bitmap_offset", 0, errors.InvalidImage, "bitmap at 0"),
        ("block0.bitmap_offset", FULL, errors.InvalidImage, "bitmap at"),
        ("block0.pages_offset", 0, errors.InvalidImage, "pages at 0"),
        ("block0.pages_offset", build.MIB + 1, errors.InvalidImage, "pages at 1048577"),
        ("block0.pages_offset", 2 * build.MIB, errors.InvalidImage, "pages at 2097152"),
        ("block1.pages_offset", build.MIB, errors.InvalidImage, "pages at 1048576"),
        ("block0.pages_offset", FULL & ~0xFFF, errors.InvalidImage, "pages at"),
        ("block1.bitmap", b"\0\2\0\0\0\0\0\x80", errors.InvalidImage, "after its last page"),
        ("block1.bitmap", b"\0\6\0\0\0\0\0\0", errors.InvalidImage, "after its last page"),
        ("setup.mark", 0x20, errors.InvalidImage, "flags 0x20"),
        ("setup.mark", 0, errors.InvalidImage, "flags 0x0"),
        ("setup.mark", 0x210, errors.InvalidImage, "flags 0x210"),
        ("setup.footer", b"\x7e\0\0\0\3", errors.InvalidImage, "wrong section footer"),
        ("setup.footer", b"\x7f\0\0\0\2", errors.InvalidImage, "wrong section footer"),
        ("part0.id", 3, errors.InvalidImage, "section 3 .* never started"),
        ("part0.type", 1, errors.InvalidImage, ""),
        ("part0.type", 3, errors.InvalidImage, "never started"),
        ("part1.mark", 0x08, errors.InvalidImage, "flags 0x8"),
        ("part1.footer", b"\x7e\0\0\0\3", errors.InvalidImage, "wrong section footer"),
        ("switchover", bytes.fromhex("08 000c 0000"), errors.UnsupportedImage, "0xc"),
        ("switchover", bytes.fromhex("08 000b 0001"), errors.UnsupportedImage, "0xb"),
        ("end.type", 2, errors.InvalidImage, "no complete RAM"),
        ("end.footer", b"\x7e\0\0\0\0", errors.InvalidImage, "wrong section footer"),
        ("device0.type", 0x55, errors.InvalidImage, "unknown section type 0x55"),
        ("device0.name", b"\0lobalstate", errors.InvalidImage, "not a name"),
        ("device0.name", b"Globalstate", errors.InvalidImage, "names differ"),
        ("device1.footer", b"\x7e\0\0\0\5", errors.InvalidImage, "inside state of device"),
        ("device2.footer", b"\0\0\0\0\0", errors.TruncatedImage, "0000:00:02.0/vga"),
        ("eof", 1, errors.TruncatedImage, "0000:00:02.0/vga"),
        ("description.length", 0, errors.InvalidImage, "after the JSON description"),
        ("description.length", 10, errors.InvalidImage, "after the JSON description"),
        ("description.length", 0xFFFFFFFF, errors.TruncatedImage, "JSON description"),
    ],
)  # fmt: skip
def test_wrong_field(name: str, value: int | bytes, error: type[Exception], words: str) -> None:
    caught = refused(build.Image().built().patched(name, value))
    assert isinstance(caught, error), repr(caught)
    assert re.search(words, caught.message), caught.message


def test_every_field_of_a_good_image_can_be_read() -> None:
    # What the table above changes is good before.
    assert ours.validated(build.Image().built()).used_pages == (5, 1)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"blocks": []}, errors.InvalidImage, "no RAM blocks"),
        ({"blocks": [build.Block("a", 4096)] * 2}, errors.InvalidImage, "appears twice"),
        ({"blocks": [build.Block("a", 4096, page_size=512)]}, errors.InvalidImage, "page size 512"),
        ({"capabilities": ()}, errors.UnsupportedImage, "not saved with mapped-ram"),
        (
            {"capabilities": (b"x-ignore-shared", b"mapped-ram")},
            errors.UnsupportedImage,
            "x-ignore-shared",
        ),
        ({"capabilities": (b"\xff",)}, errors.InvalidImage, "not a name"),
        ({"capabilities": (b"c",) * 65}, errors.InvalidImage, "65 capabilities"),
        ({"machine": b"m" * 256}, errors.InvalidImage, "256 bytes"),
        (
            {"subsections": ((b"configuration/target-page-bits", b"\xff" * 4),)},
            errors.InvalidImage,
            "4294967295",
        ),
        (
            {"subsections": ((b"configuration/target-page-bits", b"\0\0\0\x0d"),)},
            errors.InvalidImage,
            "2\\^13",
        ),
        (
            {"subsections": ((b"configuration/uuid", bytes(16)),) * 2},
            errors.InvalidImage,
            "appears twice",
        ),
    ],
)
def test_wrong_whole(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    caught = refused(replace(build.Image(), **changes).built())
    assert isinstance(caught, error), repr(caught)
    assert re.search(words, caught.message), caught.message


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"{\xff}",
        b'{"devices": {}}',
        b'{"devices": "abc"}',
        b'{"devices": [1, 2, 3]}',
        b'{"devices": [{}, {}, {}]}',
        b'{"devices": [{"name": "globalstate"}]}',
        b'{"devices": [[["globalstate"]], {"name": {}}, {"name": []}]}',
        b'{"devices": ' + b"[" * 100_000,
        b'{"devices": ' + b"1" * 10_000 + b"}",
        b'{"a": "' + b"x" * 100_000,
    ],
)  # fmt: skip
def test_damaged_description(description: bytes) -> None:
    if description:
        refused(build.Image(description=description).built())
    else:  # of no bytes, it is the same as none
        ours.validated(build.Image(description=description).built())


def test_description_of_other_devices() -> None:
    devices = build.default_devices()
    swapped = build.Image(devices=[devices[1], devices[0], devices[2]]).built()
    offset, length = swapped.fields["description"]
    own = build.Image().built()
    text = next(data for at, data in own.pieces if at == own.fields["description"][0])
    assert len(text) == length
    assert "names differ" in refused(swapped.patched("description", text)).message
    assert offset > 0


def test_second_ram_section() -> None:
    built = build.Image().built()
    start = built.fields["ram.type"][0]
    head = struct.pack(">BIB3sII", 1, 9, 3, b"ram", 0, 4)
    assert built.fields["part0.type"][0] > start
    # It stands where the iterations were; what follows no longer matters.
    at = built.fields["part0.type"][0]
    twice = build.Built([*built.pieces, (at, head)], built.size, built.fields)
    assert "second RAM section" in refused(twice).message


def test_ram_section_that_goes_on_after_its_end() -> None:
    built = build.Image(switchover=False, iterations=1).built()
    swapped = built.patched("part0.type", 3).patched("end.type", 2)
    assert "never started" in refused(swapped).message


def test_pages_beyond_the_end_of_the_file() -> None:
    built = build.Image().built()
    damaged = built.patched("block1.length", 1 << 21).patched("ram.total", (3 << 20) | 4)
    caught = refused(damaged)
    assert isinstance(caught, errors.TruncatedImage)
    assert caught.data["expected"] > caught.data["size"] == built.size
