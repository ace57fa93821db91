"""Images that were made to hurt: what they cost is bounded by what is really in the file."""

import os
import time

import pytest
from mapsave import errors
from mapsave.image import bitmaps, image
from mapsave.image.mapped_ram import MAX_RAM

from tests.image import build
from tests.image.fuzz import little_memory

TIB = 1 << 40


def file_of(path: str, length: int, pages: dict[int, int]) -> None:
    """Write an image with one RAM block of ``length`` bytes whose bitmap is a hole but for words.

    ``pages`` are those words, by their place in the bitmap, as little-endian numbers.
    """
    small = build.Image(blocks=[build.Block("pc.ram", 4096)]).built()
    at = small.fields["block0.bitmap"][0]
    bitmap_end = at + length // 4096 // 8
    pages_at = -(-bitmap_end // build.MIB) * build.MIB
    grown = pages_at + length - (small.fields["block0.pages"][0] + 4096)
    patched = small.patched("ram.total", length | 4).patched("block0.length", length)
    patched = patched.patched("block0.pages_offset", pages_at)
    tail = small.fields["setup.mark"][0]
    with open(path, "wb", buffering=0) as file:
        file.truncate(small.size + grown)
        for place, data in patched.pieces:
            if place < at:
                os.pwrite(file.fileno(), data, place)
            elif place >= tail:
                os.pwrite(file.fileno(), data, place + grown)
        for word, value in pages.items():
            os.pwrite(file.fileno(), value.to_bytes(8, "little"), at + 8 * word)
        header = build.slot(metadata=build.Image().metadata, file_length=small.size + grown)
        os.pwrite(file.fileno(), header, 0)
        os.pwrite(file.fileno(), build.Image().metadata, 2 * build.SLOT)


@pytest.fixture
def path() -> object:
    """A file in memory, where it may have any length."""
    fd = os.memfd_create("crafted")
    yield f"/proc/self/fd/{fd}"
    os.close(fd)


def test_a_bitmap_of_holes_costs_what_is_in_it(path: str) -> None:
    words = MAX_RAM // 4096 // 64
    file_of(path, MAX_RAM, {0: 3, words // 2: 1 << 63, words // 2 + 1: 1, words - 1: 1 << 63})
    before = time.process_time()
    with little_memory(), image.opened(path) as opened:
        contents = opened.validate()
        histogram = bitmaps.run_histogram(opened.fd, contents.stream)
    assert contents.used_pages == (5,)
    assert (histogram.runs, histogram.total) == ((1, 2), 3)
    # Read whole, 2 GiB of bitmap take many times as long, under tracing minutes.
    assert time.process_time() - before < 30


@pytest.mark.parametrize("length", [MAX_RAM + build.MIB, 1 << 62])
def test_more_ram_than_any_host_has_is_refused(path: str, length: int) -> None:
    with pytest.raises(errors.UnsupportedImage, match=r"bytes of RAM, more than"):
        file_of(path, length, {})
        with image.opened(path) as opened:
            opened.validate()


@pytest.mark.parametrize("machine", [b"pc-q35-10.0", b"pc-i440fx-9.2", b"microvm", b"isapc"])
@pytest.mark.parametrize("size", [1024, 8192, 65536])
def test_pages_of_another_size_than_the_machine_has(machine: bytes, size: int) -> None:
    block = build.Block("pc.ram", 1 << 20, page_size=size)
    with (
        build.Image(machine=machine, blocks=[block]).built().opened() as name,
        image.opened(name) as opened,
        pytest.raises(errors.InvalidImage, match=f"page size {size}, expected 4096"),
    ):
        opened.validate()


def test_all_blocks_have_one_page_size() -> None:
    blocks = [build.Block("a", 1 << 20), build.Block("b", 1 << 20, page_size=8192)]
    with (
        build.Image(machine=b"virt-10.1", blocks=blocks).built().opened() as name,
        image.opened(name) as opened,
        pytest.raises(errors.InvalidImage, match="page size 8192, expected 4096"),
    ):
        opened.validate()
