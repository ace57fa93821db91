"""Takes the digests of images that lack them: one image at a time, and not while guests are moved.

Images whose digests are to be taken say so themselves, so nothing is lost where the service ends
before: those of the image directory are looked for at the start, and every hour, for commands that
save without the service leave such images as well. Not so where the configuration says ``off``. One
whose reading has failed is read again once it has changed, or by the next service.
"""

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mapsave import blocking, errors, units
from mapsave.image import descriptors, formats, image, partial_names, store
from mapsave.migration import stall
from mapsave.migration.progress import Phases
from mapsave.operations import digesting

_log = logging.getLogger(__name__)

_EVERY = 3600.0  # seconds between two looks at the image directory

Ended = Callable[[str, int], None]
_Seen = tuple[int, int, int]  # device, inode, and when that was changed, in nanoseconds


class DigestTaker:
    """What takes digests beside the operations of a service."""

    def __init__(
        self, images: Callable[[], Path | None], is_busy: Callable[[], bool], ended: Ended
    ) -> None:
        """``images`` is the directory to look in; None for none. While ``is_busy`` nothing is read.

        ``ended`` is called with the outcome for an image, ``done`` or ``failed``, and with how many
        bytes were read.
        """
        self._images = images
        self._is_busy = is_busy
        self._on_end = ended
        self._saved: dict[str, None] = {}  # in the order in which they were saved
        self._failed: dict[str, _Seen] = {}  # as they were then
        self._wake = asyncio.Event()

    def saved(self, path: str) -> None:
        """Take the digests of an image that was saved just now, if they are to be taken."""
        self._saved[path] = None
        self._wake.set()

    async def run(self) -> None:
        """Take digests, now and whenever there are images without any."""
        while True:
            for path in await self._pending():
                await self._take(path)
            loop = asyncio.get_running_loop()
            again = loop.time() + _EVERY
            while (left := again - loop.time()) > 0:
                try:
                    await asyncio.wait_for(self._wake.wait(), left)
                except TimeoutError:
                    break
                self._wake.clear()
                while self._saved:
                    path = next(iter(self._saved))
                    del self._saved[path]
                    await self._take(path)

    async def _pending(self) -> list[str]:
        if (directory := self._images()) is None:
            return []
        try:
            found = await blocking.within(stall.limit(0), pending, directory)
        except (OSError, errors.MapsaveError) as error:
            _log.warning("images without digests cannot be looked for: %s", error)
            return []
        self._failed = {path: self._failed[path] for path in found if path in self._failed}
        return found

    async def _take(self, path: str) -> None:
        watch = digesting.Watch()
        phases = Phases()
        phases.enter("digest")
        seen: list[_Seen] = []
        work = functools.partial(_take, path, self._failed.get(path), seen)
        try:
            is_new = await digesting.watched(work, phases, watch, pauses=self._is_busy)
        except errors.ImageNotFound:
            return  # it was discarded since
        except blocking.NoThread as error:
            _log.warning("digests of the data of %r are taken later: %s", path, error.strerror)
            return
        except (OSError, MemoryError, errors.MapsaveError) as error:
            _log.warning("no digests of the data of %r were taken: %s", path, error)
            is_cheap = isinstance(error, errors.NotDigested | errors.NotPermitted)
            if seen and (watch.done or not is_cheap):
                self._failed[path] = seen[-1]
            self._on_end("failed", watch.done)
            return
        if is_new:
            size, seconds = units.format_size(watch.done), units.format_duration(phases.total)
            _log.info("took digests of the data of %r: %s in %s", path, size, seconds)
            self._on_end("done", watch.done)


def _take(path: str, failed: _Seen | None, seen: list[_Seen], watch: digesting.Watch) -> bool:
    """Take the digests of an image; return whether there were none, and now are.

    Not of one that is still as it was when that ``failed``. How it is now is added to ``seen``.
    """
    with image.opened(path) as opened:
        now = _seen(opened.fd)
        if opened.block.digests != "pending" or now == failed:
            return False
        seen.append(now)
        try:
            return digesting.add(opened, watch, when_idle=True)
        finally:
            seen.append(_seen(opened.fd))  # a write that fails changes it as well


def _seen(fd: int) -> _Seen:
    stats = os.fstat(fd)
    return stats.st_dev, stats.st_ino, stats.st_ctime_ns


def pending(directory: Path) -> list[str]:
    """Return the paths of images in a directory whose digests are to be taken, the oldest first.

    Raises BadDirectory, NotPermitted, OSError.
    """
    if not directory.exists():
        return []
    with store.directory(directory) as held:
        return [path for _, path in sorted(_pending(held))]


def _pending(held: store.Directory) -> Iterator[tuple[float, str]]:
    for name in os.listdir(held.fd):
        if partial_names.is_partial_name(name):
            continue
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK
            with descriptors.opened(held.fd, name, flags) as fd:
                block, header = formats.slots(fd)
                is_whole = header is None or header.complete
                if block is not None and block.digests == "pending" and is_whole:
                    yield os.fstat(fd).st_mtime, os.path.join(held.path, name)
        except (OSError, errors.InvalidImage):
            continue  # listings and metrics say what is wrong with it
