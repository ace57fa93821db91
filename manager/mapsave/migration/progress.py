"""How far a migration is: phases, bytes and rates, and who wants to know."""

import dataclasses
import time
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Progress:
    """One report. Bytes of guest RAM; ``rate`` in bytes per second since the start."""

    phase: str
    done_bytes: int = 0
    total_bytes: int = 0
    rate: float = 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the present rate; None where that cannot be said."""
        if not self.rate or not self.total_bytes:
            return None
        return max(self.total_bytes - self.done_bytes, 0) / self.rate


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Report nothing."""


class Phases:
    """Seconds spent in each phase of an operation, in the order they began."""

    def __init__(self, report: Report = silent) -> None:
        self._report = report
        self._seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = time.monotonic()
        self.started = self._since

    def enter(self, phase: str) -> None:
        """Begin ``phase``; the one before it ends now."""
        self._leave()
        self._phase = phase
        self._report(Progress(phase))

    def _leave(self) -> None:
        now = time.monotonic()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now

    def progress(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` bytes are written."""
        elapsed = time.monotonic() - self._since
        self._report(Progress(self._phase or "", done, total, done / elapsed if elapsed else 0.0))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far, to the microsecond."""
        self._leave()
        return {phase: round(seconds, 6) for phase, seconds in self._seconds.items()}

    @property
    def total(self) -> float:
        """Seconds since the operation began."""
        return time.monotonic() - self.started
