"""The reader that ``docs/image-format.md`` shows reads what QEMU wrote."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from manager.image import image
from tests.image import build

if TYPE_CHECKING:
    from tests.image.conftest import Real

DOCUMENT = Path(__file__).parents[2] / "docs" / "image-format.md"


@pytest.mark.qemu
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


def test_offsets_of_the_document_are_those_of_the_builder() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|\n ").split("|")]
        for line in DOCUMENT.read_text()
        .partition("A slot:")[2]
        .partition("To read:")[0]
        .splitlines()
        if line.startswith("|") and line[2].isdigit()
    ]
    ends = [0] + [int(offset) + int(length) for offset, length, _ in rows]
    assert ends == [int(offset) for offset, *_ in rows] + [build.SLOT]
    where = {field.split(",")[0].split(":")[0]: int(offset) for offset, _, field in rows}
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
