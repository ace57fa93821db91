"""Long runs of zeros are found in a process's memory, here our own."""

import mmap
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from mapsave.image.mapped_ram import RamBlock
from mapsave.monitor import ram_blocks
from mapsave.operations import written_zeros
from mapsave.operations.read_back import Ram
from mapsave.operations.written_zeros import WINDOW

from tests.kit import patterns
from tests.kit.patterns import MIB, PAGE

SIZE = 32 * MIB
BLOCK = RamBlock("ram", SIZE, PAGE, 0, SIZE // PAGE // 8, 0)
STREAM: Any = SimpleNamespace(blocks=(BLOCK,))


@pytest.fixture
def memory() -> Iterator[tuple[mmap.mmap, Ram]]:
    import ctypes

    with mmap.mmap(-1, SIZE) as area:
        first = ctypes.c_char.from_buffer(area)
        address = ctypes.addressof(first)
        del first
        there = ram_blocks.RamBlock(SIZE, SIZE, address, read_only=False)
        yield area, Ram(os.getpid(), {"ram": there})


def find(ram: Ram, seconds: float = 60) -> list[tuple[int, int]]:
    return [run[1:] for run in written_zeros.find(ram, STREAM, 4 * WINDOW, seconds)]


def test_long_runs_whole_windows_only(memory: tuple[mmap.mmap, Ram]) -> None:
    area, ram = memory
    area[:] = bytes(patterns.dense(SIZE, seed=3))
    for first, pages in ((10, 300), (1000, 700), (SIZE // PAGE - 512, 512)):
        area[first * PAGE : (first + pages) * PAGE] = bytes(pages * PAGE)
    # 10 to 310 has only three whole windows.
    assert find(ram) == [(1024, 640), (SIZE // PAGE - 512, 512)]


def test_a_single_byte_counts(memory: tuple[mmap.mmap, Ram]) -> None:
    area, ram = memory
    area[4096 * PAGE + 77] = 1
    area[SIZE - 1] = 1
    assert find(ram) == [(0, 4096), (4096 + WINDOW, 4096 - 2 * WINDOW)]


def test_none_where_there_are_few(memory: tuple[mmap.mmap, Ram]) -> None:
    area, ram = memory
    area[:] = bytes(patterns.fragmented(1)(SIZE))
    assert find(ram) == []


def test_no_longer_than_allowed(memory: tuple[mmap.mmap, Ram]) -> None:
    assert find(memory[1], seconds=0) == []
