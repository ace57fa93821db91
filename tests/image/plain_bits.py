"""Bitmaps in files, and what is in them, by an implementation that is plain."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import strategies as st
from mapsave.image import bitmaps
from mapsave.image.mapped_ram import RamBlock

from tests.kit import files

CHUNK_BITS = bitmaps.CHUNK_PAGES
OFFSET = 77  # bitmaps begin anywhere


@contextmanager
def bitmap(pages: int, runs: list[tuple[int, int]]) -> Iterator[tuple[int, RamBlock, list[bool]]]:
    """Yield a file with the bitmap of a block whose ``runs`` (first, count) of pages are used."""
    bits = [False] * pages
    for first, count in runs:
        for page in range(first, min(first + count, pages)):
            bits[page] = True
    length = -(-pages // 64) * 8
    number = int("".join("1" if bit else "0" for bit in reversed(bits)) or "0", 2)
    with files.in_memory() as fd:
        os.pwrite(fd, b"\xff" * OFFSET + number.to_bytes(length, "little") + b"\xff" * 99, 0)
        yield fd, RamBlock("ram", pages * 4096, 4096, OFFSET, length, 0), bits


def runs_of(bits: list[bool], value: bool) -> list[tuple[int, int]]:
    """Return (first, count) of each run of ``value``."""
    found: list[tuple[int, int]] = []
    for page, bit in enumerate(bits):
        if bit is not value:
            continue
        if found and sum(found[-1]) == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found


RUNS = st.lists(st.tuples(st.integers(0, 700), st.integers(1, 200)), max_size=12)
