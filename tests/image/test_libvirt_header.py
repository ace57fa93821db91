"""libvirt's header: what is written is what its description says, what lies is refused."""

import dataclasses
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mapsave import errors
from mapsave.image import libvirt_header
from mapsave.image.libvirt_header import LibvirtHeader, NewLibvirtHeader

from tests.image import build, build_libvirt
from tests.image.build_libvirt import COOKIE, HEADER, PART, SAVE, XML
from tests.image.fuzz import little_memory
from tests.kit import files

TEXTS = XML + b"\0" + COOKIE + b"\0"
GOOD: dict[str, Any] = {"cookie_offset": len(XML) + 1}


@contextmanager
def file(content: bytes, size: int = build.M) -> Iterator[int]:
    """Yield a descriptor of a file of this content, extended by a hole to ``size``."""
    with files.in_memory() as fd:
        os.pwrite(fd, content, 0)
        os.ftruncate(fd, max(size, len(content)))
        yield fd


def read(content: bytes, size: int = build.M) -> LibvirtHeader:
    with file(content, size) as fd:
        return libvirt_header.read(fd)


def test_layout_is_that_of_the_description() -> None:
    found = read(build_libvirt.header(**GOOD) + TEXTS)
    assert found == LibvirtHeader(
        complete=True,
        version=2,
        data_length=build.M - 92,
        was_running=True,
        format_number=6,
        cookie_offset=len(XML) + 1,
        xml=XML.decode(),
        cookie=COOKIE.decode(),
        padding_offset=92 + len(TEXTS),
    )
    assert (found.stream_offset, found.format) == (build.M, "sparse")
    assert found.pack() == build_libvirt.header(**GOOD) + TEXTS


def test_without_cookie() -> None:
    found = read(build_libvirt.header(magic=PART, was_running=0) + XML + b"\0")
    assert (found.complete, found.was_running, found.cookie) == (False, False, None)
    assert found.padding_offset == 92 + len(XML) + 1
    assert found.pack() == build_libvirt.header(magic=PART, was_running=0) + XML + b"\0"


@pytest.mark.parametrize("cookie", [None, COOKIE.decode()])
@pytest.mark.parametrize("runs", [True, False])
def test_written_header_is_read_back(cookie: str | None, runs: bool) -> None:
    new = NewLibvirtHeader(XML.decode(), cookie, runs)
    assert libvirt_header.text_length(new) == 92 + len(XML) + 1 + (len(COOKIE) + 1) * bool(cookie)
    header = libvirt_header.laid_out(new, build.M)
    with file(b"") as fd:
        libvirt_header.write(fd, header)
        assert libvirt_header.read(fd) == header
        assert os.pread(fd, 16, 0) == PART
        assert header.was_running is runs
        complete = libvirt_header.write_complete(fd, header)
        assert os.pread(fd, 16, 0) == SAVE
        assert libvirt_header.read(fd) == complete == dataclasses.replace(header, complete=True)


@pytest.mark.parametrize(
    ("xml", "cookie"),
    [("", None), ("a\0b", None), ("a", "b\0"), ("\ud800", None), ("x" * (1 << 24 | 1), None)],
    ids=["empty", "nul", "nul in cookie", "surrogate", "too long"],
)
def test_texts_that_cannot_be_written(xml: str, cookie: str | None) -> None:
    with pytest.raises(ValueError, match=r"NULs|bytes|surrogates"):
        libvirt_header.laid_out(NewLibvirtHeader(xml, cookie), 1 << 25)


def test_header_that_does_not_fit_before_the_stream() -> None:
    new = NewLibvirtHeader("x" * 100)
    assert libvirt_header.laid_out(new, 193).padding_offset == 193
    with pytest.raises(ValueError, match="193 bytes of header"):
        libvirt_header.laid_out(new, 192)
    with pytest.raises(ValueError, match="bytes of header"):
        libvirt_header.laid_out(new, 92 + (1 << 32))


@pytest.mark.parametrize("content", [b"", b"LibvirtQemud", b"MAPSAVE\0" * 20, bytes(200)])
def test_other_files(content: bytes) -> None:
    with file(content) as fd:
        assert not libvirt_header.is_one(fd)
        with pytest.raises(errors.NotAnImage):
            libvirt_header.read(fd)


def swapped(number: int) -> int:
    return int.from_bytes(number.to_bytes(4, "little"), "big")


MAX = 0xFFFFFFFF
CORRUPT, TRUNCATED, UNSUPPORTED = (
    errors.InvalidImage,
    errors.TruncatedImage,
    errors.UnsupportedImage,
)


@pytest.mark.parametrize("magic", [SAVE, PART])
@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"version": 0}, CORRUPT, "version 0 at offset 16"),
        ({"version": 3}, UNSUPPORTED, "version 3 at offset 16"),
        ({"version": MAX}, UNSUPPORTED, "version 4294967295"),
        ({"version": swapped(2)}, UNSUPPORTED, "other byte order"),
        ({"version": swapped(1)}, UNSUPPORTED, "other byte order"),
        ({"version": swapped(3)}, UNSUPPORTED, "reads up to 2"),
        ({"number": 7}, UNSUPPORTED, "format 7 at offset 28"),
        ({"number": MAX}, UNSUPPORTED, "format 4294967295"),
        ({"data_length": 0}, CORRUPT, "data length 0 at offset 20"),
        ({"cookie_offset": MAX}, CORRUPT, "cookie offset 4294967295 at offset 32"),
        ({"cookie_offset": build.M - HEADER}, CORRUPT, "cookie offset"),
        ({"cookie_offset": 5}, CORRUPT, "domain XML at offset 92 has no end before offset 97"),
        ({"data_length": 20, "cookie_offset": 0}, CORRUPT, "no end before offset 112"),
        ({"data_length": len(TEXTS) - 1}, CORRUPT, "cookie at offset .* has no end"),
    ],
)
def test_fields_that_lie(
    magic: bytes, fields: dict[str, int], error: type[Exception], words: str
) -> None:
    with little_memory(), pytest.raises(errors.InvalidImage, match=words) as caught:
        read(build_libvirt.header(**{**GOOD, **fields}, magic=magic) + TEXTS)
    assert type(caught.value) is error
    assert caught.value.hint


@pytest.mark.parametrize("length", [build.M - HEADER + 1, 1 << 31, MAX])
def test_data_length_beyond_the_file(length: int) -> None:
    content = build_libvirt.header(**{**GOOD, "data_length": length}) + TEXTS
    with little_memory(), pytest.raises(errors.TruncatedImage, match=f"{length} at offset 20"):
        read(content)
    # While it is written, the file is shorter than it will be.
    assert read(content.replace(SAVE, PART)).stream_offset == HEADER + length


def test_lengths_of_4_gib_cost_no_memory() -> None:
    most = build_libvirt.header(data_length=MAX, cookie_offset=MAX - 1)
    for text, words in ((b"x" * 1000, None), (b"x" * (17 << 20), "longer than 16777216")):
        with file(most + text, size=1 << 33) as fd, little_memory():
            if words is None:
                with pytest.raises(errors.InvalidImage, match="cookie"):
                    os.pwrite(fd, b"y", HEADER + MAX - 1)
                    libvirt_header.read(fd)
            else:
                with pytest.raises(errors.InvalidImage, match=words):
                    libvirt_header.read(fd)


@pytest.mark.parametrize("length", [1, 65535, 65536, 65537, 1 << 24])
def test_texts_of_every_length(length: int) -> None:
    content = build_libvirt.header(data_length=length + 1) + b"x" * length + b"\0"
    assert len(read(content).xml) == length


def test_text_that_is_not_utf8() -> None:
    for at in (0, 70_000):
        content = build_libvirt.header(data_length=100_000) + b"x" * at + b"\xff\0"
        with pytest.raises(errors.InvalidImage, match=f"not UTF-8 at offset {HEADER + at}"):
            read(content, 100_092)


def test_bytes_between_xml_and_cookie_do_not_count() -> None:
    content = build_libvirt.header(cookie_offset=1000) + b"<a/>\0junk".ljust(1000, b"j") + b"c\0"
    found = read(content)
    assert (found.xml, found.cookie, found.padding_offset) == ("<a/>", "c", HEADER + 1002)


def test_truncation_at_every_byte() -> None:
    content = build_libvirt.header(**GOOD, magic=PART) + TEXTS
    for magic in (SAVE, PART):
        for size in range(len(content)):
            cut = (magic + content[16:])[:size]
            with pytest.raises(errors.InvalidImage) as caught:
                read(cut, 0)
            assert type(caught.value) is (
                errors.TruncatedImage if size >= 16 else errors.NotAnImage
            )
    assert read(content, 0).xml == XML.decode()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("number", range(7))
def test_formats_that_virsh_has_to_restore(version: int, number: int) -> None:
    header = read(build_libvirt.header(**GOOD, version=version, number=number) + TEXTS)
    words = ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"]
    assert header.format == (words[number] if version == 2 else "raw")
    if header.format == "sparse":
        libvirt_header.require_sparse(header, "/a b")
        return
    with pytest.raises(errors.UnsupportedImage, match=header.format) as caught:
        libvirt_header.require_sparse(header, "/a b")
    assert "virsh restore '/a b'" in str(caught.value.hint)


def test_format_of_version_1_is_not_looked_at() -> None:
    assert read(build_libvirt.header(**GOOD, version=1, number=99) + TEXTS).format == "raw"


def test_byte_order_is_that_of_the_host() -> None:
    raw = read(build_libvirt.header(**GOOD) + TEXTS).pack()
    order = "<" if sys.byteorder == "little" else ">"
    assert struct.unpack_from(f"{order}II", raw, 16) == (2, build.M - 92)
