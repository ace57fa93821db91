"""Compare all pages of an image with the RAM of its paused guest.

The file is read once, by direct reads, and each piece compared as it comes; who takes digests of
these pieces has them of what was compared. A page whose bit is clear, or that is in a hole, is
zero: the guest's must be as well, so pages that the guest has touched are read where the file has
no data. Others are zero, and cost nothing.
"""

import threading
from collections.abc import Callable, Mapping

from mapsave import blocking, errors
from mapsave.image import bitmaps
from mapsave.image.mapped_ram import RamBlock, Stream
from mapsave.image.piece_reader import PIECE
from mapsave.monitor import pagemap, process_memory

_WINDOW = bitmaps.CHUNK_PAGES
_THREADS = 4
_MOST = 1_000  # differing pages that are noted


class Comparison:
    """Compares the pieces of the image ``fd`` with the memory of the process ``pid``.

    ``addresses`` are where QEMU has the blocks of ``stream``, by name.
    """

    def __init__(self, fd: int, stream: Stream, pid: int, addresses: Mapping[str, int]) -> None:
        self._fd = fd
        self._blocks = stream.blocks
        self._begin = stream.offset
        self._pid = pid
        self._addresses = addresses
        self._with_data: set[int] = set()
        self._lock = threading.Lock()
        self._differing: list[tuple[str, int]] = []
        self.compared = 0

    def put(self, number: int, data: memoryview) -> None:
        """Compare what is of pages in a piece of the file; called by any thread. Raises OSError."""
        start = max(self._begin, number * PIECE)
        for block in self._blocks:
            low, high = max(start, block.pages_offset), min(start + len(data), block.end)
            if low < high:
                self._compare(block, low - block.pages_offset, data[low - start : high - start])
        with self._lock:
            self._with_data.add(number)

    def _compare(self, block: RamBlock, at: int, data: memoryview) -> None:
        size = block.page_size
        bits = bitmaps.window(self._fd, block, at // size, -(-len(data) // size))
        found: bytearray | memoryview = data
        if not bits.all():  # what the file has there is of before
            found = bytearray(data)
            for first, end in bitmaps.runs(~bits):
                found[first * size : end * size] = bytes(len(found[first * size : end * size]))
        there = self._ram(block, at, len(data))
        if there != found:
            self._note(block, at, there, found)

    def _ram(self, block: RamBlock, at: int, length: int) -> bytearray:
        with self._lock:
            self.compared += length
        return process_memory.read(self._pid, [(self._addresses[block.name] + at, length)])

    def _note(
        self, block: RamBlock, at: int, there: bytearray, found: bytes | bytearray | memoryview
    ) -> None:
        size = block.page_size
        for start in range(0, len(there), size):
            if there[start : start + size] != found[start : start + size]:
                self._differing.append((block.name, at + start))

    def finish(self, note: Callable[[int], None]) -> None:
        """Compare what the file has no data of, all of which was read; ``note`` gets the bytes.

        Raises PagesDiffer, OSError.
        """
        with pagemap.opened(self._pid) as touched:
            for block in self._blocks:
                for first in range(0, block.used_length, _WINDOW * pagemap.PAGE):
                    self._compare_zeros(touched, block, first, note)
        if self._differing:
            name, address = min(self._differing)
            raise errors.PagesDiffer(
                f"{len(self._differing)} pages of the image are not what the guest's RAM has, the "
                f"first of them at 0x{address:x} of RAM block {name!r}",
                hint="the storage has lost or changed what was written: save to another file "
                "system, and test this one",
                pages=[
                    {"block": block, "address": at} for block, at in sorted(self._differing)[:_MOST]
                ],
            )

    def _compare_zeros(
        self, touched: pagemap.Touched, block: RamBlock, at: int, note: Callable[[int], None]
    ) -> None:
        """Compare a window of pages, from the byte ``at`` of the block on."""
        page = pagemap.PAGE
        pages = min(_WINDOW, (block.used_length - at) // page)
        bits = touched.pages(self._addresses[block.name] + at, pages)
        per_piece = PIECE // page
        number = (block.pages_offset + at) // PIECE
        for each in range(0, pages, per_piece):
            if number + each // per_piece in self._with_data:
                bits[each : each + per_piece] = 0
        parts = [
            (at + start * page, min(per_piece, end - start) * page)
            for first, end in bitmaps.runs(bits)
            for start in range(first, end, per_piece)
        ]
        shares = [parts[share::_THREADS] for share in range(_THREADS)]
        working = [blocking.begin(self._are_zero, block, share, note) for share in shares if share]
        for each_work in working:
            each_work.exception()
        for each_work in working:
            each_work.result()

    def _are_zero(
        self, block: RamBlock, parts: list[tuple[int, int]], note: Callable[[int], None]
    ) -> None:
        zeros = bytes(PIECE)
        for at, length in parts:
            note(length)
            there = self._ram(block, at, length)
            if there != zeros[:length]:
                self._note(block, at, there, zeros)
