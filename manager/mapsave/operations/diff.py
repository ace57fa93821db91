"""Which pages differ between two images, or an image and a guest that is there.

Pages that are used on neither side are equal and not read: the cost goes by what is used. A page
that is not in an image is zero, whatever its file has there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from concurrent import futures
from typing import TYPE_CHECKING, TypedDict

from mapsave import blocking, errors, units
from mapsave.image import bitmaps, cells
from mapsave.migration import guest_state, progress
from mapsave.migration.progress import Phases, Report
from mapsave.monitor import ram_blocks
from mapsave.operations import attach, diff_sides
from mapsave.pictures import difference as picture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bitarray import bitarray

    from mapsave.config import Config, Guest
    from mapsave.image.mapped_ram import Stream
    from mapsave.operations.diff_sides import Side

MOST_RANGES = 10_000  # that are listed; a guest may have millions
_WINDOW = bitmaps.CHUNK_PAGES
_TOGETHER = 256  # pages that are read and compared at a time
_THREADS = 4


class Range(TypedDict):
    """Pages in a row that differ: the first one's address in its block, and how many."""

    address: int
    pages: int


class Block(TypedDict):
    """A RAM block that both sides have."""

    name: str
    pages: int
    differing_pages: int
    ranges: list[Range]
    ranges_left_out: int


class Difference(TypedDict):
    """What ``mapsave diff --json`` prints. ``only_in_*``: blocks that one side has not, or in
    another size. ``devices``: those whose state differs; null where a guest was compared.
    """

    one: str
    other: str
    pages: int
    differing_pages: int
    differing_bytes: int
    ram_blocks: list[Block]
    only_in_one: list[str]
    only_in_other: list[str]
    devices: list[str] | None
    run_state: str | None


@dataclasses.dataclass(frozen=True)
class Found:
    """The difference as data, and what its picture shows."""

    difference: Difference
    squares: list[picture.Square]

    def drawn(self) -> str:
        """Return the picture, as SVG."""
        said = self.difference
        names = (said["one"], said["other"])
        one, other = (name.rpartition("/")[2] for name in names)
        lines = [
            f"{said['differing_pages']} of {said['pages']} pages differ, "
            f"{units.format_size(said['differing_bytes'])}"
        ]
        return picture.drawn(picture.Shown(f"{one} and {other}", lines, self.squares))


def images(one: str, other: str, report: Report = progress.silent) -> Found:
    """Compare two images. Raises ImageNotFound, NotPermitted, InvalidImage or one of its kin."""
    with diff_sides.of_image(one) as (left, stream), diff_sides.of_image(other) as (right, second):
        found = _compared(left, right, (one, other), report)
        found.difference["devices"] = _devices((left.fd, stream), (right.fd, second))
        return found


async def guest(one: str, other: Guest, config: Config, report: Report = progress.silent) -> Found:
    """Compare an image with a guest, which goes on if it runs: then pages may change meanwhile.

    Raises as ``images`` does, and as ``attach.attached``; NotPermitted where the guest's memory may
    not be read, Unsupported where it is out of sight.
    """
    async with attach.attached(other, config, only_look=True) as session:
        blocks = await ram_blocks.query(session)
        pid, state = session.pid, await guest_state.run_state(session)
        if pid is None or not any(block.address is not None for block in blocks.values()):
            raise errors.Unsupported(
                f"the memory of guest {other.name!r} is out of sight: QEMU's process is unknown",
                hint="run mapsave in the pid namespace of its QEMU",
            )

        def compare() -> Found:
            with (
                diff_sides.of_image(one) as (left, _),
                _readable(pid),
                diff_sides.of_guest(pid, blocks) as right,
            ):
                return _compared(left, right, (one, other.name), report)

        found = await blocking.call(compare)
        found.difference["run_state"] = str(state)
        return found


@contextlib.contextmanager
def _readable(pid: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.NotPermitted(
            f"the memory of QEMU (pid {pid}) cannot be read: {error.strerror}",
            hint="run mapsave as root, or as the user of its QEMU",
        ) from None


def _compared(left: Side, right: Side, names: tuple[str, str], report: Report) -> Found:
    if left.page_size != right.page_size:
        raise errors.Unsupported(
            f"{names[0]!r} has pages of {left.page_size} bytes, {names[1]!r} of {right.page_size}",
            hint="they are of different machines",
        )
    sizes = left.pages
    both = [name for name, pages in sizes.items() if right.pages.get(name) == pages]
    largest = sorted(both, key=lambda name: -sizes[name])[: picture.MOST_BLOCKS]
    orders = picture.orders([sizes[name] for name in largest])
    drawn = dict(zip(largest, orders, strict=True))
    compare = _Comparison(left, right, sum(sizes[name] for name in both), report)
    blocks, squares = [], []
    room = MOST_RANGES
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        for name in both:
            block, square = compare.block(pool, name, drawn.get(name), room)
            room -= len(block["ranges"])
            blocks.append(block)
            squares += [square] if square is not None else []
    squares.sort(key=lambda square: largest.index(square.name))
    differing = sum(block["differing_pages"] for block in blocks)
    return Found(
        {
            "one": names[0],
            "other": names[1],
            "pages": sum(block["pages"] for block in blocks),
            "differing_pages": differing,
            "differing_bytes": differing * left.page_size,
            "ram_blocks": blocks,
            "only_in_one": sorted(sizes.keys() - set(both)),
            "only_in_other": sorted(right.pages.keys() - set(both)),
            "devices": None,
            "run_state": None,
        },
        squares,
    )


class _Comparison:
    """Compares the blocks of two sides."""

    def __init__(self, left: Side, right: Side, pages: int, report: Report) -> None:
        """``pages`` is how many there are in all, of which ``report`` gets those that are done."""
        self._left = left
        self._right = right
        self._size = left.page_size
        self._zero = bytes(self._size)
        self._total = pages * self._size
        self._done = 0
        self._phases = Phases(report)
        self._phases.enter("compare")

    def block(
        self, pool: futures.Executor, name: str, order: int | None, room: int
    ) -> tuple[Block, picture.Square | None]:
        """Compare a block; list at most ``room`` ranges; with ``order`` return its square too."""
        pages = self._left.pages[name]
        each = cells.cell_pages(pages, order or 0)
        used = [0] * -(-pages // each)
        differing = used.copy()
        ranges: list[Range] = []
        count = total = 0
        was_last = 0  # the last bit so far
        for first in range(0, pages, _WINDOW):
            some, bits = self._window(pool, name, first, min(_WINDOW, pages - first))
            for into, found in ((used, some), (differing, bits)):
                for cell, number in cells.count(found, each, first):
                    into[cell] += number
            count += bits.count()
            total += bitmaps.number_of_runs(bits) - (was_last & bits[0])
            was_last = bits[-1]
            self._add_ranges(ranges, first, bits, room)
            self._done += len(bits) * self._size
            self._phases.progress(self._done, self._total)
        block: Block = {
            "name": name,
            "pages": pages,
            "differing_pages": count,
            "ranges": ranges,
            "ranges_left_out": total - len(ranges),
        }
        if order is None:
            return block, None
        return block, picture.Square(name, pages, order, each, self._size, used, differing)

    def _window(
        self, pool: futures.Executor, name: str, first: int, pages: int
    ) -> tuple[bitarray, bitarray]:
        """Return which pages are used on a side, and which of them differ."""
        left = self._left.used(name, first, pages)
        right = self._right.used(name, first, pages)
        some = left | right
        differing = bitmaps.empty(pages)

        def part(start: int) -> tuple[int, bitarray]:
            stop = min(start + _TOGETHER, pages)
            return start, self._part(name, first + start, left[start:stop], right[start:stop])

        starts = (at for at in range(0, pages, _TOGETHER) if some.find(1, at, at + _TOGETHER) >= 0)
        for start, bits in pool.map(part, starts):
            differing[start : start + len(bits)] = bits
        return some, differing

    def _part(self, name: str, first: int, left: bitarray, right: bitarray) -> bitarray:
        pages = len(left)
        bits = bitmaps.empty(pages)
        one = self._left.read(name, first, pages) if left.any() else b""
        other = self._right.read(name, first, pages) if right.any() else b""
        if left == right and one == other:
            return bits
        for page in (left | right).search(1):
            place = slice(page * self._size, (page + 1) * self._size)
            here = one[place] if left[page] else self._zero
            there = other[place] if right[page] else self._zero
            bits[page] = here != there
        return bits

    def _add_ranges(self, ranges: list[Range], first: int, bits: bitarray, room: int) -> None:
        """Add the runs of ``bits`` as long as there is room.

        The first run may go on with the last range, which ended where these bits begin.
        """
        last = ranges[-1] if ranges else None
        end_of_last = last["address"] // self._size + last["pages"] if last else -1
        for start, end in itertools.islice(bitmaps.runs(bits), room - len(ranges) + 1):
            if start == 0 and end_of_last == first and last is not None:
                last["pages"] += end
            elif len(ranges) < room:
                ranges.append({"address": (first + start) * self._size, "pages": end - start})


def _devices(one: tuple[int, Stream], other: tuple[int, Stream]) -> list[str]:
    """Return the devices whose state differs, or that only one image has, by their names."""
    states = [
        {
            (device.name, device.instance): (
                device.version,
                os.pread(fd, device.length, device.offset),
            )
            for device in stream.devices
        }
        for fd, stream in (one, other)
    ]
    keys = dict.fromkeys((*states[0], *states[1]))
    return list(
        dict.fromkeys(
            name for name, at in keys if states[0].get((name, at)) != states[1].get((name, at))
        )
    )
