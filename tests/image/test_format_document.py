"""The reader that ``docs/image-format.md`` shows reads what QEMU wrote."""

import mmap
import os
import sys
from pathlib import Path
from typing import Any

from mapsave.image import image, superblock
from mapsave.image.libvirt_header import NewLibvirtHeader

from tests.image import build, build_libvirt
from tests.image.conftest import Real
from tests.kit import tree

DOCUMENT = tree.ROOT / "docs" / "image-format.md"


def test_example_of_the_document_reads_pages(real: Real) -> None:
    code = DOCUMENT.read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    with image.opened(real.path) as opened, mmap.mmap(opened.fd, 0, prot=mmap.PROT_READ) as content:
        for block in opened.validate().stream.blocks:
            record = block.bitmap_offset - 28 - 8 - len(block.name) - 1
            pages = range(min(block.pages, 500))
            used = tuple(number for number in pages if any(names["page"](content, record, number)))
            assert used == tuple(each for each in real.used[block.name] if each in pages)


def fields(behind: str, before: str, size: int) -> dict[str, int]:
    """Return the offset of each field of a table, which must fill ``size`` bytes without a gap."""
    rows = [
        [cell.strip() for cell in line.strip("|\n ").split("|")]
        for line in DOCUMENT.read_text().partition(behind)[2].partition(before)[0].splitlines()
        if line.startswith("|") and line[2].isdigit()
    ]
    ends = [0] + [int(offset) + int(length) for offset, length, _ in rows]
    assert ends == [int(offset) for offset, *_ in rows] + [size]
    return {field.split(",")[0].split(":")[0]: int(offset) for offset, _, field in rows}


def test_offsets_of_the_document_are_those_of_the_builder() -> None:
    where = fields("A slot:", "To read:", build.SLOT)
    slot = build.slot(state=3, sequence=7, stream_offset=1 << 20, file_length=99, optional=5)
    numbers = {
        "state": 3,
        "sequence number": 7,
        "M": 1 << 20,
        "features that a reader may ignore": 5,
    }
    for name, value in numbers.items():
        assert (
            slot[where[name]] == value & 0xFF
            and value.to_bytes(4, "little") == (slot[where[name] : where[name] + 4])
        )


def test_header_of_libvirt_in_the_document_is_that_of_the_builder() -> None:
    where = fields("## libvirt's format", "After it:", build_libvirt.HEADER)
    header = build_libvirt.header(
        version=2, data_length=77, was_running=1, number=6, cookie_offset=55
    )
    numbers = {
        "version": 2,
        "data length": 77,
        "was running": 1,
        "format of the stream": 6,
        "cookie offset": 55,
    }
    for name, value in numbers.items():
        assert int.from_bytes(header[where[name] : where[name] + 4], sys.byteorder) == value
    assert header[where["magic"] :].startswith(b"LibvirtQemudSave")
    assert not any(header[where["zeros"] :])


def test_padding_of_libvirts_header_is_used_as_the_document_says(tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    new = NewLibvirtHeader("<domain/>", "<cookie/>")
    try:
        with image.creating(held, "a", {"n": 1}, stream_offset=1 << 20, libvirt=new) as partial:
            partial.block = superblock.write(partial.fd, partial.block, {"n": 2})
            content = os.pread(partial.fd, 1 << 20, 0)
    finally:
        os.close(held)
    m, areas = 1 << 20, build.SLOT
    places = {
        92: b"<domain/>\0<cookie/>\0",
        92 + int.from_bytes(content[32:36], sys.byteorder): b"<cookie/>\0",
        areas: b'{"n": 1}',
        (areas + m - 8192) // 2: b'{"n": 2}',
        m - 8192: b"MAPSAVE\0",
        m - 4096: b"MAPSAVE\0",
    }
    for at, expected in places.items():
        assert content[at:].startswith(expected)
