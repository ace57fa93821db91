"""Scrub one image: compare its data with its digests, slowly, and go on where the last look ended.

What was found is noted (``verified_notes``), and now and then how far it is, so that not much is
read again after a crash. An image that is gone, replaced, or written to while it is read is left to
the next run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from mapsave import errors, units
from mapsave.image import bitmaps, data_digests, descriptors, image, syscalls
from mapsave.image.data_digests import Digests
from mapsave.image.image import Image
from mapsave.image.mapped_ram import Stream
from mapsave.image.piece_reader import PIECE
from mapsave.image.superblock import State
from mapsave.operations import digesting, locks, verified_notes
from mapsave.operations.digesting import Watch
from mapsave.operations.verified_notes import Outcome, UnderWay

_PART = 256 * units.MIB  # of the file; after each it is known how far the look is
_SECONDS = 2.0  # that a part takes at most at a limited rate
_NOTED = 5.0  # seconds between two notes of how far it is
_MOST_PLACES = 1000
_PAUSE = 0.25  # seconds
_ENDING = 2.0  # seconds that a look which was cancelled takes to end, at most


class Over(Exception):
    """A run ends before all is done: its time is up, or it has read as much as it may."""

    def __init__(self, why: Literal["timeout", "limit"]) -> None:
        super().__init__(why)
        self.why = why


class Pace:
    """Keeps reading to ``rate`` bytes per second, whatever came before; None is no limit."""

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._next = 0.0

    def wait(self, watch: Watch) -> None:
        """Wait until more may be read. Raises what ``watch`` ends it by."""
        while (left := self._next - time.monotonic()) > 0:
            watch.note(0)
            time.sleep(min(left, _PAUSE))

    def count(self, size: int) -> None:
        """Count that so many bytes are read now."""
        if self.rate is not None:
            self._next = max(self._next, time.monotonic()) + size / self.rate


@dataclasses.dataclass
class Turn:
    """The look at the image at ``path``.

    ``state`` is the state directory. ``stop`` is called before each piece with how many bytes were
    read, and raises Over. What is known of the look is there whichever way it ends.
    """

    state: Path
    path: str
    pace: Pace
    stop: Callable[[int], None]
    read: int = 0  # bytes, by this look
    resumed_at: int | None = None
    _key: str = ""
    _under_way: UnderWay | None = None
    _noted: float = dataclasses.field(default_factory=time.monotonic)

    def note(self) -> None:
        """Note how far the look is, if it has begun and not ended. Never raises."""
        if self._under_way is not None:
            verified_notes.note_under_way(self.state, self.path, self._key, self._under_way)
            self._noted = time.monotonic()

    def note_now_and_then(self) -> None:
        """Do so unless that was done just now."""
        if time.monotonic() - self._noted >= _NOTED:
            self.note()

    def begin(self, name: str, digests: str, begin: int) -> UnderWay:
        """Return how far the look is at its begin: as far as the one before came."""
        self._key = name
        before = verified_notes.read(self.state, name)
        known = before.under_way if before is not None else None
        if known is not None and known.digests == digests and known.position > begin:
            self.resumed_at = known.position
            self._under_way = known
            return known
        return UnderWay(digests=digests, position=begin, bytes=0)

    def came_to(self, under_way: UnderWay) -> None:
        """Note in memory how far it is."""
        self._under_way = under_way

    def end(self) -> None:
        """There is nothing to go on with."""
        self._under_way = None


@dataclasses.dataclass(frozen=True)
class Looked:
    """What came of it. ``verified`` bytes are as they should be, be they read now or before."""

    outcome: Outcome
    verified: int
    error: errors.MapsaveError | None = None


def look(turn: Turn, watch: Watch) -> Looked:
    """Look at an image, and note what was found. Blocks.

    Raises ImageNotFound where it goes in the meantime; Busy where another process looks at it, or
    changes it; PartialImage; NotPermitted; Over, Interrupted; NoThread; and InvalidImage or one of
    its kin where it cannot be opened, which is not noted.
    """
    syscalls.lower_io_priority(is_idle=True)
    with image.opened(turn.path) as opened, alone(turn.state, opened), _forgetting(turn, opened):
        if opened.block.state is State.PARTIAL:
            raise errors.PartialImage(f"{turn.path!r} is being written, or was never completed")
        before = os.fstat(opened.fd).st_mtime_ns

        def check() -> None:
            digesting.check_named(opened)
            turn.stop(turn.read)

        watch.begin(opened.allocated)
        watch.check = check
        found = _looked(turn, opened, watch)
        check_replaced(opened)
        if found.outcome.is_bad and os.fstat(opened.fd).st_mtime_ns != before:
            raise errors.Busy(f"{turn.path!r} was changed while it was read")
        if found.outcome is not Outcome.UNREADABLE:  # the next look goes on from there
            turn.end()
        verified_notes.note_end(
            turn.state, opened, found.outcome, verified=found.verified, error=found.error
        )
        return found


@contextlib.contextmanager
def _forgetting(turn: Turn, opened: Image) -> Iterator[None]:
    """Leave no note of an image that was removed, though some was written since."""
    try:
        yield
    except errors.ImageNotFound:
        turn.end()
        stats = os.fstat(opened.fd)
        if not stats.st_nlink:
            verified_notes.forget(turn.state, opened.block.uuid, stats.st_ino)
        raise


def check_replaced(opened: Image) -> None:
    """Raise ImageNotFound where an image has lost its name to another one, or altogether."""
    digesting.check_named(opened)
    with contextlib.suppress(OSError):
        if not os.path.samestat(os.stat(opened.path), os.fstat(opened.fd)):
            raise errors.ImageNotFound(f"{opened.path!r} was replaced while it was read")


@contextlib.contextmanager
def alone(state: Path, opened: Image) -> Iterator[None]:
    """Hold what keeps two processes from looking at one image: it would be read twice."""
    key = f"scrub:{verified_notes.key_of(opened)}"
    until = time.monotonic() + _ENDING
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locks.held(state, f"image {opened.path!r}", key))
                break
            except errors.Busy:
                if time.monotonic() >= until:
                    raise errors.Busy(
                        f"{opened.path!r} is being scrubbed by another job, or its storage hangs"
                    ) from None
            time.sleep(_PAUSE / 10)
        yield


def _looked(turn: Turn, opened: Image, watch: Watch) -> Looked:
    error: errors.InvalidImage | None = None
    stream: Stream | None = None
    known: Digests | None = None
    try:
        try:
            stream = opened.validate().stream
            turn.pace.count(_structure_bytes(stream))
        except (errors.TruncatedImage, errors.UnreadableImage):
            raise
        except errors.InvalidImage as found:
            error = found
        with contextlib.suppress(errors.UnsupportedImage):
            known = opened.taken_digests()
        if known is None:
            return _without_digests(error)
        return _compared(turn, opened, stream, known, error, watch)
    except errors.InvalidImage as found:
        return Looked(verified_notes.outcome_of(found), 0, error or found)


def _without_digests(error: errors.InvalidImage | None) -> Looked:
    return Looked(Outcome.UNDIGESTED if error is None else Outcome.DAMAGED, 0, error)


def _compared(
    turn: Turn,
    opened: Image,
    stream: Stream | None,
    known: Digests,
    error: errors.InvalidImage | None,
    watch: Watch,
) -> Looked:
    """Compare the data, part by part. Raises TruncatedImage, UnreadableImage, and as ``look``."""
    digest = hashlib.sha256(known.pack()).hexdigest()
    at = turn.begin(verified_notes.key_of(opened), digest, known.begin)
    watch.done = at.bytes

    def note(count: int) -> None:
        watch.note(0)
        turn.pace.wait(watch)
        watch.note(count)
        turn.pace.count(count)
        turn.read += count

    with descriptors.reading(opened.path), watch.counting():
        while at.position < known.end:
            before = turn.read
            end = _part_end(opened.fd, at.position, known.end, turn.pace.rate)
            pieces = data_digests.differing(opened.fd, known.part(at.position, end), note)
            places = digesting.places_of(stream, pieces)
            at = UnderWay(
                digests=digest,
                position=end,
                bytes=at.bytes + turn.read - before,
                places=(*at.places, *places)[:_MOST_PLACES],
                count=at.count + len(places),
            )
            turn.came_to(at)
            turn.note_now_and_then()
    if not at.count:
        outcome = Outcome.VERIFIED if error is None else Outcome.DAMAGED
        return Looked(outcome, at.bytes, error)
    found = list(at.places)
    if error is None:
        return Looked(Outcome.DAMAGED, at.bytes, digesting.damaged(opened.path, found, at.count))
    digesting.add_places(error, found, at.count)
    return Looked(Outcome.DAMAGED, at.bytes, error)


def _part_end(fd: int, begin: int, end: int, rate: int | None) -> int:
    """Return where the part of a file that begins there ends: between two pieces, or at its end.

    A hole is one part, however long.
    """
    size = _PART if rate is None else min(_PART, int(rate * _SECONDS))
    part = max((begin + size) // PIECE, begin // PIECE + 1)
    return min(end, PIECE * max(part, bitmaps.data_from(fd, begin) // PIECE))


def _structure_bytes(stream: Stream) -> int:
    """Return how many bytes of the stream are not pages: those are read to verify the structure."""
    pages = sum(block.end - block.pages_offset for block in stream.blocks)
    return max(0, stream.end - stream.offset - pages)
