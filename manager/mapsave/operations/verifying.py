"""Verify an image's data beside a restore that maps RAM from it.

To read all of it before would take the time that such a restore is to save. So what QEMU loads is
compared with its digests before it does, and the pages beside that, through the page cache, from
which the guest gets them: those of the working set first. A guest of whose image a piece differs
never runs, or is paused at once: it may have read other memory than it was saved with, or would.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence

from mapsave import blocking, errors
from mapsave.config import Config
from mapsave.image import bitmaps, data_digests, descriptors, piece_reader
from mapsave.image.data_digests import Digests
from mapsave.image.image import Image
from mapsave.image.mapped_ram import Stream
from mapsave.image.piece_reader import PIECE
from mapsave.image.stub import Mapped
from mapsave.image.superblock import DIGEST_SIZE
from mapsave.migration import guest_state, stall
from mapsave.migration.progress import Phases, Progress, Report, silent
from mapsave.migration.run_states import RunState
from mapsave.monitor import mappings, pagemap
from mapsave.operations import attach, digesting, reading_first, verified_notes, working_sets
from mapsave.operations.results import RestoreResult
from mapsave.operations.verified_notes import Outcome

_PATIENCE = 30.0  # seconds for another program to let go of the monitor, and QEMU to pause
_NAP = 0.25  # seconds


@contextlib.contextmanager
def beside(config: Config) -> Iterator[Verifying]:
    """Yield what verifies beside a restore; it ends with that, however that ends."""
    with contextlib.ExitStack() as stack:
        verifying = Verifying(config, stack)
        try:
            yield verifying
        finally:
            verifying.stop()


class Verifying:
    """One such verification; at most one is begun. ``stack`` closes what it opens."""

    def __init__(self, config: Config, stack: contextlib.ExitStack) -> None:
        self._config = config
        self._stack = stack
        self._report: Report | None = None
        self._watch = digesting.Watch()
        self._differing: list[tuple[int, int]] = []
        self._loop = asyncio.get_running_loop()
        self._first = asyncio.Event()
        self._opened: Image | None = None
        self._stream: Stream | None = None
        self._reading: asyncio.Task[None] | None = None
        self._guarding: asyncio.Task[dict[str, object] | None] | None = None

    async def begin(
        self, opened: Image, stream: Stream, mapped: Sequence[Mapped], rate: int | None
    ) -> None:
        """Compare what QEMU loads of an image, which need not stay open, and begin with the rest.

        At most ``rate`` bytes per second of that. Nothing is done where it has no digests. Raises
        DataDamaged, DigestsDamaged, UnreadableImage, TruncatedImage.
        """
        if (known := opened.taken_digests()) is None:
            return
        with descriptors.reading(opened.path):
            fd = self._stack.enter_context(descriptors.reopened(opened.fd, os.O_RDONLY))
            self._opened, self._stream = dataclasses.replace(opened, fd=fd), stream
            self._watch.begin(opened.allocated)
            limit = stall.limit(opened.allocated)
            pieces = await blocking.within(limit, self._compare, fd, known, mapped)
        self.check()

        def work(_: digesting.Watch) -> None:
            with descriptors.closing(own):
                self._compare_mapped(dataclasses.replace(pieces, fd=own), rate)

        own = os.dup(fd)  # the thread's, which may hang
        self._watch.limit = stall.limit(0) + (PIECE / rate if rate is not None else 0)
        phases = Phases(self._reported)
        phases.enter("verify")
        self._reading = asyncio.create_task(self._whole(work, phases))

    async def _whole(self, work: Callable[[digesting.Watch], None], phases: Phases) -> None:
        assert self._opened is not None
        path = self._opened.path
        with reading_first.noted(self._config.state, path), descriptors.reading(path):
            await digesting.watched(work, phases, self._watch)

    def check(self) -> None:
        """Raise what was found by now: DataDamaged, UnreadableImage, TruncatedImage."""
        if (error := self._found()) is not None:
            raise error

    def _found(self) -> errors.MapsaveError | None:
        """Return what is wrong with the image as far as it was read, and note it."""
        if self._opened is None:
            return None
        error: errors.MapsaveError | None = None
        ended = self._reading is not None and self._reading.done()
        if self._reading is not None and ended and not self._reading.cancelled():
            failed = self._reading.exception()
            if failed is not None:
                error = errors.as_ours(failed)
        if self._differing:
            places = digesting.places_of(self._stream, sorted(self._differing))
            error = digesting.damaged(self._opened.path, places)
        state = self._config.state
        if isinstance(error, errors.InvalidImage):
            outcome = verified_notes.outcome_of(error)
            verified_notes.note_end(state, self._opened, outcome, error=error)
        elif ended and error is None:
            done = self._watch.done
            verified_notes.note_end(state, self._opened, Outcome.VERIFIED, verified=done)
        return error

    def guard(self, done: RestoreResult) -> None:
        """Pause the guest that was restored as soon as a piece differs or cannot be read."""
        if self._reading is not None:
            self._guarding = asyncio.create_task(self._guarded(done))

    async def finish(self, done: RestoreResult, report: Report) -> None:
        """Wait until all is compared, and say in the result of the restore how much that was.

        Raises DataDamaged, UnreadableImage or TruncatedImage, which say what became of the guest.
        """
        if self._guarding is None:
            return
        self._report = report
        await asyncio.wait({self._guarding})
        if (error := self._found()) is not None:
            raise _told(error, done, self._guarding.result())
        done.verified_bytes = self._watch.done

    async def interrupt(self, done: RestoreResult) -> None:
        """Do as ``finish``, but read no more; where nothing is wrong by now, that is a warning."""
        if self._guarding is None or self._opened is None:
            return
        if self._guarding.done() or self._found() is not None:
            self._watch.end()  # what pauses the guest goes on
            await self.finish(done, silent)
            return
        self.stop()
        done.warnings.append(
            f"{self._opened.path!r}: its data was not verified to the end: interrupted"
        )
        done.verified_bytes = self._watch.done

    def stop(self) -> None:
        """Have it end: its restore has failed, or reads the image instead."""
        self._watch.end()
        for task in (self._reading, self._guarding):
            if task is not None:
                task.cancel()

    def _reported(self, now: Progress) -> None:
        if self._report is not None:
            self._report(now)

    def _compare(self, fd: int, known: Digests, mapped: Sequence[Mapped]) -> _Pieces:
        """Compare what is not mapped, and what is a hole; return the pieces."""
        pieces = _Pieces.of(fd, known, mapped)
        self._note(pieces, pieces.lost)
        comparing = data_digests.Comparing(pieces.fd, pieces.known)
        for number in pieces.loaded:
            self._compare_one(pieces, comparing, number)
        return pieces

    def _compare_one(self, pieces: _Pieces, comparing: data_digests.Comparing, number: int) -> int:
        """Compare a piece; return its bytes. Raises Interrupted, TruncatedImage, OSError."""
        low, high = pieces.known.bounds(number)
        self._watch.note(high - low)
        if comparing.differs(number):
            self._note(pieces, [number])
        return high - low

    def _compare_mapped(self, pieces: _Pieces, rate: int | None) -> None:
        assert self._opened is not None
        assert self._stream is not None
        comparing = data_digests.Comparing(pieces.fd, pieces.known)
        touched = working_sets.read(self._config.state, self._opened.block.uuid)
        first: list[int] = []
        if touched is not None:
            for block, bits in touched.stored(pieces.fd, self._stream):
                for run, end in bitmaps.runs(bits):
                    low = block.pages_offset + run * touched.page_bytes
                    high = block.pages_offset + end * touched.page_bytes
                    first.extend(range(low // PIECE, -(-high // PIECE)))
        began, count = time.monotonic(), 0
        for number in pieces.in_order(first):
            count += self._compare_one(pieces, comparing, number)
            while rate is not None and (pause := began + count / rate - time.monotonic()) > 0:
                self._watch.note(0)
                time.sleep(min(pause, _NAP))

    def _note(self, pieces: _Pieces, numbers: Sequence[int]) -> None:
        if numbers:
            self._differing.extend(pieces.known.bounds(number) for number in numbers)
            with contextlib.suppress(RuntimeError):  # nothing waits any more
                self._loop.call_soon_threadsafe(self._first.set)

    async def _guarded(self, done: RestoreResult) -> dict[str, object] | None:
        """Wait until all is read; pause the guest before that if need be, and say how that went."""
        assert self._reading is not None
        first = asyncio.create_task(self._first.wait())
        try:
            await asyncio.wait({self._reading, first}, return_when=asyncio.FIRST_COMPLETED)
            paused = None
            if self._differing or self._reading.exception() is not None:
                paused = await self._paused(done)
            await asyncio.wait({self._reading})
            return paused
        finally:
            first.cancel()

    async def _paused(self, done: RestoreResult) -> dict[str, object]:
        """Pause the guest; return whether it is, why not, and whether it has touched what differs.

        It may be None: its process cannot be looked into.
        """
        why_not = None
        try:
            async with asyncio.timeout(_PATIENCE), self._monitor(done).connected() as session:
                if await guest_state.run_state(session) == RunState.RUNNING:
                    await session.pause()
        except TimeoutError:
            why_not = "its monitor does not answer; another program may be connected to it"
        except errors.MapsaveError as error:
            why_not = error.message
        touched = None
        if self._differing and done.pid is not None:
            with contextlib.suppress(OSError):
                touched = await blocking.within(blocking.ANSWER, self._is_touched, done.pid)
        return {"paused": why_not is None, "why_not": why_not, "touched": touched}

    def _monitor(self, done: RestoreResult) -> attach.Monitor:
        guest = self._config.guest(str(done.monitor))
        if guest.libvirt is not None:
            return attach.Monitor(uri=guest.libvirt.uri, domain=guest.libvirt.domain)
        return attach.Monitor(socket=attach.socket_path(guest, self._config))

    def _is_touched(self, pid: int) -> bool:
        """Return whether a process has pages of what differs, or the kernel has given it some."""
        assert self._opened is not None
        for offset, bits in pagemap.of_file(pid, mappings.File.of(self._opened.fd)):
            for low, high in self._differing:
                first, end = (low - offset) // pagemap.PAGE, (high - offset) // pagemap.PAGE
                if end > 0 and bits[max(first, 0) : end].any():
                    return True
        return False


def _told(
    error: errors.MapsaveError, done: RestoreResult, paused: dict[str, object] | None
) -> errors.MapsaveError:
    """Return the error, saying what became of the guest."""
    found = paused or {}
    words = "it runs on, but can no longer be relied on"
    if found.get("paused"):
        words = "it is paused"
        if found.get("touched") is not None:
            had = "has" if found["touched"] else "has not"
            words += f", and {had} touched memory that is wrong"
    elif why_not := found.get("why_not"):
        words = f"it could not be paused: {why_not}"
    error.message += f"; guest {done.guest!r} ({done.monitor}) was restored from it: {words}"
    error.hint = "shut that guest down, and restore another copy"
    error.data = {**error.data, "guest": done.guest, "monitor": done.monitor, **found}
    return error


@dataclasses.dataclass(frozen=True)
class _Pieces:
    """The pieces of an image, by number: those with data that are mapped whole, and those that QEMU
    loads, at least in part; and those that are ``lost``: holes that should not be."""

    fd: int
    known: Digests
    loaded: Sequence[int]
    mapped: Sequence[int]
    lost: Sequence[int]

    @classmethod
    def of(cls, fd: int, known: Digests, blocks: Sequence[Mapped]) -> _Pieces:
        """Look where an image has data. Blocks. Raises OSError."""
        loaded: list[int] = []
        mapped: list[int] = []
        for number in piece_reader.with_data(fd, known.begin, known.end):
            low, high = known.bounds(number)
            inside = (each.block.pages_offset <= low and high <= each.block.end for each in blocks)
            (mapped if any(inside) else loaded).append(number)
        every = range(known.begin // PIECE, -(-known.end // PIECE))
        holes = sorted(set(every).difference(loaded, mapped))
        lost = [number for number in holes if known.digest(number) != bytes(DIGEST_SIZE)]
        return cls(fd, known, loaded, mapped, lost)

    def in_order(self, first: Sequence[int]) -> Iterator[int]:
        """Yield those that are mapped, those of ``first`` at first."""
        left = dict.fromkeys(self.mapped)
        for number in first:
            if number in left:
                del left[number]
                yield number
        yield from left
