"""How many images the image directory holds, and what they occupy; cheap enough for each scrape."""

import asyncio
import dataclasses
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mapsave import blocking, errors
from mapsave.image import image, partial_names
from mapsave.image.superblock import State
from mapsave.operations import exclusive, verified_notes
from mapsave.operations.image_index import SETTLED
from mapsave.service.metrics.verified import Verified, VerifiedImages

Usage = Mapping[str, tuple[int, int]]

_log = logging.getLogger(__name__)

STATES = ("saved", "restored", "partial", "invalid", "unreadable")
FRESH = 15.0
# What is older than this is not reported any more: the file system does not answer.
_TOO_OLD = 4 * FRESH


class StoreUsage:
    """Counts the images of a directory, in a thread, at most every ``fresh`` seconds.

    A file's header is read again only when the file has changed, or did so a moment ago.
    """

    def __init__(
        self,
        directory: Callable[[], Path],
        state: Callable[[], Path | None] = lambda: None,
        *,
        fresh: float = FRESH,
        patience: float = 2.0,
    ) -> None:
        """``state`` is the state directory, whose notes say which images were verified.

        ``patience`` is how many seconds a scrape waits for a file system that is slow.
        """
        self._directory = directory
        self._state = state
        self._notes = VerifiedImages()
        self._fresh = fresh
        self._patience = patience
        self._task: asyncio.Task[None] | None = None
        self._seen: tuple[Path, float, Usage] | None = None
        self._verified: Verified | None = None
        self._exclusive: dict[str, int] = {}
        self._known: dict[str, tuple[tuple[int, ...], _Look]] = {}
        self._problem: str | None = None

    async def read(self) -> Usage | None:
        """Return count and bytes on disk of the images by state; None where that is not known."""
        directory = self._directory()
        if self._age(directory) >= self._fresh:
            # One thread at most, however many ask and however long the file system takes.
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._look(directory))
            await asyncio.wait({self._task}, timeout=self._patience)
        if self._seen is None or self._age(directory) >= max(_TOO_OLD, self._fresh):
            return None
        return self._seen[2]

    @property
    def verified(self) -> Verified | None:
        """Which of the images that ``read`` has returned last were verified, if that is known."""
        return self._verified if self._seen is not None else None

    @property
    def exclusive(self) -> Mapping[str, int]:
        """Return the bytes that the images share with no other file, by state, where known."""
        return self._exclusive if self._seen is not None else {}

    def _age(self, directory: Path) -> float:
        if self._seen is None or self._seen[0] != directory:
            return float("inf")
        return time.monotonic() - self._seen[1]

    async def _look(self, directory: Path) -> None:
        try:
            found = await blocking.call(self._scan, directory)
        except OSError as error:
            self._seen = None
            problem = f"{os.fspath(directory)!r}: {error.strerror}"
            if problem != self._problem:
                _log.warning("cannot count the images of %s", problem)
            self._problem = problem
            return
        self._problem = None
        self._seen = (directory, time.monotonic(), found)

    def _scan(self, directory: Path) -> Usage:
        """Raises OSError where the directory cannot be read; one that is not there is empty."""
        found = dict.fromkeys(STATES, (0, 0))
        known: dict[str, tuple[tuple[int, ...], _Look]] = {}
        own: dict[str, int | None] = dict.fromkeys(STATES, 0)
        budget = exclusive.Budget()
        whole: set[str] = set()
        now = time.time_ns()
        try:
            with os.scandir(directory) as files:
                for file in files:
                    try:
                        stats = file.stat()
                    except OSError:  # removed while we looked
                        continue
                    mark = (stats.st_ino, stats.st_size, stats.st_mtime_ns, stats.st_ctime_ns)
                    was, look = self._known.get(file.path, (None, _NO_IMAGE))
                    if was != mark:
                        look = _look_at(file.path, stats)
                    if now - stats.st_ctime_ns > SETTLED:
                        known[file.path] = (mark, look)
                    state = look.state
                    if look.key is not None:
                        whole.add(look.key)
                    if state is not None:
                        alone = budget.of(file.path, is_checkpoint=look.is_checkpoint)
                        sum_ = own[state]
                        own[state] = None if alone is None or sum_ is None else sum_ + alone
                        count, size = found[state]
                        found[state] = (count + 1, size + stats.st_blocks * 512)
        except FileNotFoundError:
            pass
        self._known = known
        self._exclusive = {state: size for state, size in own.items() if size is not None}
        place = self._state()
        self._verified = None if place is None else self._notes.look(place, whole)
        return found


@dataclasses.dataclass(frozen=True)
class _Look:
    """The state of an image as `mapsave list` shows it; None for another file.

    And the key of its note, None where it is not complete.
    """

    state: str | None = None
    key: str | None = None
    is_checkpoint: bool = False


_NO_IMAGE = _Look()


def _look_at(path: str, stats: os.stat_result) -> _Look:
    try:
        with image.opened(path) as opened:
            block = opened.block
            key = None if block.state is State.PARTIAL else verified_notes.key_of(opened)
            return _Look(block.state.word, key, bool(opened.metadata.get("checkpoint")))
    except (errors.NotAnImage, errors.ImageNotFound):
        return _NO_IMAGE
    except (errors.InvalidImage, errors.NotPermitted, OSError) as error:
        if not stat.S_ISREG(stats.st_mode):
            return _NO_IMAGE
        if partial_names.is_partial_name(path):
            return _Look("partial")
        cannot_look = (errors.NotPermitted, errors.UnreadableImage, OSError)
        return _Look("unreadable" if isinstance(error, cannot_look) else "invalid")
