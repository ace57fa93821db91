"""Take digests of an image's data, and compare the data with them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict, TypeVar

from mapsave import blocking, errors, units
from mapsave.image import data_digests, descriptors, syscalls
from mapsave.image.image import Image
from mapsave.image.mapped_ram import Stream
from mapsave.migration import stall
from mapsave.migration.progress import Phases
from mapsave.operations import verified_notes
from mapsave.operations.verified_notes import Outcome, Place

T = TypeVar("T")

_SHOWN = 8  # places that a message names
_MOST = 1000  # places that the data of an error lists
_LOOK = 0.25  # seconds between two reports


class Data(TypedDict):
    """What is known of an image's data: ``digests`` are ``taken``, ``pending`` (to be taken) or
    ``none``. ``verified_bytes`` were read and have them; None where they were not asked for."""

    digests: str
    taken: str | None
    verified_bytes: int | None


class Watch:
    """How far the reading of an image is, in bytes; ends it once ``end`` is called.

    ``total`` is about how many there are. While ``is_paused`` no more are read. ``limit`` is how
    many seconds may go by without another one. ``check`` is called now and then, paused or not, and
    ends the reading by what it raises.
    """

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self.is_paused = False
        self.limit = stall.limit(0)
        self.check: Callable[[], None] = lambda: None
        self._is_over = threading.Event()

    def begin(self, total: int) -> None:
        """Count from 0, for about ``total`` bytes."""
        self.done, self.total = 0, total
        self.limit = stall.limit(total)

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Read data here, all of which is noted; before and after, the rest, which is not."""
        self.limit = stall.limit(0)
        try:
            yield
        finally:
            self.limit = stall.limit(self.total)

    def note(self, count: int) -> None:
        """Note that so many bytes are read next. Raises Interrupted once ``end`` was called."""
        self.check()
        while self.is_paused and not self._is_over.wait(_LOOK):
            self.check()
        if self._is_over.is_set():
            raise errors.Interrupted("the image is not read any further")
        self.done += count

    def end(self) -> None:
        """End the reading at its next MiB."""
        self._is_over.set()


async def watched(
    work: Callable[[Watch], T],
    phases: Phases,
    watch: Watch | None = None,
    *,
    pauses: Callable[[], bool] = lambda: False,
) -> T:
    """Return what ``work`` returns, which reads an image, and report how far it is.

    While ``pauses`` says so it reads nothing. Cancelled, it ends the reading, and does not wait for
    that: storage may hang. Raises Hangs where it does, NoThread, and what ``work`` raises.
    """
    watch = watch or Watch()
    watch.is_paused = pauses()
    outcome = blocking.begin_apart(work, watch)
    task = asyncio.wrap_future(outcome)
    before, idle = (watch.done, watch.limit), 0.0
    try:
        while not task.done():
            began = time.monotonic()
            await asyncio.wait({task}, timeout=_LOOK)
            # No more than we have waited: we may have been stopped ourselves.
            waited = min(time.monotonic() - began, 2 * _LOOK)
            now = (watch.done, watch.limit)
            idle = 0.0 if watch.is_paused or now != before else idle + waited
            before = now
            if idle >= watch.limit and not task.done():
                raise blocking.hangs(watch.limit)
            watch.is_paused = pauses()
            phases.progress(watch.done, max(watch.total, watch.done))
        return task.result()
    finally:
        watch.end()
        task.cancel()
        blocking.note(outcome)


def summary(opened: Image, verified: int | None = None) -> Data:
    """Return what is known of an image's data, without looking at it."""
    taken = None
    with contextlib.suppress(errors.InvalidImage):
        if (found := opened.taken_digests()) is not None:
            taken = units.timestamp(found.taken)
    return {"digests": opened.block.digests, "taken": taken, "verified_bytes": verified}


def not_verified(opened: Image) -> list[str]:
    """Return a warning where an image has no digests to compare its data with."""
    if opened.block.digests == "taken":
        return []
    why = (
        "its save was told to take none or reserved too little room, an older mapsave or libvirt "
        "saved it, or rewrote its XML"
    )
    if opened.block.digests == "pending":
        why = "they are still to be taken: the service does, or 'mapsave verify --add-digests'"
    return [f"{opened.path!r}: its data was not verified, there are no digests of it: {why}"]


def add(opened: Image, watch: Watch, *, when_idle: bool = False) -> bool:
    """Take the digests of an image that has none, but room for them; return whether it has some.

    The structure is verified first. Data is read at idle priority with ``when_idle``. Raises
    InvalidImage or one of its kin, ImageNotFound where it is removed meanwhile, NotPermitted,
    NotDigested where they cannot be written, Interrupted, NoThread.
    """
    watch.begin(opened.allocated)
    if opened.block.digests != "pending":
        return opened.block.digests == "taken"
    # Before all of it is read for nothing.
    with _recording(opened), descriptors.reopened(opened.fd, os.O_WRONLY):
        pass
    opened.validate()
    watch.check = functools.partial(check_named, opened)
    # A thread of its own has that priority: writing, others wait for us.
    taking = blocking.begin_apart(_taken, opened, watch, when_idle)
    with descriptors.reading(opened.path), watch.counting():
        taken = taking.result()
    with _recording(opened), contextlib.suppress(ValueError):
        opened.add_digests(taken)
    return opened.block.digest_length > 0


def _taken(opened: Image, watch: Watch, when_idle: bool) -> data_digests.Digests:
    if when_idle:
        syscalls.lower_io_priority(is_idle=True)
    block = opened.block
    return data_digests.take(opened.fd, block.stream_offset, block.file_length, watch.note)


def check_named(opened: Image) -> None:
    """Raise ImageNotFound where an image was removed, whose space we would keep from being free."""
    if not os.fstat(opened.fd).st_nlink:
        raise errors.ImageNotFound(f"{opened.path!r} was removed while it was read")


@contextlib.contextmanager
def _recording(opened: Image) -> Iterator[None]:
    """Raise NotDigested, or NotPermitted, where digests of an image cannot be written."""
    try:
        yield
    except OSError as error:
        raise errors.of_os_error(
            error,
            f"the digests of {opened.path!r} cannot be written: {error.strerror}",
            opened.path,
            otherwise=errors.NotDigested,
            hint="the image is as good as it was",
        ) from None


def verify(opened: Image, watch: Watch) -> int | None:
    """Compare an image's data with its digests; return how many bytes that were, holes left out.

    None where there are none. Raises DataDamaged, DigestsDamaged, UnreadableImage, Interrupted, and
    what ``Image.validate`` raises: of an image whose structure is damaged too the error has the
    places that differ.
    """
    watch.begin(opened.allocated)
    try:
        stream = opened.validate().stream
    except (errors.PartialImage, errors.TruncatedImage, errors.UnreadableImage):
        raise
    except errors.InvalidImage as error:
        with contextlib.suppress(errors.DigestsDamaged, errors.UnsupportedImage):
            add_places(error, _differing(opened, None, watch) or [])
        raise
    places = _differing(opened, stream, watch)
    if places is None:
        return None
    if places:
        raise damaged(opened.path, places)
    return watch.done


def damaged(path: str, places: list[Place], count: int | None = None) -> errors.DataDamaged:
    """Return the error for an image whose data differs in these places, or in ``count`` of them and
    more."""
    return errors.DataDamaged(
        f"{path!r}: its data is damaged: {_words(places, count)}",
        hint="restore from another copy; a guest that is restored from this one has other "
        "memory there than it was saved with",
        **_data(places, count),
    )


def add_places(error: errors.InvalidImage, places: list[Place], count: int | None = None) -> None:
    """Add to the error for an image where its data differs as well, as ``damaged`` has it."""
    error.data = {**error.data, **_data(places, count)}
    if places:
        error.message += f"; {_words(places, count)}"


def verify_noted(opened: Image, state: Path, watch: Watch) -> int | None:
    """Do as ``verify``, and note in ``state`` what was found."""
    with verified_notes.noting_failure(state, opened):
        found = verify(opened, watch)
    outcome = Outcome.UNDIGESTED if found is None else Outcome.VERIFIED
    verified_notes.note_end(state, opened, outcome, verified=found or 0)
    return found


def _data(places: list[Place], count: int | None) -> dict[str, object]:
    return {"damaged": places[:_MOST], "damaged_places": len(places) if count is None else count}


def _differing(opened: Image, stream: Stream | None, watch: Watch) -> list[Place] | None:
    known = opened.taken_digests()
    if known is None:
        return None
    with descriptors.reading(opened.path), watch.counting():
        pieces = data_digests.differing(opened.fd, known, watch.note)
    return places_of(stream, pieces)


def places_of(stream: Stream | None, pieces: list[tuple[int, int]]) -> list[Place]:
    """Return what is in pieces of a file, by first byte and end: pages of RAM blocks, or not."""
    return [place for start, end in pieces for place in _places(stream, start, end)]


def _places(stream: Stream | None, start: int, end: int) -> Iterator[Place]:
    """Yield what pages are from ``start`` to ``end``; of a piece without any, the piece."""
    found = False
    for block in stream.blocks if stream is not None else ():
        low, high = max(start, block.pages_offset), min(end, block.end)
        if low < high:
            found = True
            address = low - block.pages_offset
            yield Place(
                offset=low,
                length=high - low,
                block=block.name,
                address=address,
                ram_bytes=high - low,
            )
    if not found:
        yield Place(offset=start, length=end - start, block=None, address=None, ram_bytes=0)


def _words(places: list[Place], count: int | None = None) -> str:
    words = [_place(each) for each in places[:_SHOWN]]
    more = (len(places) if count is None else count) - len(words)
    if more:
        words.append(f"and {more} places more")
    return "; ".join(words)


def _place(place: Place) -> str:
    where = f"bytes {place['offset']} to {place['offset'] + place['length']} of the file"
    if place["block"] is None:
        return where
    first, last = place["address"] or 0, (place["address"] or 0) + place["ram_bytes"]
    return f"{where}, RAM block {place['block']!r} from 0x{first:x} to 0x{last:x}"
