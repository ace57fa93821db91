"""Counting and following the bits of page bitmaps, against an implementation that is plain."""

import os
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import errors
from mapsave.image import bitmaps, image
from mapsave.image.mapped_ram import RamBlock

from tests.image import build
from tests.image.plain_bits import CHUNK_BITS, OFFSET, RUNS, bitmap, runs_of
from tests.kit import files

MANY = settings(max_examples=200, deadline=None)


def assert_agree(fd: int, block: RamBlock, bits: list[bool]) -> None:
    """Compare all three functions with the plain list of bits."""
    assert bitmaps.used_pages(fd, block) == sum(bits)
    assert list(bitmaps.clear_runs(fd, block)) == runs_of(bits, False)
    lengths = [count for _, count in runs_of(bits, True)]
    powers = [length.bit_length() - 1 for length in lengths]
    expected = tuple(powers.count(power) for power in range(max(powers, default=-1) + 1))
    stream: Any = SimpleNamespace(blocks=(block,))
    histogram = bitmaps.run_histogram(fd, stream)
    assert histogram.runs == expected
    assert histogram.total == len(lengths)


@MANY
@given(st.integers(1, 700), RUNS)
def test_against_a_plain_implementation(pages: int, runs: list[tuple[int, int]]) -> None:
    with bitmap(pages, runs) as (fd, block, bits):
        assert_agree(fd, block, bits)


@MANY
@given(st.integers(1, 300), st.integers(0))
def test_any_bits(pages: int, number: int) -> None:
    runs = [(page, 1) for page in range(pages) if number >> page & 1]
    with bitmap(pages, runs) as (fd, block, bits):
        assert_agree(fd, block, bits)


@pytest.mark.parametrize("by", [-65, -64, -63, -1, 0, 1, 64])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 129, CHUNK_BITS + 1])
def test_runs_across_the_border_of_chunks(by: int, length: int) -> None:
    first = CHUNK_BITS + by
    with bitmap(2 * CHUNK_BITS + 200, [(first, length)]) as (fd, block, _):
        assert bitmaps.used_pages(fd, block) == length
        clear = [(0, first), (first + length, block.pages - first - length)]
        assert list(bitmaps.clear_runs(fd, block)) == clear
        stream: Any = SimpleNamespace(blocks=(block, block))
        assert bitmaps.run_histogram(fd, stream).runs[length.bit_length() - 1] == 2


def test_bitmap_of_more_than_a_mebibyte() -> None:
    pages = (1 << 23) + 4 * CHUNK_BITS + 5
    number = (1 << pages) - 1
    hole = ((1 << 1000) - 1) << ((1 << 23) - 500)
    length = -(-pages // 64) * 8
    with files.in_memory() as fd:
        os.write(fd, (number ^ hole).to_bytes(length, "little"))
        block = RamBlock("ram", pages * 4096, 4096, 0, length, 0)
        assert length > 1 << 20
        assert bitmaps.used_pages(fd, block) == pages - 1000
        assert list(bitmaps.clear_runs(fd, block)) == [((1 << 23) - 500, 1000)]
        stream: Any = SimpleNamespace(blocks=(block,))
        assert bitmaps.run_histogram(fd, stream).total == 2


@pytest.mark.parametrize("pages", [1, 63, 65, 127, 1000])
def test_bits_behind_the_last_page_are_refused(pages: int) -> None:
    with bitmap(pages, [(0, pages)]) as (fd, block, _):
        assert bitmaps.used_pages(fd, block) == pages
        for extra in (pages, block.bitmap_bytes * 8 - 1):
            at = OFFSET + extra // 8
            old = os.pread(fd, 1, at)
            os.pwrite(fd, bytes([old[0] | 1 << extra % 8]), at)
            with pytest.raises(errors.InvalidImage, match="after its last page"):
                bitmaps.used_pages(fd, block)
            os.pwrite(fd, old, at)


def test_every_other_page_used_takes_little_memory() -> None:
    length = 1 << 18  # of 8 GiB of RAM, several chunks
    fd = os.memfd_create("bitmap")
    try:
        os.write(fd, b"\x55" * length)
        block = RamBlock("ram", length * 8 * 4096, 4096, 0, length, 0)
        stream: Any = SimpleNamespace(blocks=(block,))
        tracemalloc.start()
        assert bitmaps.run_histogram(fd, stream).runs == (length * 4,)
        assert sum(1 for _ in bitmaps.clear_runs(fd, block)) == length * 4
        assert tracemalloc.get_traced_memory()[1] < 64 * build.MIB
    finally:
        tracemalloc.stop()
        os.close(fd)


def test_image_of_a_terabyte_takes_little_memory() -> None:
    pages = (1 << 40) // 4096
    made = build.Image(blocks=[build.Block("pc.ram", 1 << 40, (0, 5, 6, pages // 2, pages - 1))])
    built = made.built()
    tracemalloc.start()
    try:
        with built.opened() as path, image.opened(path) as opened:
            contents = opened.validate()
            histogram = bitmaps.run_histogram(opened.fd, contents.stream)
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert contents.used_pages == (5,)
    assert histogram.runs == (3, 1)
    assert peak < 64 * build.MIB
