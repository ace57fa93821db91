"""Who may save now: so many saves at once on the host and on each file system, in fair order.

Each save also gets its share of the file system's bandwidth, fixed before it begins: QEMU's
parameters are not touched during a save.
"""

import asyncio
import collections
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator


@dataclasses.dataclass(eq=False)
class _Waiter:
    device: int
    turn: asyncio.Future[int]


class Slots:
    """The slots of a host: ``total`` saves at once, ``per_device`` of them on one file system.

    ``bandwidth`` is in bytes per second for all saves to one file system; None is no limit.
    """

    def __init__(self, total: int, per_device: int, bandwidth: int | None) -> None:
        self._waiting: list[_Waiter] = []
        self._running: collections.Counter[int] = collections.Counter()
        self._granted: collections.Counter[int] = collections.Counter()
        self.set_limits(total, per_device, bandwidth)

    def set_limits(self, total: int, per_device: int, bandwidth: int | None) -> None:
        """Change the limits; saves that run keep what they have."""
        self._total, self._per_device, self._bandwidth = total, per_device, bandwidth
        self._wake()

    @contextlib.asynccontextmanager
    async def acquire(self, device: int) -> AsyncIterator[int]:
        """Wait for a slot on the file system ``device`` (st_dev), and hold it.

        Yields the bytes per second that the save may write; 0 is no limit.
        """
        waiter = _Waiter(device, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._wake()
        try:
            share = await waiter.turn
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.turn.cancelled():
                self._give_back(device, waiter.turn.result())
            raise
        try:
            yield share
        finally:
            self._give_back(device, share)

    @contextlib.contextmanager
    def hold(self, device: int) -> Iterator[None]:
        """Hold a slot at once, for a save that is under way already, whatever the limits.

        What it was given of the bandwidth is not known: it may be all of it.
        """
        share = self._bandwidth or 0
        self._running[device] += 1
        self._granted[device] += share
        try:
            yield
        finally:
            self._give_back(device, share)

    def _give_back(self, device: int, share: int) -> None:
        for counter, amount in ((self._running, 1), (self._granted, share)):
            counter[device] -= amount
            if counter[device] <= 0:
                del counter[device]
        self._wake()

    def _wake(self) -> None:
        """Let those begin whose turn it is: the oldest first, passing over full file systems."""
        for waiter in list(self._waiting):
            if self._running.total() >= self._total:
                return
            if waiter.turn.done():  # cancelled; it goes when it runs next
                continue
            share = self._share(waiter.device)
            if share is None:
                continue
            self._waiting.remove(waiter)
            self._running[waiter.device] += 1
            self._granted[waiter.device] += share
            waiter.turn.set_result(share)

    def _share(self, device: int) -> int | None:
        """Return the bandwidth of one more save; None where it has to wait.

        What is not granted yet is divided among those that could begin now. A save that began alone
        has all of it; those that come while it runs wait for it, as the disk is busy anyway.
        """
        free = self._per_device - self._running[device]
        if free <= 0:
            return None
        if self._bandwidth is None:
            return 0
        fair = max(self._bandwidth // self._per_device, 1)
        left = self._bandwidth - self._granted[device]
        if left < fair:
            return None
        wanting = sum(each.device == device and not each.turn.done() for each in self._waiting)
        return max(left // max(min(free, wanting), 1), fair)
