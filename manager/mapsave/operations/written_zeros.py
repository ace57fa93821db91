"""Find long runs of zeros that QEMU has written: with ``zero_pages: none`` it writes every page.

The paused guest's RAM shows them, without a read of the image. Some bytes of each window tell those
that have contents; only the others are looked at whole.
"""

import time
from collections.abc import Iterator, Sequence

from mapsave.image.mapped_ram import RamBlock, Stream
from mapsave.operations.read_back import Ram

WINDOW = 64  # pages; a multiple of the bits of a bitmap's word
# Where a window is looked at first: page and offset in it. Short runs that alternate show up.
_PLACES = ((0, 0), (21, 1024), (42, 2048), (63, 3072))
_BYTES = 16
_BATCH = 256  # windows whose places fit one call
_TOGETHER = 8  # windows that are read at a time
_SAMPLES = 1024
_WORTH = 1 / 32  # of the sampled windows

Run = tuple[RamBlock, int, int]  # first page, number of pages


def find(ram: Ram, stream: Stream, least: int, seconds: float) -> list[Run]:
    """Return runs of at least ``least`` pages of zeros, as many as are found in so many seconds.

    They begin and end at a multiple of ``WINDOW``. None where few of the RAM's windows are zeros.
    Raises OSError where the guest's memory cannot be read.
    """
    deadline = time.monotonic() + seconds
    if not _are_worth_it(ram, stream):
        return []
    found: list[Run] = []
    for block in stream.blocks:
        begin = end = 0
        for window in _zero_windows(ram, block, deadline):
            if window > end:
                found.append((block, begin * WINDOW, (end - begin) * WINDOW))
                begin = window
            end = window + 1
        found.append((block, begin * WINDOW, (end - begin) * WINDOW))
    return [run for run in found if run[2] >= least]


def _are_worth_it(ram: Ram, stream: Stream) -> bool:
    windows = sum(block.pages // WINDOW for block in stream.blocks)
    step = max(1, windows // _SAMPLES)
    sampled = zeros = 0
    for block in stream.blocks:
        for some in _batches(range(0, block.pages // WINDOW, step), _BATCH):
            sampled += len(some)
            zeros += len(_may_be_zero(ram, block, some))
    return zeros > sampled * _WORTH


def _zero_windows(ram: Ram, block: RamBlock, deadline: float) -> Iterator[int]:
    """Yield the windows of a block that are all zeros, in order."""
    size = WINDOW * block.page_size
    zero, zeros = bytes(size), bytes(_TOGETHER * size)
    for some in _batches(range(block.pages // WINDOW), _BATCH):
        for windows in _batches(_may_be_zero(ram, block, some), _TOGETHER):
            if time.monotonic() > deadline:
                return
            data = ram.at(block, [(window * size, size) for window in windows])
            if data == zeros:
                yield from windows
                continue
            for number, window in enumerate(windows):
                # Copied, because comparing a memoryview takes a hundred times longer.
                if data[number * size : (number + 1) * size] == zero:
                    yield window


def _batches(windows: Sequence[int], most: int) -> Iterator[Sequence[int]]:
    return (windows[first : first + most] for first in range(0, len(windows), most))


def _may_be_zero(ram: Ram, block: RamBlock, windows: Sequence[int]) -> list[int]:
    """Return the windows that have zeros wherever they are looked at first."""
    size = block.page_size
    places = [
        ((window * WINDOW + page) * size + offset % size, _BYTES)
        for window in windows
        for page, offset in _PLACES
    ]
    data = ram.at(block, places)
    length = len(_PLACES) * _BYTES
    zero = bytes(length)
    return [
        window
        for number, window in enumerate(windows)
        if data[number * length : (number + 1) * length] == zero
    ]
