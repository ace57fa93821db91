"""Read an image's pages into the page cache beside a restore, or on demand.

That is done in a thread that ends with what it was begun for, and never fails it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import math
import os
import threading
import time
import uuid as uuids
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import TypedDict

from mapsave import blocking, errors, units
from mapsave.image import bitmaps, descriptors, read_ahead
from mapsave.image.image import Image
from mapsave.image.mapped_ram import Stream
from mapsave.image.working_set import WorkingSet
from mapsave.migration.progress import Progress, Report
from mapsave.operations import working_sets
from mapsave.restore_settings import Warm

_SHOWN_EVERY = 0.2  # seconds
_GRACE = 2.0  # seconds that it may take to end


class Warmed(TypedDict):
    """What was read into the page cache: so many ``bytes`` of the image, of those it was to be.

    ``why_not`` says why it was not all.
    """

    way: Warm
    bytes: int
    of_bytes: int
    duration_s: float
    why_not: str | None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to read: the working set, or all after it; how fast (bytes/s) and how long at most."""

    way: Warm
    rate: int | None
    seconds: float = math.inf


class Warming:
    """One such reading; at most one is begun. What it knows of images is in ``state``."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._stop = threading.Event()
        self._outcome: futures.Future[str | None] | None = None
        self._reader: read_ahead.Reader | None = None
        self._way: Warm = "none"
        self._pause = 0.0  # seconds that it may wait between two pieces
        self._began = self._until = 0.0
        self._ended: float | None = None
        self._before = 0  # bytes that are counted again
        self._of_bytes = 0

    def begin(self, opened: Image, stream: Stream, wanted: Wanted) -> None:
        """Begin to read an image, which need not stay open. Raises OSError."""
        self._way = wanted.way
        self._pause = read_ahead.PIECE / wanted.rate if wanted.rate is not None else 0.0
        if wanted.way == "none":
            return
        self._began = time.monotonic()
        self._until = self._began + wanted.seconds
        # A description of its own, for what posix_fadvise(2) says holds for all of one.
        fd = os.open(f"/proc/self/fd/{opened.fd}", os.O_RDONLY | os.O_CLOEXEC)
        limits = read_ahead.Limits(wanted.rate, self._until)
        self._reader = read_ahead.Reader(fd, limits, self._stop)
        try:
            self._outcome = blocking.begin_apart(self._work, fd, opened.block.uuid, stream)
        except blocking.NoThread as error:
            os.close(fd)
            self._outcome = futures.Future()
            self._outcome.set_result(error.strerror)

    def stop(self) -> None:
        """Have it end soon: what it was begun for has failed, or does without."""
        self._stop.set()

    async def finished(self, report: Report, stall: float = math.inf) -> Warmed | None:
        """Wait until it has ended, and return ``so_far``. Cancelled, it is stopped.

        Raises Hangs where nothing was read for ``stall`` seconds.
        """
        if self._outcome is None:
            return None
        outcome = asyncio.wrap_future(self._outcome)
        before, idle = -1, 0.0
        try:
            while not outcome.done() and time.monotonic() < self._until + _GRACE:
                await asyncio.wait({outcome}, timeout=_SHOWN_EVERY)
                report(self._progress())
                # By our own looks: we may have been stopped ourselves.
                idle = idle + _SHOWN_EVERY if before == self._read_bytes else 0.0
                before = self._read_bytes
                if idle >= stall + self._pause and not outcome.done():
                    duration = units.format_duration(stall)
                    words = f"nothing was read for {duration}: its storage hangs, or is busy"
                    raise blocking.Hangs(errno.ETIMEDOUT, words)
        except asyncio.CancelledError:
            self.stop()
            raise
        return self.so_far()

    def so_far(self) -> Warmed | None:
        """Return what was read by now; None where nothing was to be."""
        if self._outcome is None:
            return None
        why_not = self._outcome.result() if self._outcome.done() else "it is being read"
        end = self._ended if self._ended is not None else time.monotonic()
        return {
            "way": self._way,
            "bytes": self._done,
            "of_bytes": self._of_bytes,
            "duration_s": round(end - self._began, 6),
            "why_not": why_not,
        }

    @property
    def _read_bytes(self) -> int:
        return self._reader.done_bytes if self._reader is not None else 0

    @property
    def _done(self) -> int:
        found = self._read_bytes
        return max(self._before, found - self._before)

    def _progress(self) -> Progress:
        seconds = time.monotonic() - self._began
        return Progress("warm", self._done, self._of_bytes, self._done / seconds)

    def _work(self, fd: int, uuid: uuids.UUID, stream: Stream) -> str | None:
        """Read; return why it was not all."""
        try:
            with descriptors.closing(fd):
                return self._read(fd, working_sets.read(self._state, uuid), stream)
        except OSError as error:
            return f"the image cannot be read: {error.strerror}"
        except errors.MapsaveError as error:
            return error.message
        finally:
            self._ended = time.monotonic()

    def _read(self, fd: int, known: WorkingSet | None, stream: Stream) -> str | None:
        reader = self._reader
        assert reader is not None
        found = list(known.stored(fd, stream)) if known is not None else []
        size = known.page_bytes if known is not None else 0
        self._of_bytes = sum(bits.count() for _, bits in found) * size
        if self._way == "all":
            self._of_bytes = sum(
                bitmaps.used_pages(fd, block) * block.page_size for block in stream.blocks
            )
        elif known is None:
            return "no working set is recorded"
        parts = (
            (block.pages_offset + first * size, block.pages_offset + end * size)
            for block, bits in found
            for first, end in bitmaps.runs(bits)
        )
        is_whole = reader.read(parts)
        if is_whole and self._way == "all":
            self._before = reader.done_bytes
            is_whole = reader.read(_all(fd, stream), is_idle=True)
        if is_whole:
            return None
        return "it was stopped" if self._stop.is_set() else "time was up"


def _all(fd: int, stream: Stream) -> Iterator[tuple[int, int]]:
    for block in stream.blocks:
        for first, end in bitmaps.set_runs(fd, block):
            size = block.page_size
            yield block.pages_offset + first * size, block.pages_offset + end * size


@contextlib.contextmanager
def beside(state: Path) -> Iterator[Warming]:
    """Yield what reads beside an operation; it ends with that, however that ends."""
    warming = Warming(state)
    try:
        yield warming
    finally:
        warming.stop()
