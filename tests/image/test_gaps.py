"""Filling gaps between used pages: what the bitmaps say the pages hold stays the same."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave.image import bitmaps, gaps
from mapsave.image.mapped_ram import RamBlock

from tests.image.plain_bits import CHUNK_BITS, OFFSET, RUNS, bitmap, runs_of
from tests.kit import files

MANY = settings(max_examples=200, deadline=None)


def bits_of(fd: int, block: RamBlock) -> list[bool]:
    raw = os.pread(fd, block.bitmap_bytes, block.bitmap_offset)
    return [bool(raw[page >> 3] >> (page & 7) & 1) for page in range(block.bitmap_bytes * 8)]


def expected(bits: list[bool], most: int) -> list[bool]:
    """Return ``bits`` with short gaps filled, plainly."""
    whole = list(bits)
    for first, length in runs_of(bits, False):
        if length <= most and first > 0 and first + length < len(bits):
            whole[first : first + length] = [True] * length
    return whole


@MANY
@given(st.integers(1, 700), RUNS, st.integers(1, 70))
def test_gaps_are_filled_up_to_a_length_and_nothing_else_is(
    pages: int, runs: list[tuple[int, int]], most: int
) -> None:
    with bitmap(pages, runs) as (fd, block, bits):
        gaps.fill(fd, block, most)
        after = bits_of(fd, block)
        assert after[:pages] == expected(bits, most)
        assert not any(after[pages:])
        end = OFFSET + block.bitmap_bytes
        assert os.pread(fd, OFFSET, 0) == b"\xff" * OFFSET
        assert os.pread(fd, 99, end) == b"\xff" * 99
        gaps.fill(fd, block, most)
        assert bits_of(fd, block) == after


@MANY
@given(st.integers(1, 400), st.integers(0))
def test_gaps_are_counted_by_length(pages: int, number: int) -> None:
    runs = [(page, 1) for page in range(pages) if number >> page & 1]
    with bitmap(pages, runs) as (fd, block, bits):
        stream: Any = SimpleNamespace(blocks=(block, block))
        found = gaps.count(fd, stream)
        between = [
            length for first, length in runs_of(bits, False) if first > 0 and first + length < pages
        ]
        short = [[length for length in between if length <= most] for most in gaps.LENGTHS]
        assert found.number == tuple(2 * len(each) for each in short)
        assert found.pages == tuple(2 * sum(each) for each in short)


@MANY
@given(st.integers(1, 700), RUNS, st.integers(1, 200))
def test_long_clear_runs(pages: int, runs: list[tuple[int, int]], least: int) -> None:
    with bitmap(pages, runs) as (fd, block, bits):
        wanted = [run for run in runs_of(bits, False) if run[1] >= least]
        assert list(gaps.long_clear_runs(fd, block, least)) == wanted


@pytest.mark.parametrize("by", [-3, -1, 0, 1])
def test_at_the_border_of_chunks(by: int) -> None:
    """A gap across it is left, and a long run across it is one."""
    first = CHUNK_BITS + by
    runs = [(CHUNK_BITS - 9, 1), (first - 1, 1), (first + 2, 1), (first + 9, 1), (first + 400, 1)]
    with bitmap(2 * CHUNK_BITS, runs) as (fd, block, bits):
        long = [run for run in bitmaps.clear_runs(fd, block) if run[1] >= 300]
        assert list(gaps.long_clear_runs(fd, block, 300)) == long
        gaps.fill(fd, block, 7)
        chunks = (bits[:CHUNK_BITS], bits[CHUNK_BITS:])
        assert bits_of(fd, block) == [bit for chunk in chunks for bit in expected(chunk, 7)]


@MANY
@given(st.integers(1, 300), RUNS, st.integers(1, 64))
def test_pages_read_through_the_bitmap_are_the_same(
    pages: int, runs: list[tuple[int, int]], most: int
) -> None:
    """The file ends with the last page that was written, or even before: what is there is zeros."""
    with bitmap(pages, runs) as (source, block, bits), files.in_memory() as fd:
        os.pwrite(fd, os.pread(source, 1 << 20, 0), 0)
        at = 1 << 16
        block = RamBlock("ram", pages * 4096, 4096, OFFSET, block.bitmap_bytes, at)
        for page in range(pages):
            if bits[page]:
                os.pwrite(fd, page.to_bytes(2, "big") + b"x", at + page * 4096)

        def content() -> list[bytes]:
            there = bits_of(fd, block)[:pages]
            read = [os.pread(fd, 4096, at + page * 4096) for page in range(pages)]
            return [
                each.ljust(4096, b"\0") if bit else bytes(4096)
                for each, bit in zip(read, there, strict=True)
            ]

        before = content()
        gaps.fill(fd, block, most)
        assert content() == before
