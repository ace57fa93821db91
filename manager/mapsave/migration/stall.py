"""Give up a load that has stopped: one without progress, however long it may take with it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mapsave import errors, units
from mapsave.migration import outgoing
from mapsave.monitor.activity import Activity

T = TypeVar("T")

# Bytes a second that the slowest storage reads; for a QEMU whose progress cannot be seen.
SLOWEST = 8 << 20
_LOOKS = 10  # in the time after which a load is given up
_MOST = 1.0  # seconds between two looks
_UNSEEN = "QEMU, whose process cannot be seen,"


def limit(image_bytes: int) -> float:
    """Return how many seconds bringing so many bytes to storage, or reading them, may take."""
    return outgoing.STALL + image_bytes / SLOWEST


class Watch:
    """Watches the load of an image by one QEMU."""

    def __init__(
        self, seconds: float, image_bytes: int, find_pid: Callable[[], int | None]
    ) -> None:
        """Give up after ``seconds`` in which the process that ``find_pid`` finds does nothing.

        One out of sight gets the time that the slowest storage takes for ``image_bytes`` too.
        """
        self._seconds = seconds
        self._unseen_limit = seconds + image_bytes / SLOWEST
        self._find_pid = find_pid
        self._pid: int | None = None
        self._activity = Activity(None)
        self._idle = 0.0

    def progressed(self) -> None:
        """Note that QEMU has said something new."""
        self._idle = 0.0

    async def until(self, work: Awaitable[T]) -> T:
        """Return what ``work`` returns. Raises RestoreStalled, ``work`` being cancelled then."""
        task = asyncio.ensure_future(work)
        interval = min(self._seconds / _LOOKS, _MOST)
        try:
            while True:
                began = time.monotonic()
                await asyncio.wait({task}, timeout=interval)
                if task.done():
                    return task.result()
                # No more than we have waited: we may have been stopped ourselves, and QEMU too.
                self._look(min(time.monotonic() - began, 2 * interval))
        finally:
            # Not waited for: a call that hangs ends once the caller has killed its QEMU.
            task.cancel()
            # Its exception is looked at, else asyncio would log that no one has.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _look(self, elapsed: float) -> None:
        if self._pid is None and (pid := self._find_pid()) is not None:
            self._pid, self._activity, self._idle = pid, Activity(pid), 0.0
        moved = self._activity.has_moved()
        self._idle = 0.0 if moved else self._idle + elapsed
        limit = self._unseen_limit if moved is None else self._seconds
        if self._idle < limit:
            return
        who = f"QEMU (pid {self._pid})" if self._pid is not None else _UNSEEN
        raise errors.RestoreStalled(
            f"{who} has made no progress with the image for {units.format_duration(limit)}",
            hint="check whether the image's storage fails (dmesg); 'restore: {stall: ...}' in "
            "the configuration sets the time limit",
            pid=self._pid,
        )
