"""How fast a save goes: the bandwidth limit, the estimates made of it, and the times reported.

Source: QEMU's ``migration/migration.c`` (``migration_update_counters``, ``migration_rate_limit``)
of 10.0; where 11.1 differs is in ``versions``.
"""

import threading
import time

from mapsave.emulator.migration_options import Parameters
from mapsave.emulator.options import PAGE
from mapsave.emulator.ram_save import RamSave

_FOREVER = (1 << 63) - 1  # milliseconds, where nothing has been sent yet

WINDOW = 0.1  # seconds over which the limit holds and the bandwidth is measured


class Pace:
    """The clock of one save. Times are reported in milliseconds, as QEMU does."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # bytes a second, 0 for none
        self.threshold = 0  # bytes that can be sent within the permitted downtime
        self._downtime: int | None = None  # milliseconds, as foreseen
        self._started = self._window_start = time.monotonic()
        self._setup_done = self._stopped = self._finished = self._started
        self._window_sent = 0
        self._rate = 0.0  # bytes a second in the last window
        self._hurry = threading.Event()

    def begin(self) -> None:
        """Setup is done, iterations begin."""
        self._setup_done = self._window_start = time.monotonic()

    def stopped(self) -> None:
        """The guest is being stopped: the downtime begins."""
        self._stopped = time.monotonic()

    def finished(self) -> None:
        """All is written."""
        self._finished = time.monotonic()

    def hurry(self) -> None:
        """Let :meth:`rest` return at once: the save is being cancelled."""
        self._hurry.set()

    def idle(self) -> None:
        """Wait a moment in a save that has nothing to do; less if it is being cancelled."""
        self._hurry.wait(WINDOW / 10)

    def exhausted(self, sent: int) -> bool:
        """True if what the limit allows in a window is used up; ``sent`` counts all bytes."""
        return self.limit > 0 and sent - self._window_sent >= self.limit * WINDOW

    def rest(self, sent: int, parameters: Parameters) -> None:
        """Wait for the window's end if its allowance is used up, and begin a new one if it is."""
        left = WINDOW - (time.monotonic() - self._window_start)
        if self.exhausted(sent) and left > 0:
            self._hurry.wait(left)
        passed = time.monotonic() - self._window_start
        if passed < WINDOW:
            return
        self.limit = parameters["max-bandwidth"]
        self._rate = (sent - self._window_sent) / passed
        bandwidth = parameters["avail-switchover-bandwidth"] or self._rate
        self.threshold = int(bandwidth * parameters["downtime-limit"] / 1000)
        self._window_start, self._window_sent = time.monotonic(), sent

    def foresee(self, left: int) -> None:
        """Reckon the downtime of a guest with ``left`` bytes to send."""
        self._downtime = int(left * 1000 / self._rate) if self._rate else _FOREVER

    def report(self, downtime_limit: int, *, done: bool) -> dict[str, int]:
        end = self._finished if done else time.monotonic()
        times = {
            "total-time": int((end - self._started) * 1000),
            "setup-time": int((self._setup_done - self._started) * 1000),
        }
        if done:
            return {**times, "downtime": int((self._finished - self._stopped) * 1000)}
        return {**times, "expected-downtime": self._downtime or downtime_limit}

    def ram(self, ram: RamSave, stream_bytes: int, total: int, *, done: bool) -> dict[str, float]:
        count = ram.counters
        transferred = stream_bytes + count.multifd_bytes + count.page_bytes
        rate = self._rate
        if done:
            rate = transferred / max(self._finished - self._started, 0.001)
        return {
            "total": total,
            "postcopy-requests": 0,
            "dirty-sync-count": count.syncs,
            "multifd-bytes": count.multifd_bytes,
            "pages-per-second": int(self._rate / PAGE),
            "downtime-bytes": stream_bytes if done else 0,
            "page-size": PAGE,
            "remaining": 0 if done else ram.bytes_left,
            "postcopy-bytes": 0,
            "mbps": rate * 8 / 1e6,
            "transferred": transferred,
            "dirty-sync-missed-zero-copy": 0,
            "precopy-bytes": 0 if done else stream_bytes,
            "duplicate": count.duplicate,
            "dirty-pages-rate": 0,
            "normal-bytes": count.normal * PAGE,
            "normal": count.normal,
        }
